"""How far a long command is: on a terminal, and in a log."""

from __future__ import annotations

import io
import re
import sys

import pytest

from toedit_collate.tools import progress
from toedit_collate.tools.progress import progress_bar


@pytest.fixture
def stderr(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    return stream


def count_to_3(total, **options):
    with progress_bar(lambda: total, "rows", **options) as bar:
        for _ in range(3):
            bar.set_postfix_str("9 tokens/s", refresh=False)
            bar.update()


@pytest.mark.parametrize(
    ("total", "first"),
    [(3, r"part 1/2: 1 of 3 rows in 00:00, .* to go, 9 tokens/s$"), (None, r"1 rows in 00:00, 9")],
)
def test_in_a_log_it_is_lines_of_text(stderr, total, first):
    count_to_3(total, desc="part 1/2" if total else None)
    lines = stderr.getvalue().splitlines()
    assert len(lines) == 3
    assert "\r" not in stderr.getvalue()
    assert re.match(first, lines[0])


def test_a_short_command_writes_nothing_into_a_log(stderr, monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 60.0)
    count_to_3(3)
    assert stderr.getvalue() == ""


def test_on_a_terminal_it_is_a_bar(stderr):
    stderr.isatty = lambda: True
    count_to_3(3)
    assert "/3 [" in stderr.getvalue()


def test_where_another_process_shows_it(stderr):
    stderr.isatty = lambda: True
    count_to_3(3, shown=False)
    assert stderr.getvalue() == ""
