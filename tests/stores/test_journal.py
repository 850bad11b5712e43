"""The journal's frames and files, and Journal itself, without a prior."""

import copy
import gc
import json
import os
import pickle
import signal
import warnings

import numpy as np
import pytest
import reference
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journals import POLICY, in_child, record

from toedit_collate import Journal
from toedit_collate.stores import segments
from toedit_collate.stores.journal import files
from toedit_collate.stores.journal import journal as journal_module
from toedit_collate.stores.journal.files import (
    Frame,
    JournalWriter,
    list_files,
    read_frame,
    read_valid,
    write_frame,
)
from toedit_collate.stores.journal.replay import EditTable
from toedit_collate.stores.segments import DamagedFileError

# Many documents here are of no generation.
pytestmark = pytest.mark.filterwarnings("ignore:the journal .* knows no document:UserWarning")
TOKENS = st.one_of(st.integers(0, 2**31 - 2), st.integers(2**31 - 3, 2**31 - 2))


@st.composite
def frame_contents(draw):
    """A frame with any numbers of documents, changes and steps; the largest values included."""
    counts = draw(st.lists(st.integers(0, 3), max_size=5))
    keys = draw(st.lists(st.integers(0, 2**64 - 1), min_size=len(counts), max_size=len(counts)))
    change = st.tuples(
        st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.one_of(TOKENS, st.just(-1))
    )
    changes = draw(st.lists(change, min_size=sum(counts), max_size=sum(counts)))
    borders = sorted(draw(st.lists(st.integers(0, len(counts)), max_size=2)))
    documents = np.diff([0, *borders, len(counts)]) if counts else np.zeros(0)
    steps = {
        name: np.array(draw(st.lists(st.integers(0, 2**63 - 1), min_size=n, max_size=n)), np.int64)
        for n in [len(documents)]
        for name in files.STEP_COLUMNS
    }
    steps["documents"] = documents.astype(np.int64)
    info = draw(
        st.dictionaries(st.text(max_size=3), st.one_of(st.integers(), st.text(), st.none()))
    )
    info |= {"generation": 1, "run": "r", "attempt": 0, "resumed_at": 0}
    return Frame(
        info,
        np.array(keys, np.uint64),
        np.array(counts, np.int64),
        np.array(changes, np.int64).reshape(-1, 3),
        steps,
    )


def assert_same_frame(ours, theirs):
    assert ours.info == theirs.info
    for name in ("keys", "counts", "changes"):
        got, expected = getattr(ours, name), getattr(theirs, name)
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        assert (got == expected).all()
    for name in files.STEP_COLUMNS:
        assert ours.steps[name].tolist() == theirs.steps[name].tolist()


def small_frame(number, generation=1):
    steps = {name: np.array([number]) for name in files.STEP_COLUMNS}
    info = {"generation": generation, "run": "r", "attempt": 0, "resumed_at": 0}
    return Frame(
        {**info, "prior": "p", "policy": POLICY},
        np.array([number], np.uint64),
        np.array([1]),
        np.array([[number, 2, 3]]),
        {**steps, "documents": np.array([1])},
    )


def numbers_in(folder):
    """Of all frames' documents, in the order of the files."""
    return [key for _, frame in read_valid(folder) for key in frame.keys.tolist()]


