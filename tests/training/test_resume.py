"""Runs that stop or are killed, and go on: same rows, same journal, same weights."""

import gc
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from resume_run import KINDS, STEPS, TEXTS, TORN, run
from trainees import assert_same_weights, make_trainee

from toedit_collate import Journal, Prior
from toedit_collate.stores.journal.files import read_valid
from toedit_collate.training.generations import last_checkpoint

HERE = pathlib.Path(__file__).parents[1]
SLOW = pytest.mark.slow


def everything_of(path):
    """What each generation made of each document, and the counts of each generation."""
    journal = Journal(path)
    replayed = {g: [journal.replay(text, g) for text in TEXTS] for g in journal.generations}
    return replayed, journal.stats()


def assert_nothing_twice(path):
    seen = [
        (frame.info["generation"], key)
        for _, frame in read_valid(path)
        for key in frame.keys.tolist()
    ]
    assert len(seen) == len(set(seen)) > 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run of a kind, made once."""
    runs = {}

    def get(kind, **settings):
        key = kind, *settings.items()
        if key not in runs:
            folder = tmp_path_factory.mktemp("whole")
            runs[key] = run(folder, kind, **settings)
            if settings.get("journal", True):
                runs[key]["journal"] = everything_of(folder / "journal")
                runs[key]["collator"].journal.close()
        return runs[key]

    return get


def stop_at(folder, kind, step, **settings):
    stopped = run(folder, kind, stop_at=step, **settings)
    collator = stopped["collator"]
    if collator is not None and collator.journal is not None:
        collator.journal.close()
    return {key: stopped[key] for key in ("rows", "passes")}


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    stop_at(folder, "full, epoch", 6)
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A copy of the folder of a run that swaps in each epoch and was stopped at step 6."""
    return shutil.copytree(stopped_once, tmp_path / "stopped")


def assert_went_on(resumed, whole, first_step, folder=None):
    """The rest of the run is that of the uninterrupted one, bit for bit."""
    begin = 2 * first_step
    assert resumed["rows"] == whole["rows"][begin:]
    assert resumed["losses"] == whole["losses"]
    assert_same_weights(resumed["weights"], whole["weights"])
    assert resumed["generation"] == whole["generation"]
    assert resumed["prior"] == whole["prior"]
    if folder is not None:
        assert everything_of(folder / "journal") == whole["journal"]
        assert_nothing_twice(folder / "journal")


# 4 is the last step of an epoch, 6 is in the middle of one and at a swap of "3".
FAST = {("full, epoch", 4), ("shared, 3", 6), ("lora, save", 2), ("full, never", 4)}
WHERE = [
    pytest.param(kind, step, marks=() if (kind, step) in FAST else pytest.mark.slow)
    for kind in KINDS
    for step in (2, 4, 6)
]


class TestResumed:
    @pytest.mark.parametrize(("kind", "step"), WHERE)
    def test_goes_on_as_if_nothing_had_happened(self, tmp_path, whole, kind, step):
        before = stop_at(tmp_path, kind, step)
        expected = whole(kind)
        assert before["rows"] == expected["rows"][: 2 * step]
        resumed = run(tmp_path, kind, resume_from=last_checkpoint(tmp_path / "out"))
        assert_went_on(resumed, expected, step, tmp_path)
        # The batches that are skipped cost no pass of the prior.
        assert before["passes"] + resumed["passes"] == expected["passes"]
        assert resumed["generation"] >= {"full, never": 0}.get(kind, 3)

    @pytest.mark.parametrize("kind", ["full, epoch", pytest.param("shared, 3", marks=SLOW)])
    def test_without_a_journal(self, tmp_path, whole, kind):
        before = stop_at(tmp_path, kind, 4, journal=False)
        resumed = run(tmp_path, kind, journal=False, resume_from=last_checkpoint(tmp_path / "out"))
        expected = whole(kind, journal=False)
        assert_went_on(resumed, expected, 4)
        assert resumed["passes"] == 16
        assert before["passes"] == 8

    def test_twice(self, tmp_path, whole):
        for step in (2, 6):
            checkpoint = last_checkpoint(tmp_path / "out")
            assert (checkpoint is None) == (step == 2)
            run(tmp_path, "full, 3", stop_at=step, resume_from=checkpoint)
        resumed = run(tmp_path, "full, 3", resume_from=last_checkpoint(tmp_path / "out"))
        assert_went_on(resumed, whole("full, 3"), 6, tmp_path)

    @pytest.mark.parametrize(
        "kind",
        ["lora, epoch", *(pytest.param(k, marks=SLOW) for k in ("full, epoch", "shared, 3"))],
    )
    def test_from_an_older_checkpoint(self, tmp_path, whole, kind):
        """What was written after it is void; a second time too."""
        stop_at(tmp_path, kind, 10)
        for step in (6, 4):
            resumed = run(tmp_path, kind, resume_from=str(tmp_path / f"out/checkpoint-{step}"))
            assert_went_on(resumed, whole(kind), step, tmp_path)
            resumed["collator"].journal.close()

    @pytest.mark.parametrize(
        "kind", ["lora, 3", *(pytest.param(k, marks=SLOW) for k in ("full, epoch", "shared, 3"))]
    )
    def test_in_another_place_with_one_checkpoint_kept(self, tmp_path, whole, kind):
        """The checkpoint holds all that is needed."""
        settings = {"save_total_limit": 1}
        if kind == "lora, 3":
            settings["refresh"] = 3
            kind = "lora, epoch"
        stop_at(tmp_path / "old", kind, 6, **settings)
        assert len(list((tmp_path / "old/out").glob("checkpoint-*"))) == 1
        moved = tmp_path / "moved"
        shutil.move(tmp_path / "old/out/checkpoint-6", moved / "elsewhere/checkpoint-6")
        shutil.move(tmp_path / "old/journal", moved / "journal")
        shutil.rmtree(tmp_path / "old")
        resumed = run(moved, kind, resume_from=str(moved / "elsewhere/checkpoint-6"), **settings)
        assert_went_on(resumed, whole(kind, **settings), 6, moved)

    def test_after_it_was_resumed_without_the_link(self, stopped, whole):
        """As if it had been killed before the prior was put into the checkpoint."""
        shutil.rmtree(stopped / "out/checkpoint-6/toedit_prior")
        resumed = run(stopped, "full, epoch", resume_from=last_checkpoint(stopped / "out"))
        assert_went_on(resumed, whole("full, epoch"), 6, stopped)

    def test_where_another_run_had_been(self, tmp_path, whole):
        """The folder holds priors and checkpoints of the same generations, of another run."""
        stop_at(tmp_path, "full, epoch", 6, learning_rate=1e-3)
        shutil.rmtree(tmp_path / "journal")
        stop_at(tmp_path, "full, epoch", 6)
        resumed = run(tmp_path, "full, epoch", resume_from=str(tmp_path / "out/checkpoint-6"))
        assert_went_on(resumed, whole("full, epoch"), 6, tmp_path)


