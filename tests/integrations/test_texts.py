"""Texts in, edited texts out; and the two engines around it, where they are installed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import TEXT, make_llama, make_tokenizer

from toedit_collate import DecisionCache, EditPolicy, edit_tokens
from toedit_collate.integrations.ray import ToEditBatches
from toedit_collate.integrations.texts import TextEditor

WORDS = TEXT.split()
TEXTS = [" ".join(WORDS[n : n + 4 + n % 7]) for n in range(20)]
# The model is random: to it, all of the text is unlikely.
STRONG = EditPolicy(region="below", threshold=0.5, exclude_original=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    make_llama(sharpness=6.0).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def test_texts_are_edited_as_their_tokens_are(folder):
    editor = TextEditor(folder, STRONG, batch_tokens=64)
    for text, one in zip(TEXTS, editor.edit(TEXTS), strict=True):
        ids = editor.prior.tokenizer(text, return_tensors="pt")["input_ids"]
        result = edit_tokens(editor.prior, ids, policy=STRONG)
        assert one.input_ids == result.input_ids[0].tolist()
        assert (one.scored, one.changed) == (result.scored.sum(), result.changed.sum())
        assert one.changed > 0
        assert one.text == editor.prior.tokenizer.decode(one.input_ids)
        assert not one.is_lossy


def test_a_text_that_is_not_changed_is_exactly_as_it_was(folder):
    (one,) = TextEditor(folder, "paper").edit(["  two  spaces , and a tab\t."])
    assert (one.text, one.changed) == ("  two  spaces , and a tab\t.", 0)


def test_a_long_text_goes_window_by_window(folder):
    editor = TextEditor(folder, STRONG, max_length=8)
    (one,) = editor.edit([TEXT])
    ids = editor.prior.tokenizer(TEXT)["input_ids"]
    windows = [ids[n : n + 8] for n in range(0, len(ids), 8)]
    assert one.scored == sum(len(window) - 1 for window in windows)
    assert [one.input_ids[n] for n in range(0, len(ids), 8)] == [window[0] for window in windows]


def test_tokens_may_be_dropped(folder):
    editor = TextEditor(folder, EditPolicy(region="none", drop_below=0.01))
    (one,) = editor.edit([TEXT])
    assert one.dropped > 0
    assert len(one.input_ids) == len(editor.prior.tokenizer(TEXT)["input_ids"]) - one.dropped


def test_a_cache_is_filled(folder, tmp_path):
    editor = TextEditor(folder, STRONG, cache=str(tmp_path / "cache"))
    first = editor.edit(TEXTS)
    editor.flush()
    assert editor.edit(TEXTS) == first
    assert list((tmp_path / "cache").rglob("*"))
    assert isinstance(editor._cache, DecisionCache)


@pytest.mark.parametrize(("name", "value"), [("max_length", 1), ("batch_tokens", 0)])
def test_numbers_that_are_too_small(folder, name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        TextEditor(folder, **{name: value})


def test_rays_batches(folder):
    batch = {"text": TEXTS[:3], "id": [1, 2, 3]}
    edited = ToEditBatches(folder, STRONG)(batch)
    expected = TextEditor(folder, STRONG).edit(TEXTS[:3])
    assert list(edited["text"]) == [one.text for one in expected]
    assert list(edited["changed"]) == [one.changed for one in expected]
    assert edited["id"] == [1, 2, 3]
    with pytest.raises(ValueError, match="pass column=NAME"):
        ToEditBatches(folder, STRONG, column="body")(batch)


def write_source(path, num=40):
    path.mkdir()
    for part in range(4):
        rows = [{"text": TEXTS[n % 20], "id": f"{part}-{n}"} for n in range(num)]
        (path / f"{part}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


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
    prior, folder, _, tasks = sys.argv[1:]
    policy = EditPolicy(region="below", threshold=0.5, exclude_original=True)
    LocalPipelineExecutor(
        pipeline=[
            JsonlReader(folder + "/source", text_key="text"),
            Slowly(prior, policy=policy, cache=folder + "/cache", batch_documents=8),
            JsonlWriter(folder + "/edited", compression=None),
        ],
        tasks=int(tasks), workers=2, logging_dir=folder + "/logs",
    ).run()
"""


def read_edited(folder):
    rows = [
        json.loads(line)
        for path in sorted((folder / "edited").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return {row["id"]: row["text"] for row in rows}, len(rows)


@pytest.mark.slow
def test_datatrove_with_a_kill_in_the_middle(folder, tmp_path):
    """Killed with all its workers, started again: the same as without, and as with other tasks."""
    pytest.importorskip("datatrove", reason="datatrove is not installed here")
    (tmp_path / "run.py").write_text(DATATROVE)
    results = []
    for name, pause, tasks in (("killed", "0.15", "4"), ("whole", "0", "2")):
        place = tmp_path / name
        place.mkdir()
        write_source(place / "source")
        command = [sys.executable, str(tmp_path / "run.py"), folder, str(place)]
        if name == "killed":
            started = subprocess.Popen([*command, pause, tasks], start_new_session=True)
            deadline = time.monotonic() + 200
            while not list((place / "logs").glob("completions/*")):
                assert time.monotonic() < deadline, "no task was finished"
                time.sleep(0.05)
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()
            finished = len(list((place / "logs").glob("completions/*")))
            assert 0 < finished < 4
        subprocess.run([*command, "0", tasks], check=True, timeout=250)
        texts, num = read_edited(place)
        assert len(texts) == num == 160
        results.append(texts)
    expected = [one.text for one in TextEditor(folder, STRONG).edit(TEXTS)]
    assert results[0] == results[1]
    assert results[0] == {f"{p}-{n}": expected[n % 20] for p in range(4) for n in range(40)}


@pytest.mark.slow
def test_ray_with_two_actors(folder, tmp_path):
    """One of the two is killed in the middle; Ray makes it anew, and the texts are the same."""
    ray = pytest.importorskip("ray", reason="Ray is not installed here")
    pytest.importorskip("ray.data", reason="Ray Data is not installed here")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        mark = tmp_path / "killed"

        class DiesOnce(ToEditBatches):
            def __call__(self, batch):
                if not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().__call__(batch)

        rows = [{"text": TEXTS[n % 20], "id": n} for n in range(80)]
        edited = (
            ray.data.from_items(rows)
            .map_batches(
                DiesOnce,
                fn_constructor_args=(folder,),
                fn_constructor_kwargs={"policy": STRONG},
                concurrency=2,
                batch_size=8,
            )
            .take_all()
        )
    finally:
        ray.shutdown()
    assert mark.exists()
    expected = [one.text for one in TextEditor(folder, STRONG).edit(TEXTS)]
    assert {row["id"]: row["text"] for row in edited} == {n: expected[n % 20] for n in range(80)}
