"""Processes that end, are killed, or print to a pipe which nobody reads."""

import re
import signal
import textwrap

import pytest
from conftest import make_llama, make_tokenizer
from forks import Server
from journals import record
from test_cache import opened
from trainees import dataset, documents

from toedit_collate import Journal
from toedit_collate.commands.main import main
from toedit_collate.stores.writing import WriterLock

JOURNAL = """
    import sys
    from journals import record
    from toedit_collate import Journal
    journal = Journal(sys.argv[1])
    record(journal, [5, 6], {1: 7})
"""
CACHE = """
    import sys
    import test_cache
    cache = test_cache.opened(sys.argv[1])
    cache.add(test_cache.some(1, 2))
"""
FULL_DISK = """
    from toedit_collate.stores import segments
    def fail(_): raise OSError(28, "No space left on device")
    segments.os.fsync = fail
"""


@pytest.fixture(scope="module")
def run():
    """Runs programs; see `Server.run`."""
    names = ("apply", "bench", "demo", "inspect", "journal", "plan", "recipes", "sft")
    commands = [f"toedit_collate.commands.{name}" for name in names]
    server = Server("journals", "test_cache", *commands)

    def run(*parts, arguments, **settings):
        return server.run("".join(map(textwrap.dedent, parts)), *arguments, **settings)

    yield run
    server.close()


def is_quiet(error):
    return "Traceback" not in error and "Exception ignored" not in error


class TestStoresAtTheEndOfAProcess:
    """They are written; what can't be is reported in one line, without a traceback."""

    def test_a_journal_is_written(self, run, tmp_path):
        assert run(JOURNAL, arguments=[tmp_path]) == (0, "")
        assert Journal(tmp_path).replay([5, 6], 1) == [5, 7]

    def test_a_cache_is_written(self, run, tmp_path):
        assert run(CACHE, arguments=[tmp_path]) == (0, "")
        assert opened(tmp_path).num_documents == 2

    @pytest.mark.parametrize(
        ("store", "message"),
        [(JOURNAL, "the last edits of 1 documents are not in the journal, .*written: "
                   ".*No space left on device"),
         (CACHE, "can't be written .*No space left on device.*stays in memory")],
        ids=["journal", "cache"],
    )  # fmt: skip
    def test_on_a_full_disk(self, run, tmp_path, store, message):
        status, error = run(FULL_DISK, store, arguments=[tmp_path / "store"])
        assert status == 0
        assert re.search(message, error)
        assert is_quiet(error)
        assert not [p for p in (tmp_path / "store").rglob("*") if "safetensors" in p.name]

    def test_a_second_writer(self, run, tmp_path):
        lock = WriterLock(tmp_path / "rank-00000.lock", "it")
        status, error = run(JOURNAL, arguments=[tmp_path])
        lock.release()
        assert status == 0
        assert "being written by another process; give every run its own journal" in error
        assert is_quiet(error)


class TestCommands:
    CODE = """
        import sys
        from toedit_collate.commands.main import main
        sys.exit(main(sys.argv[1:]))
    """
    DIES = """
        import os, signal
        from toedit_collate.commands import apply
        apply.SECONDS_BETWEEN_WRITES = 0.0
        write = apply.Scorer.write
        def then_die(self):
            write(self)
            os.kill(os.getpid(), signal.SIGKILL)
        apply.Scorer.write = then_die
    """

    def test_a_closed_pipe_is_no_error(self, run, tmp_path):
        with Journal(tmp_path) as journal:
            record(journal, [5, 6], {1: 7})
        assert run(self.CODE, arguments=["journal", "show", tmp_path], is_closed=True) == (0, "")

    def test_apply_is_killed_and_started_again(self, run, tmp_path, capsys, no_bars):
        """What was written before the kill is not scored again; the rest is."""
        make_llama().save_pretrained(tmp_path / "prior")
        make_tokenizer().save_pretrained(tmp_path / "prior")
        data = tmp_path / "data.jsonl"
        dataset(documents(80, seed=3)).to_json(data)
        options = [
            "apply", "--prior", tmp_path / "prior", "--data", data, "--cache", tmp_path / "cache",
            "--batch-tokens", 16, "--policy", "threshold=0.05 exclude_original=true",
        ]  # fmt: skip
        status, _ = run(self.DIES, self.CODE, arguments=options)
        assert status == -signal.SIGKILL
        assert main(list(map(str, options))) == 0
        printed = capsys.readouterr().out
        new, known = map(int, re.search(r"(\d+) new, (\d+) known already", printed).groups())
        assert new > 0
        assert known > 0
        assert new + known == 80