class TestRefusals:
    def resume(self, folder, kind="full, epoch", **settings):
        return run(folder, kind, resume_from=last_checkpoint(folder / "out"), **settings)

    def test_without_its_journal(self, stopped):
        with pytest.raises(ValueError, match="had a journal, and the collator has none"):
            self.resume(stopped, journal=False)

    def test_an_empty_journal(self, stopped):
        with pytest.raises(ValueError, match=r"new has nothing of the run .*generations \[\]"):
            self.resume(stopped, journal=Journal(stopped / "new"))

    def test_the_journal_of_another_run(self, stopped):
        other = stop_at(stopped / "other", "full, epoch", 2)
        assert other
        with pytest.raises(ValueError, match=r"holds generations \[1\]\); pass the j"):
            self.resume(stopped, journal=Journal(stopped / "other/journal"))

    def test_a_journal_for_a_run_without_one(self, tmp_path):
        stop_at(tmp_path, "full, epoch", 2, journal=False)
        with pytest.raises(ValueError, match="had no journal, and the collator has one"):
            self.resume(tmp_path)

    def test_a_checkpoint_whose_edits_were_taken_back(self, stopped):
        """Resumed at 2 and stopped at 3: the journal has nothing of the steps 3 to 6."""
        run(stopped, "full, epoch", stop_at=3, resume_from=str(stopped / "out/checkpoint-2"))
        match = "resumed at step 2 after this checkpoint of step 6"
        with pytest.raises(ValueError, match=match):
            self.resume(stopped)

    def test_another_prior(self, tmp_path):
        stop_at(tmp_path, "full, epoch", 2)
        with pytest.raises(ValueError, match="prior is not the one that edited the run in"):
            self.resume(tmp_path, prior=Prior(make_trainee()))

    def test_a_prior_that_is_gone(self, stopped):
        shutil.rmtree(stopped / "out/checkpoint-6/toedit_prior")
        shutil.rmtree(stopped / "out/toedit_prior")
        match = r"was made with a prior of generation 1, whose weights are not in .*another check"
        with pytest.raises(FileNotFoundError, match=match):
            self.resume(stopped)

    def test_a_journal_with_the_collator_alone(self, tmp_path):
        stop_at(tmp_path, "full, never", 4)
        gc.collect()  # as in a new process, nobody knows of the journal
        with pytest.raises(ValueError, match=r"pass callbacks=\[ToEditCallback\(collator\)\]"):
            self.resume(tmp_path, "full, never", way="collator")

    def test_a_checkpoint_without_our_state_is_warned_of(self, tmp_path, caplog):
        stop_at(tmp_path, "full, never", 4, way=None, journal=False)
        resumed = self.resume(tmp_path, "full, never")
        logged = [r.getMessage() for r in caplog.records if r.name == "toedit_collate"]
        expected = "checkpoint at step 4 was not written with ToEditCallback"
        assert len([message for message in logged if expected in message]) == 1
        assert len(resumed["rows"]) == 2 * (STEPS - 4)


