"""How far a long command is: on a terminal, and in a log."""

from __future__ import annotations

import io
import re
import sys

import pytest

from toedit_collate.data import progress
from toedit_collate.data.progress import progress_bar


@pytest.fixture(autouse=True)
def no_wait(monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)


def count_to_3(total, **options):
    with progress_bar(lambda: total, "rows", **options) as bar:
        for _ in range(3):
            bar.set_postfix_str("9 tokens/s", refresh=False)
            bar.update()


def on_a_terminal(monkeypatch, **options):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    count_to_3(3, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("total", "desc", "first"),
    [
        (3, "part 1/2", r"part 1/2: 1 of 3 rows in 00:00, .* to go, 9 tokens/s$"),
        (None, None, r"1 rows in 00:00, 9 tokens/s$"),
    ],
)
def test_in_a_log_it_is_lines_of_text(capsys, total, desc, first):
    count_to_3(total, desc=desc)
    written = capsys.readouterr().err
    assert len(written.splitlines()) == 3
    assert "\r" not in written
    assert re.match(first, written.splitlines()[0])


def test_a_short_command_writes_nothing_into_a_log(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 60.0)
    count_to_3(3)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_it_is_a_bar(monkeypatch):
    assert "/3 [" in on_a_terminal(monkeypatch)


def test_where_another_process_shows_it(monkeypatch):
    assert on_a_terminal(monkeypatch, shown=False) == ""
