"""What both stores share: segments, the index of keys, and who writes when."""

import json
import os
import signal
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from journals import in_child

from toedit_collate.stores import segments
from toedit_collate.stores.index import KeyIndex
from toedit_collate.stores.segments import (
    DamagedFileError,
    read_segment,
    write_segment,
)
from toedit_collate.stores.writing import WriterLock

ARRAYS = {
    "keys": np.arange(20, dtype=np.uint64) * 2**59,
    "counts": np.arange(20, dtype=np.uint32),
    "none": np.zeros(0, np.int64),
    "logits": torch.linspace(-3, 3, 33).bfloat16(),
}
FACTS = {"of": {"a": ["ü", None, 1.5]}}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.safetensors"
    write_segment(path, "test, 1", ARRAYS, FACTS)
    return path


class TestSegments:
    def test_come_back_as_they_were_written(self, path):
        facts, tensors = read_segment(path, "test, 1")
        assert facts == {"kind": "test, 1", **FACTS}
        assert tensors.keys() == ARRAYS.keys()
        for name, array in ARRAYS.items():
            assert torch.equal(tensors[name], torch.as_tensor(array))

    def test_of_another_kind(self, path):
        with pytest.raises(
            DamagedFileError, match="not a segment of kind 'test, 2', but 'test, 1'"
        ):
            read_segment(path, "test, 2")

    def test_one_that_is_not_there(self, tmp_path):
        with pytest.raises(DamagedFileError, match="not a regular file"):
            read_segment(tmp_path / "none", "test, 1")

    def test_a_failed_write_leaves_nothing(self, tmp_path, monkeypatch):
        def fail(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(segments.os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            write_segment(tmp_path / "a", "k", ARRAYS, {})
        assert not list(tmp_path.iterdir())


class TestHostileFiles:
    """All are refused by one clear error, at once, and without memory for what they claim."""

    @pytest.mark.parametrize("make", ["fifo", "folder", "loop", "nowhere", "socket"])
    def test_what_is_no_file(self, tmp_path, make):
        path = tmp_path / "a"
        {
            "fifo": lambda: os.mkfifo(path),
            "folder": path.mkdir,
            "loop": lambda: path.symlink_to(path),
            "nowhere": lambda: path.symlink_to(tmp_path / "none"),
            "socket": lambda: os.mknod(path, 0o140600),
        }[make]()
        with pytest.raises(DamagedFileError, match="not a regular file"):
            read_segment(path, "k")

    def test_a_small_file_with_a_long_header(self, tmp_path):
        path = tmp_path / "a"
        for length in (2**40, 2**63, 10**8):
            path.write_bytes(struct.pack("<Q", length) + b"{}")
            with pytest.raises(DamagedFileError, match="not a whole safetensors file"):
                read_segment(path, "k")

    def test_counts_of_two_to_the_forty(self, tmp_path):
        header = json.dumps({"a": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}})
        path = tmp_path / "a"
        path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
        with pytest.raises(DamagedFileError, match="not a whole safetensors file"):
            read_segment(path, "k")


class TestKeyIndex:
    @given(st.lists(st.lists(st.integers(0, 30)), max_size=8), st.lists(st.integers(0, 35)))
    @settings(deadline=None)
    def test_is_a_dictionary_of_first_rows(self, batches, asked):
        index, expected, row = KeyIndex(), {}, 0
        for keys in batches:
            index.add(np.array(keys, np.uint64))
            for key in keys:
                expected.setdefault(key, row)
                row += 1
        found = index.find(np.array(asked, np.uint64))
        assert found.tolist() == [expected.get(key, -1) for key in asked]
        assert index.num_rows == row

    @given(st.lists(st.lists(st.integers(0, 30)), max_size=8))
    @settings(deadline=None)
    def test_adds_each_new_key_once(self, batches):
        index, known = KeyIndex(), []
        for keys in batches:
            is_new = index.add_new(np.array(keys, np.uint64))
            expected = [key not in known and key not in keys[:n] for n, key in enumerate(keys)]
            assert is_new.tolist() == expected
            known += [key for key, new in zip(keys, expected, strict=True) if new]
        assert index.find(np.array(known, np.uint64)).tolist() == list(range(len(known)))


class TestLock:
    def test_ends_with_its_process(self, tmp_path):
        def work():
            WriterLock(tmp_path / "lock", "it")
            os.kill(os.getpid(), signal.SIGKILL)

        assert in_child(work) == "killed"
        WriterLock(tmp_path / "lock", "it").release()

    def test_a_copy_in_a_forked_process_ends_nothing(self, tmp_path):
        lock = WriterLock(tmp_path / "lock", "it")
        in_child(lock.release)
        assert in_child(WriterLock, tmp_path / "lock", "it").startswith("BlockingIOError: it is")
        lock.release()
        lock.release()
