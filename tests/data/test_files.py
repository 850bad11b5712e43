"""What is written is whole or is not there; what a user can fix is reported in one line."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from toedit_collate.config.console import run_guarded
from toedit_collate.data.files import whole, write_json, write_text
from toedit_collate.errors import UnusableError


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_begun_goes_away(tmp_path, error):
    (tmp_path / "a").write_text("before")

    def stops_halfway():
        with whole(tmp_path / "a") as place:
            place.write_text("half")
            raise error

    with pytest.raises(error):
        stops_halfway()
    assert (tmp_path / "a").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_must_stay_stays(tmp_path):
    def is_second():
        with whole(tmp_path / "a", "--output", replace=False) as place:
            place.write_text("mine")
            (tmp_path / "a").write_text("another's")

    with pytest.raises(UnusableError, match=r"--output .*a: exists already"):
        is_second()
    assert (tmp_path / "a").read_text() == "another's"


def test_no_room_is_said_in_a_line(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UnusableError, match=r"--json .*a: can't be written \(No space left"):
        write_text(tmp_path / "a", "x", "--json")
    assert not list(tmp_path.iterdir())


def test_numbers_that_json_lacks_are_null(tmp_path):
    write_json(tmp_path / "a", {"x": [float("nan"), float("-inf"), 1.5], "path": tmp_path})
    found = json.loads((tmp_path / "a").read_text(), parse_constant=pytest.fail)
    assert found == {"x": [None, None, 1.5], "path": str(tmp_path)}


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UnusableError("--x 1: no"), 2, "toedit x: error: --x 1: no\n"),
        (OSError(28, "No space left on device", "f"), 2, "toedit x: error: [Errno 28] No space"),
    ],
)
def test_a_line_and_a_status(capsys, error, status, message):
    def fails():
        raise error

    assert run_guarded("toedit x", fails) == status
    printed = capsys.readouterr().err
    assert printed.startswith(message)
    assert "Traceback" not in printed


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_guarded("toedit x", lambda: sys.exit(1 / 0))


def test_ctrl_c_is_a_line_and_no_traceback():
    code = (
        "import os, signal\n"
        "from toedit_collate.config.console import run_guarded\n"
        # What a shell starts in the background ignores Ctrl-C from the start.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "run_guarded('x', lambda: os.kill(os.getpid(), signal.SIGINT))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == "-c: interrupted\n"
