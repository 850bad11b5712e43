"""The engines for many machines, run for real, with a kill in the middle: datatrove, Ray Data.

What they write is compared with what `toedit apply` writes of the same texts.
"""

import contextlib
import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from conftest import TEXT, make_llama, make_tokenizer

from toedit_collate.commands.main import main
from toedit_collate.data import encode

pytestmark = pytest.mark.slow
WORDS = TEXT.split()
TEXTS = [" ".join(WORDS[n : n + 4 + n % 7]) for n in range(20)]
PARTS, ROWS, BLOCKS = 4, 40, 8
# The model is random: to it, all of the text is unlikely.
STRONG = ["--policy", "region=below threshold=0.5 exclude_original=true"]
SECONDS = 600
# A machine with little to spare is not one that has died.
PATIENT = {
    "RAY_health_check_initial_delay_ms": "120000", "RAY_health_check_timeout_ms": "120000",
    "RAY_worker_register_timeout_seconds": "300", "RAY_gcs_rpc_server_reconnect_timeout_s": "300",
    "RAY_raylet_start_wait_time_s": "600", "RAY_agent_register_timeout_ms": "300000",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    make_llama(sharpness=6.0).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def rows_of(part):
    return [{"text": TEXTS[n % 20], "id": f"{part}-{n}"} for n in range(ROWS)]


def write_source(path, parts=PARTS):
    path.mkdir(parents=True)
    for part in parts if isinstance(parts, list) else range(parts):
        lines = "\n".join(json.dumps(row) for row in rows_of(part))
        (path / f"{part}.jsonl").write_text(lines)


@pytest.fixture(scope="module")
def applied(folder, tmp_path_factory):
    """The edited text of each row, by its id, as `toedit apply` writes them."""
    place = tmp_path_factory.mktemp("applied")
    source = place / "source.jsonl"
    source.write_text("\n".join(json.dumps(row) for p in range(PARTS) for row in rows_of(p)))
    target = str(place / "edited.jsonl")
    assert (
        main(["apply", "--prior", folder, "--data", str(source), *STRONG, "--output", target]) == 0
    )
    edited = {}
    for line in (place / "edited.jsonl").read_text().splitlines():
        row = json.loads(line)
        edited[row["id"]] = row["text"]
    assert len(edited) == PARTS * ROWS
    assert not set(edited.values()) & set(TEXTS)
    return edited


def run_and_kill(command, is_midway):
    """Start it, and kill it and all of its children as soon as it is midway."""
    started = psutil.Popen(command, start_new_session=True)
    deadline = time.monotonic() + SECONDS
    try:
        while not is_midway():
            assert time.monotonic() < deadline, "it never got midway"
            assert started.poll() is None, "it ended before it could be killed"
            time.sleep(0.05)
    finally:
        family = [started]  # Ray's are sessions of their own: a process group is not all of them
        with contextlib.suppress(psutil.NoSuchProcess):
            family += started.children(recursive=True)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family)


DATATROVE = """
import sys, time
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from toedit_collate import EditPolicy
from toedit_collate.integrations.datatrove import ToEdit

class Slowly(ToEdit):
    def run(self, data, rank=0, world_size=1):
        for document in super().run(data, rank, world_size):
            time.sleep(float(sys.argv[3]))
            yield document

if __name__ == "__main__":
    prior, folder, _, tasks, cache = sys.argv[1:]
    policy = EditPolicy(region="below", threshold=0.5, exclude_original=True)
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(folder + "/source", text_key="text"),
            Slowly(prior, policy=policy, cache=cache, batch_documents=8),
            JsonlWriter(folder + "/edited", compression=None),
        ],
        tasks=int(tasks), workers=2, logging_dir=folder + "/logs",
    ).run()
"""


def read_edited(folder):
    """Texts by their ids; raises where a row is there twice."""
    rows = [
        json.loads(line)
        for path in sorted((folder / "edited").glob("*.json*"))
        for line in path.read_text().splitlines()
    ]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row["text"] for row in rows}


def finished_tasks(place):
    return len(list((place / "logs").glob("completions/*")))


def datatrove_command(tmp_path, folder, place, *, pause="0", tasks=PARTS, cache=None):
    (tmp_path / "run.py").write_text(DATATROVE)
    cache = str(place / "cache") if cache is None else cache
    return [
        sys.executable, str(tmp_path / "run.py"), folder, str(place), pause, str(tasks), cache
    ]  # fmt: skip


@pytest.mark.parametrize("tasks", [2, PARTS])
def test_datatrove(folder, tmp_path, applied, tasks):
    pytest.importorskip("datatrove", reason="datatrove is not installed here")
    write_source(tmp_path / "source")
    command = datatrove_command(tmp_path, folder, tmp_path, tasks=tasks)
    subprocess.run(command, check=True, timeout=SECONDS)
    assert read_edited(tmp_path) == applied


def test_datatrove_with_a_kill_in_the_middle(folder, tmp_path, applied):
    """Killed with all its workers when one of four tasks was finished, and started again."""
    pytest.importorskip("datatrove", reason="datatrove is not installed here")
    write_source(tmp_path / "source")
    slow = datatrove_command(tmp_path, folder, tmp_path, pause="0.15")
    run_and_kill(slow, lambda: finished_tasks(tmp_path))
    assert 0 < finished_tasks(tmp_path) < PARTS
    subprocess.run(datatrove_command(tmp_path, folder, tmp_path), check=True, timeout=SECONDS)
    assert read_edited(tmp_path) == applied