class TestFrames:
    @given(frame_contents())
    @settings(
        suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50
    )
    def test_come_back_as_they_were_written(self, tmp_path, written):
        path = tmp_path / "a.safetensors"
        write_frame(path, written)
        assert_same_frame(read_frame(path), written)

    @pytest.mark.parametrize("value", [2**31, -2])
    def test_a_value_that_does_not_fit_is_refused(self, tmp_path, value):
        frame = small_frame(1)
        frame.changes[0, 2] = value
        with pytest.raises(ValueError, match=r"below 2\*\*31, got 2147483648|from 0, got -1"):
            write_frame(tmp_path / "a.safetensors", frame)
        assert not list(tmp_path.iterdir())

    def test_every_flipped_bit_is_noticed_or_harmless(self, tmp_path):
        path = tmp_path / "a.safetensors"
        frame = small_frame(1)
        write_frame(path, frame)
        whole = path.read_bytes()
        num_noticed = 0
        for place in range(len(whole)):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << place % 8
            path.write_bytes(damaged)
            try:
                read = read_frame(path)
            except DamagedFileError:
                num_noticed += 1
            else:
                assert_same_frame(read, frame)
        assert num_noticed > 0.95 * len(whole)

    def test_every_cut_is_noticed(self, tmp_path):
        path = tmp_path / "a.safetensors"
        write_frame(path, small_frame(1))
        whole = path.read_bytes()
        for length in [*range(0, len(whole), 7), len(whole) - 1]:
            path.write_bytes(whole[:length])
            with pytest.raises(DamagedFileError, match=rf"{path} is damaged: .*a copy"):
                read_frame(path)
        path.write_bytes(whole + b"more")
        with pytest.raises(DamagedFileError):
            read_frame(path)

    @pytest.mark.parametrize("content", [b"PK\x03\x04 another kind of file", b"x", b"TEJ2" * 9])
    def test_a_foreign_file_is_refused(self, tmp_path, content):
        path = tmp_path / "a.safetensors"
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match="not a whole safetensors file"):
            read_frame(path)

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"counts": [2]}, "do not fit each other"),
            ({"documents": [3]}, "do not fit each other"),
            ({"documents": [2**40 + 1]}, "do not fit each other"),
            ({"step": [2**63]}, "do not fit each other"),
            ({"step": [1, 2]}, "do not fit each other"),
            ({"old": [1, 2]}, "do not fit each other"),
            ({"keys": [[1]]}, "another type or shape"),
            ({"keys": [1.5]}, "another type or shape"),
            ({"another": [1]}, "other arrays"),
            ({"keys": None}, "other arrays"),
        ],
    )
    def test_whole_segments_of_another_content_are_refused(self, tmp_path, wrong, message):
        frame = small_frame(1)
        position, old, new = frame.changes.T
        arrays = {"keys": frame.keys, "counts": frame.counts, **frame.steps}
        arrays |= {"position": position, "old": old, "new": new + 1}
        arrays = {name: values.astype(np.uint64) for name, values in arrays.items()}
        arrays |= {name: np.array(values) for name, values in wrong.items() if values}
        arrays |= {n: a.astype(np.uint64) for n, a in arrays.items() if a.dtype.kind in "iu"}
        for name in [name for name, values in wrong.items() if values is None]:
            del arrays[name]
        path = tmp_path / "a.safetensors"
        segments.write_segment(path, files.KIND, arrays, {"info": frame.info})
        with pytest.raises(DamagedFileError, match=message):
            read_frame(path)