class TestLastCheckpoint:
    def test_is_the_last_whole_one(self, tmp_path):
        assert last_checkpoint(tmp_path) is None
        for step, state in ((2, {"global_step": 2}), (10, {"global_step": 10}), (12, None)):
            folder = tmp_path / f"checkpoint-{step}"
            folder.mkdir()
            if state:
                (folder / "trainer_state.json").write_text(json.dumps(state))
        assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
        text = (tmp_path / "checkpoint-10/trainer_state.json").read_text()
        (tmp_path / "checkpoint-10/trainer_state.json").write_text(text[: len(text) // 2])
        assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


class Server:
    """Forks runs that may be killed; see resume_run.py."""

    def __init__(self, folder):
        self.errors = (folder / "errors.txt").open("w+")
        paths = [
            str(HERE),
            str(HERE / "helpers"),
            str(HERE.parent),
            os.environ.get("PYTHONPATH", ""),
        ]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "helpers" / "resume_run.py")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
        )  # fmt: skip

    def start(self, folder, kind, die=None) -> int:
        order = {"folder": str(folder), "kind": kind, "die": die}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def end(self) -> bool:
        """Wait; whether it ran to its end (otherwise it was killed)."""
        status = int(self.process.stdout.readline())
        if status not in (0, -signal.SIGKILL):
            self.errors.seek(0)
            pytest.fail(f"the run failed with {status}:\n{self.errors.read()[-4000:]}")
        return status == 0

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = Server(tmp_path_factory.mktemp("server"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def alone(server, tmp_path_factory):
    """The folder of a run that is left alone, made once for each kind."""
    folders = {}

    def get(kind):
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp("alone")
            began = time.monotonic()
            server.start(folders[kind], kind)
            assert server.end()
            (folders[kind] / "seconds").write_text(str(time.monotonic() - began))
        return folders[kind]

    return get


def kill_and_resume(server, folder, kind, kills):
    """Resume as often as it takes; `kills`: what to do to each attempt, None in the end."""
    folder.mkdir()
    num_killed = 0
    for die in (*kills, None):
        if last_checkpoint(folder / "out") is None:
            # Nothing to resume from: the run begins anew, and so does its journal.
            shutil.rmtree(folder / "journal", ignore_errors=True)
        child = server.start(folder, kind, None if isinstance(die, float) else die)
        if isinstance(die, float):
            time.sleep(die)
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                assert server.end()
                return num_killed
        if server.end():
            return num_killed
        num_killed += 1
    pytest.fail("the run did not end")
    return num_killed


def batches_of(folder):
    """Step -> the batches that the model was given at it, in all attempts."""
    given = {}
    for line in (folder / "rows.jsonl").read_text().splitlines():
        one = json.loads(line)
        given.setdefault(one["step"], []).append(one["rows"])
    return given


def assert_as_alone(folder, alone):
    expected, given = batches_of(alone), batches_of(folder)
    assert given.keys() == expected.keys() == set(range(STEPS))
    for step, batches in expected.items():
        # A step is done again if it was not in a checkpoint: with the same rows.
        assert len(batches) == 2
        assert given[step][-2:] == batches
        assert all(batch in batches for batch in given[step])
    assert everything_of(folder / "journal") == everything_of(alone / "journal")
    assert_nothing_twice(folder / "journal")
    ours, theirs = (json.loads((f / "result.json").read_text()) for f in (folder, alone))
    assert ours["losses"] == theirs["losses"]
    assert ours["generation"] == theirs["generation"]
    assert_same_weights(*(torch.load(f / "weights.pt") for f in (folder, alone)))


class TestKilled:
    @pytest.mark.parametrize("moment", TORN)
    def test_in_the_middle_of_it(self, server, alone, tmp_path, moment):
        kind = "shared, save" if moment == "weights" else "full, 3"
        assert kill_and_resume(server, tmp_path / "run", kind, [moment]) == 1
        assert_as_alone(tmp_path / "run", alone(kind))

    @pytest.mark.slow
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "full, never"])
    def test_at_random_file_operations(self, server, alone, tmp_path, kind, seed):
        """Each operation on a file is a moment of its own: two attempts are killed at one."""
        number = json.loads((alone(kind) / "result.json").read_text())["operations"]
        assert number > 50
        choose = random.Random(f"{kind} {seed}")
        kills = [choose.randrange(number // 4, number), choose.randrange(number // 2)]
        assert kill_and_resume(server, tmp_path / "run", kind, kills) >= 1
        assert_as_alone(tmp_path / "run", alone(kind))

    @pytest.mark.slow
    def test_at_random_times(self, server, alone, tmp_path):
        choose = random.Random(0)
        num_killed = 0
        for number, kind in enumerate(("full, epoch", "lora, save", "shared, 3") * 3):
            seconds = float((alone(kind) / "seconds").read_text())
            kills = [choose.uniform(0, seconds) for _ in range(3)]
            num_killed += kill_and_resume(server, tmp_path / str(number), kind, kills)
            assert_as_alone(tmp_path / str(number), alone(kind))
        assert num_killed >= 10