@pytest.mark.parametrize("layout", ["one folder", "a folder each"])
def test_one_cache_of_several_machines(folder, tmp_path, applied, layout):
    """Two runs over parts of the texts, side by side; then no prior is needed."""
    pytest.importorskip("datatrove", reason="datatrove is not installed here")
    from toedit_collate import DecisionCache, EditPolicy, ToEditCollator

    cache = tmp_path / "cache"
    machines = []
    for name, parts in (("a", [0, 1]), ("b", [2, 3])):
        write_source(tmp_path / name / "source", parts)
        (tmp_path / f"script-{name}").mkdir()
        own = cache if layout == "one folder" else tmp_path / name / "cache"
        command = datatrove_command(
            tmp_path / f"script-{name}", folder, tmp_path / name, tasks=2, cache=str(own)
        )
        machines.append(subprocess.Popen(command))
    assert [machine.wait(SECONDS) for machine in machines] == [0, 0]
    assert {**read_edited(tmp_path / "a"), **read_edited(tmp_path / "b")} == applied
    if layout == "a folder each":  # merged by links: as `cp -rs` makes them, or `cp -rl`
        link = {"a": os.symlink, "b": os.link}
        for name in "ab":
            for file in (tmp_path / name / "cache").glob("*/*"):
                target = cache / file.parent.name / file.name
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    link[name](file, target)
    assert len(list(cache.glob("*/*.safetensors"))) == 4  # a file for each task
    store = DecisionCache(cache)
    policy = EditPolicy(region="below", threshold=0.5, exclude_original=True)
    tokenizer = make_tokenizer()
    collator = ToEditCollator(store.prior(policy), policy, tokenizer=tokenizer, cache=store)
    for number, text in enumerate(TEXTS):
        (ids,), _ = encode(tokenizer, [text])
        batch = collator([{"input_ids": ids}])
        found = tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True)
        assert found == applied[f"0-{number}"]


RAY = """
import os, signal, sys, time
import ray
from toedit_collate import EditPolicy
from toedit_collate.integrations.ray import ToEditBatches

prior, folder, kind, pause, dies, blocks = sys.argv[1:]
mark = folder + "/died"

class Edits(ToEditBatches):
    def __call__(self, batch):
        time.sleep(float(pause))
        if int(dies) and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)

# Two actors, the one that filters what was written, and others to read and write: with three, a
# second run waits for ever.
ray.init(num_cpus=5, include_dashboard=False, log_to_driver=False)
context = ray.data.DataContext.get_current()
context.checkpoint_config = ray.data.checkpoint.CheckpointConfig(
    id_column="id", checkpoint_path=folder + "/marks", delete_checkpoint_on_success=False
)
read = {"jsonl": ray.data.read_json, "parquet": ray.data.read_parquet}[kind]
# Small files are read as one block: as many as there are on a cluster are made of it.
edited = read(folder + "/source").repartition(int(blocks)).map_batches(
    Edits,
    fn_constructor_args=(prior,),
    fn_constructor_kwargs={
        "policy": EditPolicy(region="below", threshold=0.5, exclude_original=True),
    },
    compute=ray.data.ActorPoolStrategy(size=2),
    batch_size=8,
)
getattr(edited, {"jsonl": "write_json", "parquet": "write_parquet"}[kind])(folder + "/edited")
"""


@pytest.fixture
def ray_command(folder, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed here")
    pytest.importorskip("ray.data", reason="Ray Data is not installed here")
    for name, value in PATIENT.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "run.py").write_text(RAY)

    def command(kind, *, pause=0.0, dies=False):
        return [
            sys.executable, str(tmp_path / "run.py"), folder, str(tmp_path), kind, str(pause),
            str(int(dies)), str(BLOCKS),
        ]  # fmt: skip

    return command


def write_source_of(kind, path):
    write_source(path)
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        for part in range(PARTS):
            (path / f"{part}.jsonl").unlink()
            pq.write_table(pa.Table.from_pylist(rows_of(part)), path / f"{part}.parquet")


def read_ray(kind, place):
    if kind == "jsonl":
        return read_edited(place)
    import pyarrow.parquet as pq

    rows = pq.read_table(place / "edited", columns=["id", "text"]).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row["text"] for row in rows}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_ray_with_an_actor_killed_in_the_middle(ray_command, tmp_path, applied, kind):
    """Ray makes the actor anew."""
    write_source_of(kind, tmp_path / "source")
    subprocess.run(ray_command(kind, dies=True), check=True, timeout=SECONDS)
    assert (tmp_path / "died").exists()
    assert read_ray(kind, tmp_path) == applied


def test_ray_with_everything_killed_in_the_middle(ray_command, tmp_path, applied):
    """The driver and all of its processes; Ray's marks tell a second run what was written."""
    write_source_of("parquet", tmp_path / "source")

    def written():
        """Files of which Ray Data knows that they are whole."""
        marks = {path.stem for path in (tmp_path / "marks").glob("*.parquet")}
        files = (tmp_path / "edited").glob("*.parquet")
        return [path for path in files if any(path.name.startswith(mark) for mark in marks)]

    run_and_kill(ray_command("parquet", pause=1.0), written)
    before = {path: path.stat().st_mtime_ns for path in written()}
    assert 0 < len(before) < BLOCKS
    subprocess.run(ray_command("parquet"), check=True, timeout=SECONDS)
    assert read_ray("parquet", tmp_path) == applied
    assert {path: path.stat().st_mtime_ns for path in before} == before
