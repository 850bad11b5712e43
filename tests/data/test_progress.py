"""Progress bars: on a terminal, and in a log."""

from __future__ import annotations

import io
import sys

import pytest

from toedit_collate.data import progress
from toedit_collate.data.progress import progress_bar


def written(monkeypatch, is_terminal, **options):
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(lambda: 3, "rows", **options) as bar:
        for _ in range(3):
            bar.update()
    return stream.getvalue()


def test_on_a_terminal(monkeypatch):
    assert "part 1/2:" in (text := written(monkeypatch, True, desc="part 1/2"))
    assert "/3 [" in text


def test_a_short_command_writes_nothing_into_a_log(monkeypatch):
    assert written(monkeypatch, False).strip() == ""


def test_a_long_command_writes_into_a_log(monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 1e-9)
    assert "/3 [" in written(monkeypatch, False)


def test_hidden(monkeypatch):
    with progress_bar(lambda: pytest.fail("the total is not needed"), "rows", shown=False):
        pass
    assert written(monkeypatch, True, shown=False) == ""