class TestWriter:
    def test_makes_a_file_of_each_frame(self, tmp_path):
        writer = JournalWriter(tmp_path, 0)
        for number in range(3):
            frame = small_frame(number)
            writer.write(Frame({**frame.info, "attempt": number}, *list(vars(frame).values())[1:]))
        assert len(list_files(tmp_path)) == 3
        for number in range(3):
            writer.write(small_frame(number, generation=2 + number))
        assert len(list_files(tmp_path)) == 6

    def test_goes_on_behind_what_is_there(self, tmp_path):
        for number in range(4):
            writer = JournalWriter(tmp_path, 0)
            writer.write(small_frame(number))
            writer.close()
        assert [file.number for file in list_files(tmp_path)] == [0, 1, 2, 3]
        assert numbers_in(tmp_path) == [0, 1, 2, 3]

    def test_a_missing_segment_is_noticed(self, tmp_path):
        for number in range(3):
            writer = JournalWriter(tmp_path, 0)
            writer.write(small_frame(number))
            writer.close()
        list_files(tmp_path)[1].path.unlink()
        with pytest.raises(DamagedFileError, match="generation 1, rank 0, segment 1 is missing"):
            list_files(tmp_path)

    def test_a_full_disk_leaves_all_as_it_was(self, tmp_path, monkeypatch):
        writer = JournalWriter(tmp_path, 0)
        writer.write(small_frame(1))

        def fail(_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(segments.os, "fsync", fail)
            with pytest.raises(OSError, match="No space"):
                writer.write(small_frame(2))
        assert len(list(tmp_path.glob("*.safetensors*"))) == 1
        writer.write(small_frame(3))
        assert numbers_in(tmp_path) == [1, 3]

    def test_what_a_killed_process_left_is_removed(self, tmp_path, monkeypatch):
        def die(_):
            os.kill(os.getpid(), signal.SIGKILL)

        def work():
            writer = JournalWriter(tmp_path, 0)
            writer.write(small_frame(1))
            monkeypatch.setattr(segments.os, "fsync", die)
            writer.write(small_frame(2))

        assert in_child(work) == "killed"
        assert len(list(tmp_path.glob("*.unfinished"))) == 1
        assert numbers_in(tmp_path) == [1]
        writer = JournalWriter(tmp_path, 0)
        writer.write(small_frame(3))
        assert not list(tmp_path.glob("*.unfinished"))
        assert numbers_in(tmp_path) == [1, 3]

    def test_a_second_writer_is_refused_until_the_first_has_closed(self, tmp_path):
        writer = JournalWriter(tmp_path, 0)
        for refused in (in_child(open_writer, tmp_path), in_child(open_writer, tmp_path)):
            assert refused.startswith(f"BlockingIOError: rank 0 of the journal {tmp_path} is being")
            assert "its own journal" in refused
        writer.close()
        assert in_child(open_writer, tmp_path) == "written"
        assert numbers_in(tmp_path) == [7]

    def test_a_forked_worker_neither_ends_nor_keeps_the_lock(self, tmp_path):
        writer = JournalWriter(tmp_path, 0)
        in_child(writer.close)
        assert in_child(open_writer, tmp_path).startswith("BlockingIOError")
        read, write = os.pipe()
        worker = os.fork()
        if worker == 0:  # lives on, with the open file
            os.read(read, 1)
            os._exit(0)
        writer.close()
        try:
            assert in_child(open_writer, tmp_path) == "written"
        finally:
            os.write(write, b".")
            os.waitpid(worker, 0)


def open_writer(folder):
    writer = JournalWriter(folder, 0)
    writer.write(small_frame(7))
    return "written"


DOCUMENT = st.lists(st.integers(0, 5), min_size=1, max_size=6)


@st.composite
def histories(draw):
    """Documents, and what three generations do to each: {position: token, None: removed}."""
    documents = draw(st.lists(DOCUMENT, min_size=1, max_size=4, unique_by=tuple))
    slow = reference.SlowJournal()
    for generation in (1, 2, 3):
        for source in documents:
            length = len(slow.revise(source, generation - 1)[0])
            new = st.one_of(TOKENS, st.none())
            if draw(st.booleans()):
                places = st.integers(min(1, length - 1), length - 1)
                changes = draw(st.dictionaries(places, new, max_size=3))
                changes.pop(0, None)  # the first token is never edited
                slow.record(generation, source, changes)
    return documents, slow


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal")


def key_of(source):
    return journal_module.keys_of(torch.tensor(source), [len(source)])


def again(journal):
    """The journal as another process sees it: from the files alone."""
    return as_another_process(journal.path)


def as_another_process(path):
    journal_module.JOURNALS.clear()
    return Journal(path)


class TestReplay:
    @given(histories())
    @settings(deadline=None, max_examples=50)
    def test_is_that_of_the_reference(self, tmp_path_factory, history):
        documents, slow = history
        journal = Journal(tmp_path_factory.mktemp("replay"))
        for generation, edits in slow.generations.items():
            for source, changes in edits.items():
                record(journal, list(source), changes, generation=generation)
        for each in (journal, journal.flush() or again(journal)):
            for generation in [0, *each.generations]:
                for source in documents:
                    ids, places = slow.revise(source, generation)
                    assert each.replay(source, generation) == ids
                    revised, kept = each.revise(source, generation)
                    assert (revised.tolist(), kept.tolist()) == (ids, places)
                    edits = slow.generations.get(generation, {})
                    assert each.knows(source, generation) == (tuple(source) in edits)
            assert each.generations == sorted(slow.generations)
            for generation, counts in each.stats().items():
                assert (counts["changed"], counts["dropped"]) == slow.count(generation)

    def test_takes_lists_arrays_and_tensors(self, journal):
        record(journal, [5, 6, 7], {1: 9})
        for ids in ([5, 6, 7], (5, 6, 7), np.array([5, 6, 7]), torch.tensor([5, 6, 7])):
            assert journal.replay(ids, 1) == [5, 9, 7]
            assert journal.replay(ids, 0) == [5, 6, 7]

    def test_a_document_that_is_not_known_stays_and_says_so(self, journal):
        record(journal, [5, 6, 7], {1: 9})
        with pytest.warns(UserWarning, match=r"knows no document with these 2 tokens.*template"):
            assert journal.replay([5, 6], 1) == [5, 6]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert journal.replay([5, 6], 0) == [5, 6]
            assert journal.replay([], 1) == []
            assert journal.replay([5, 6, 7], 1) == [5, 9, 7]
        assert not journal.knows([], 1)

    @pytest.mark.parametrize("change", [(1, 99, 9), (3, 7, 9)], ids=["token", "position"])
    def test_changes_of_another_document_are_refused(self, journal, change):
        """As if two documents had one key; the next document must not be touched either."""
        record(journal, [5, 6, 7], {})
        keys = journal_module.keys_of(torch.tensor([5, 6, 7, 7]), [3, 1])
        journal._read_new()
        journal._tables[2] = EditTable()
        journal._tables[2].add(keys[:1], np.array([1]), np.array([change]))
        with pytest.raises(ValueError, match=r"generation 2: its changes belong to another docum"):
            journal.replay([5, 6, 7], 2)
        texts = journal_module.Texts.of(np.array([5, 6, 7, 7]), np.array([0, 3]))
        with pytest.raises(ValueError, match="generation 2"):
            journal.bring_forward(texts, keys, 2)

    @pytest.mark.parametrize("generation", [2, -1])
    def test_a_generation_that_is_not_there(self, journal, generation):
        record(journal, [5, 6], {})
        with pytest.raises(ValueError, match=rf"one of the journal's, \[1\]; got {generation}"):
            journal.replay([5, 6], generation)

    def test_an_empty_journal(self, journal):
        assert journal.replay([5, 6], 0) == [5, 6]
        assert journal.generations == []
        assert journal.stats() == {}
        with pytest.raises(ValueError, match="none yet; got 1"):
            journal.replay([5, 6], 1)
        assert not journal.path.exists()

    @pytest.mark.parametrize("generation", [1.0, "1", True, None])
    def test_a_generation_of_another_type(self, journal, generation):
        with pytest.raises(ValueError, match=f"none yet; got {generation!r}"):
            journal.replay([5], generation)

    def test_a_batch_is_refused(self, journal):
        with pytest.raises(ValueError, match=r"of one document, got an array of shape \(1, 2\)"):
            journal.replay([[5, 6]], 0)


class TestRefusals:
    def test_a_file_is_no_folder(self, tmp_path):
        path = tmp_path / "file"
        path.touch()
        with pytest.raises(NotADirectoryError, match="must be a folder, got the file"):
            Journal(path)

    def test_an_earlier_generation_than_the_last(self, journal):
        record(journal, [5, 6], {1: 7})
        record(journal, [5, 6], {1: 8}, generation=2)
        with pytest.raises(ValueError, match=r"already holds generation 2, so generation 1 can't"):
            journal.start_generation(1, "a prior", POLICY)
        journal.start_generation(3, "a prior", POLICY)

    def test_another_prior(self, journal):
        record(journal, [5, 6], {1: 7})
        with pytest.raises(ValueError, match=r"another prior .*set prior\.generation = 1"):
            journal.start_generation(1, "another", POLICY)
        journal.start_generation(2, "another", POLICY)

    @pytest.mark.parametrize(
        ("name", "value"), [("top_k", 9), ("protect", "f"), ("seed", 2**64 - 1)]
    )
    def test_another_policy(self, journal, name, value):
        record(journal, [5, 6], {1: 7})
        journal = journal.flush() or again(journal)
        journal.start_generation(1, "a prior", json.loads(json.dumps(POLICY)))
        with pytest.raises(
            ValueError,
            match=rf"made with {name}={POLICY[name]!r} in its policy, but this run has {value!r}",
        ):
            journal.start_generation(1, "a prior", {**POLICY, name: value})

    def test_recording_comes_after_starting(self, journal):
        with pytest.raises(RuntimeError, match="start_generation"):
            journal.record(np.array([1], np.uint64), np.ones(1), np.zeros(1), np.zeros((0, 3)), 0)

    def test_damage_does_not_go_unnoticed(self, journal):
        record(journal, [5, 6], {1: 7})
        journal.close()
        (file,) = list_files(journal.path)
        file.path.write_bytes(file.path.read_bytes()[:-1] + b"?")
        with pytest.raises(DamagedFileError, match=rf"{file.path.name} is damaged"):
            again(journal).replay([5, 6], 1)


class TestStats:
    def test_are_what_was_recorded(self, journal):
        record(journal, [5, 6, 7, 8], {1: 9, 2: None}, step=3)
        record(journal, [1, 2, 3], {}, step=3)
        record(journal, [1, 2], {1: 3}, step=4)
        record(journal, [1, 2], {1: 4}, generation=2)
        expected = {
            "documents": 3, "tokens": 9, "scored": 6, "selected": 3, "changed": 2, "dropped": 1,
            "selected_share": 3 / 6, "changed_share": 2 / 6,
        }  # fmt: skip
        for each in (journal, again(journal)):
            stats = each.stats()
            assert list(stats) == [1, 2]
            assert stats[1] == expected
            assert stats[2]["changed_share"] == 1


class TestAttempts:
    def test_what_was_written_after_the_checkpoint_is_void(self, journal):
        """The frames straddle the step: one document of a frame holds, another does not."""
        journal.start_run("run")
        for step in range(6):
            record(journal, [step, 1], {1: 10 + step}, step=step)
        record(journal, [5, 1], {1: 99}, generation=2, step=5)
        journal.close()
        journal = again(journal)
        assert journal.last_attempt("run") == 0
        assert journal.last_attempt("another") is None
        journal.start_run("run", attempt=1, resumed_at=3)
        for each in (journal, again(journal)):
            assert [each.knows([s, 1], 1) for s in range(6)] == [True] * 3 + [False] * 3
            assert each.generations == [1]
            assert each.stats()[1]["documents"] == 3
            assert each.stats()[1]["scored"] == 3
            assert each.last_attempt("run") == 1
        for step in range(3, 5):
            record(journal, [step, 1], {1: 20 + step}, step=step)
        journal.start_run("run", attempt=2, resumed_at=4)
        record(journal, [4, 1], {1: 34}, step=4)
        journal.flush()
        for each in (journal, again(journal)):
            assert [each.replay([s, 1], 1)[1] for s in range(6)] == [10, 11, 12, 23, 34, 1]
            assert each.stats()[1]["documents"] == 5

    def test_an_earlier_checkpoint_voids_two_attempts(self, journal):
        for attempt, (resumed_at, steps) in enumerate([(0, range(4)), (2, range(2, 6)), (1, [1])]):
            journal.start_run("run", attempt=attempt, resumed_at=resumed_at)
            for step in steps:
                record(journal, [step, 1], {1: 10 * attempt + 10}, step=step)
        assert [journal.replay([s, 1], 1)[1] for s in range(6)] == [10, 30, 1, 1, 1, 1]

    def test_other_runs_are_left_alone(self, journal):
        journal.start_run("one")
        record(journal, [5, 6], {1: 7}, step=9)
        journal.start_run("two", attempt=1, resumed_at=0)
        assert journal.replay([5, 6], 1) == [5, 7]

    def test_it_is_void_before_the_first_edit(self, journal):
        """Another rank that reads must not take for valid what this one will redo."""
        journal.start_run("run")
        record(journal, [5, 6], {1: 7}, step=9)
        journal.start_run("run", attempt=1, resumed_at=9)
        valid = [frame.keys.tolist() for _, frame in read_valid(journal.path)]
        assert valid == [[], []]

    def test_a_void_generation_can_be_made_with_another_prior(self, journal):
        journal.start_run("run")
        record(journal, [5, 6], {1: 7}, step=1)
        record(journal, [5, 6], {1: 8}, generation=2, step=5)
        journal.start_run("run", attempt=1, resumed_at=5)
        record(journal, [8, 9], {1: 7}, step=5)
        record(journal, [5, 6], {1: 9}, generation=2, step=6, prior="another")
        assert journal.replay([5, 6], 2) == [5, 9]


class TestRanks:
    def write(self, journal, monkeypatch, rank, *edits):
        monkeypatch.setenv("RANK", str(rank))
        for source, changes, step in edits:
            record(journal, source, changes, step=step)
        journal.close()

    def test_each_writes_a_file_and_reads_all(self, journal, monkeypatch):
        for rank in (0, 1, 2):
            self.write(again(journal), monkeypatch, rank, ([rank, 1], {1: 7 + rank}, 0))
        assert [file.rank for file in list_files(journal.path)] == [0, 1, 2]
        for rank in (0, 1, 2):
            assert again(journal).replay([rank, 1], 1) == [rank, 7 + rank]

    def test_of_two_edits_the_earlier_step_stands_then_the_lower_rank(self, journal, monkeypatch):
        self.write(again(journal), monkeypatch, 0, ([5, 6], {1: 70}, 4), ([7, 6], {1: 70}, 2))
        self.write(again(journal), monkeypatch, 1, ([7, 6], {1: 71}, 2), ([5, 6], {1: 71}, 3))
        assert again(journal).replay([5, 6], 1) == [5, 71]
        assert again(journal).replay([7, 6], 1) == [7, 70]

    def test_refresh_reads_what_others_wrote(self, journal, monkeypatch):
        record(journal, [5, 6], {1: 7})
        self.write(again(journal), monkeypatch, 1, ([7, 6], {1: 8}, 0))
        monkeypatch.setenv("RANK", "0")
        key = key_of([7, 6])
        assert not journal.look_up(key, 1).known.any()
        journal.refresh()
        assert journal.look_up(key, 1).known.all()
        assert journal.replay([5, 6], 1) == [5, 7]


class TestProcesses:
    def test_journals_of_one_path_know_the_same(self, journal, monkeypatch):
        monkeypatch.chdir(journal.path.parent)
        link = journal.path.parent / "link"
        link.symlink_to(link.parent, target_is_directory=True)
        others = [
            Journal("journal"),
            Journal(link / "journal"),
            Journal("journal/../journal"),
        ]
        record(journal, [5, 6], {1: 7})
        for number, other in enumerate(others):
            assert other.replay([5, 6], 1) == [5, 7]
            record(other, [number, 7], {1: 8})
            assert journal.replay([number, 7], 1) == [number, 8]
        journal.flush()
        assert len(list_files(journal.path)) == 1

    def test_another_sees_what_was_flushed(self, journal):
        reader = as_another_process(journal.path)
        record(journal, [5, 6], {1: 7})
        assert reader.generations == []
        journal.flush()
        assert reader.replay([5, 6], 1) == [5, 7]
        record(journal, [5, 7], {1: 8})
        assert not reader.knows([5, 7], 1)
        journal.flush()
        assert reader.replay([5, 7], 1) == [5, 8]

    def test_flushing_does_not_hide_what_another_wrote(self, journal, monkeypatch):
        other = as_another_process(journal.path)
        record(journal, [5, 6], {1: 7})
        journal.flush()
        record(journal, [5, 8], {1: 9})
        monkeypatch.setenv("RANK", "1")
        record(other, [5, 7], {1: 8})
        other.close()
        monkeypatch.setenv("RANK", "0")
        journal.flush()
        assert journal.replay([5, 7], 1) == [5, 8]

    def test_reading_what_another_wrote_forgets_nothing(self, journal, monkeypatch):
        other = as_another_process(journal.path)
        record(journal, [5, 6], {1: 7})
        monkeypatch.setenv("RANK", "1")
        record(other, [5, 7], {1: 8})
        other.close()
        monkeypatch.setenv("RANK", "0")
        assert journal.replay([5, 7], 1) == [5, 8]
        assert journal.look_up(key_of([5, 6]), 1).known.all()
        assert journal.replay([5, 6], 1) == [5, 7]

    def test_what_is_appended_while_reading_is_read_next_time(self, journal, monkeypatch):
        record(journal, [5, 6], {1: 7})
        journal.flush()
        reader = as_another_process(journal.path)
        real = journal_module.read_valid

        def and_append(folder):
            yield from list(real(folder))
            monkeypatch.setattr(journal_module, "read_valid", real)
            record(journal, [5, 7], {1: 8})
            journal.flush()

        monkeypatch.setattr(journal_module, "read_valid", and_append)
        assert reader.replay([5, 6], 1) == [5, 7]
        assert reader.replay([5, 7], 1) == [5, 8]

    def test_many_edits_are_written_by_themselves(self, journal, monkeypatch):
        monkeypatch.setattr(journal_module, "MAX_PENDING_BATCHES", 3)
        for number in range(4):
            record(journal, [number, 6], {1: 7})
        assert [again(journal).knows([n, 6], 1) for n in range(4)] == [True] * 3 + [False]

    def test_the_last_reference_writes(self, tmp_path):
        journal = Journal(tmp_path)
        record(journal, [5, 6], {1: 7})
        del journal
        gc.collect()
        assert Journal(tmp_path).replay([5, 6], 1) == [5, 7]

    def test_with_closes_and_recording_may_go_on(self, journal):
        with journal:
            record(journal, [5, 6], {1: 7})
        assert in_child(write_one, journal.path, [5, 7]) == "written"
        record(journal, [5, 8], {1: 9})
        journal.flush()
        assert again(journal).stats()[1]["documents"] == 3

    def test_after_closing_others_may_have_gone_on(self, journal):
        record(journal, [5, 6], {1: 7})
        journal.close()

        def child():
            record(again(journal), [5, 6], {1: 8}, generation=2)
            again(journal)  # the first is gone, and has written

        in_child(child)
        with pytest.raises(ValueError, match="already holds generation 2"):
            record(journal, [5, 7], {1: 7})

    def test_what_cannot_be_written_is_said_and_stays_in_memory(self, journal, monkeypatch):
        def fail(_):
            raise OSError(28, "No space left on device")

        record(journal, [5, 6], {1: 7})
        with monkeypatch.context() as patch:
            patch.setattr(segments.os, "fsync", fail)
            with pytest.raises(OSError, match=r"journal .* can't be written \(No space.*make room"):
                journal.flush()
        assert journal.replay([5, 6], 1) == [5, 7]
        journal.flush()
        assert again(journal).replay([5, 6], 1) == [5, 7]

    def test_a_folder_that_cannot_be_made(self, caplog):
        journal = Journal("/proc/no/journal")
        record(journal, [5, 6], {1: 7})
        with pytest.raises(OSError, match=r"the journal /proc/no/journal can't be written"):
            journal.flush()
        del journal
        gc.collect()
        assert "the last edits of 1 documents are not in the journal" in caplog.text

    def test_two_processes_do_not_write_one_file(self, journal):
        record(journal, [5, 6], {1: 7})
        journal.flush()
        refused = in_child(write_one, journal.path, [5, 7])
        assert refused.startswith("BlockingIOError")
        journal.close()
        assert in_child(write_one, journal.path, [5, 7]) == "written"
        assert journal.replay([5, 7], 1) == [5, 9]

    def test_a_forked_child_does_not_write_what_its_parent_will(self, journal):
        record(journal, [5, 6], {1: 7})
        in_child(journal.flush)
        in_child(journal.close)
        assert not journal.path.exists()
        journal.flush()
        in_child(journal.close)
        record(journal, [5, 7], {1: 8})
        journal.flush()
        assert again(journal).stats()[1]["documents"] == 2

    def test_a_forked_child_writes_its_own(self, journal, monkeypatch):
        """Ranks may be forked from a process that has made the Journal already."""
        record(journal, [5, 6], {1: 7})

        def child():
            os.environ["RANK"] = "1"
            record(journal, [5, 7], {1: 8})
            journal.flush()

        in_child(child)
        journal.flush()
        assert journal.replay([5, 7], 1) == [5, 8]
        assert [f.info["generation"] for _, f in read_valid(journal.path)] == [1, 1]
        assert again(journal).stats()[1]["documents"] == 2

    def test_a_killed_process_loses_what_it_had_not_written(self, journal):
        def child():
            record(journal, [5, 6], {1: 7})
            journal.flush()
            record(journal, [5, 7], {1: 8})
            os.kill(os.getpid(), signal.SIGKILL)

        assert in_child(child) == "killed"
        assert journal.knows([5, 6], 1)
        assert not journal.knows([5, 7], 1)
        record(journal, [5, 8], {1: 9})  # its lock is gone with it
        journal.flush()
        assert again(journal).stats()[1]["documents"] == 2

    def test_a_pickled_journal_is_one_of_the_same_folder(self, journal):
        copies = [pickle.loads(pickle.dumps(journal)), copy.copy(journal), copy.deepcopy(journal)]
        record(journal, [5, 6], {1: 7})
        for one in copies:
            assert one.path == journal.path
            assert one.replay([5, 6], 1) == [5, 7]
            assert "generations=[1]" in repr(one)

    def test_other_files_in_the_folder_do_no_harm(self, journal):
        record(journal, [5, 6], {1: 7})
        journal.flush()
        (journal.path / "notes.txt").write_text("mine")
        assert again(journal).replay([5, 6], 1) == [5, 7]
        assert len(list_files(journal.path)) == 1


def write_one(path, source):
    # The folder's journal came along from the parent.
    journal = as_another_process(path)
    record(journal, source, {1: 9})
    journal.flush()
    return "written"


@pytest.mark.parametrize("ids", [[1.5], "ab", [2**70], [[1, 2]], [None], None])
def test_what_are_no_token_ids(tmp_path, ids):
    """Numbers with a fraction were cut off."""
    journal = Journal(tmp_path)
    for ask in (journal.replay, journal.knows):
        with pytest.raises(ValueError, match=r"ids must be the token ids of one document"):
            ask(ids, 0)
    assert journal.replay([], 0) == []
