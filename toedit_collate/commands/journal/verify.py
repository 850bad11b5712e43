"""`toedit journal verify`: do the files hold what was written, and can it be replayed?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ...data import Preparation, find_documents, open_data, tokenize
from ...data.documents import check_known
from ...data.revise import replay
from ...errors import UnusableError
from ...stores.journal import Journal
from ...stores.journal.files import SegmentFile, list_files, scan_files, without_void
from ...stores.journal.frames import Frame
from ...stores.segments import DamagedFileError
from .command import check_journal, made_with, named_tokenizer, open_journal


def verify(
    path: Path, data: list[str], tokenizer: str | None, split: str | None, prep: Preparation
) -> bool:
    """Print a line for each file, all problems, and a verdict.

    Returns:
        Whether the journal is sound.

    Raises:
        UnusableError: an argument can't be used, or no document of the data is known.
    """
    check_journal(path)
    text_tokenizer = named_tokenizer(tokenizer)
    problems: list[str] = []
    try:
        files = list_files(path)
    except DamagedFileError as error:  # one is missing; check the others
        problems.append(str(error))
        files = scan_files(path)[0]
    frames = {file.path.name: _check_file(file, problems) for file in files}
    readable = {name: frame for name, frame in frames.items() if frame is not None}
    valid = dict(zip(readable, without_void(list(readable.values())), strict=True))
    num_void = sum(len(readable[name].keys) - len(valid[name].keys) for name in valid)
    if num_void:
        are = "edit is" if num_void == 1 else "edits are"
        print(f"{num_void:,} {are} void: the run was killed, and resumed from before (fine)")
    generations: dict[int, dict[str, Frame]] = {}
    for name, frame in valid.items():
        if len(frame.keys):
            generations.setdefault(frame.info["generation"], {})[name] = frame
    for generation, of in sorted(generations.items()):
        _check_generation(generation, of, problems)
    if data and problems:
        print("--data was not replayed: repair the journal first")
    elif data:
        journal = open_journal(path)
        for one in data:
            _replay_data(journal, one, text_tokenizer, split, prep, problems)
    for problem in problems:
        print(f"problem: {problem}")
    number = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    print(f"{path}: {f'not sound, {number}' if problems else 'sound'}")
    return not problems


def _check_file(file: SegmentFile, problems: list[str]) -> Frame | None:
    """Read a file and print a line about it; None: it has a problem."""
    name = file.path.name
    try:
        frame = file.read()
    except (DamagedFileError, OSError) as error:
        problems.append(str(error))
        print(f"{name}: DAMAGED")
        return None
    wrong = _wrong_changes(frame)
    note = ", with a problem" if wrong else ""
    if file.generation == 0:
        print(f"{name}: notes a resumed run{note}")
    else:
        documents, changes = len(frame.keys), len(frame.changes)
        print(f"{name}: {_plural(documents, 'document')}, {_plural(changes, 'change')}{note}")
    if wrong:
        problems.append(f"{name}: {wrong}")
    return None if wrong else frame


def _wrong_changes(frame: Frame) -> str:
    """What no writer writes, although the checksum is right; "": nothing."""
    position, old, new = frame.changes.T
    document = np.repeat(np.arange(len(frame.keys)), frame.counts)
    if ((np.diff(position) <= 0) & (np.diff(document) == 0)).any():
        return "changes of a document are out of order"
    if (position < 1).any():
        return "the first token of a document is changed, which is never edited"
    if (new < -1).any() or (new == old).any():
        return "a change changes nothing"
    return ""


def _check_generation(generation: int, frames: dict[str, Frame], problems: list[str]) -> None:
    """Check that there is one prior and policy, and one edit of each document."""
    origins = {
        json.dumps([f.info["prior"], f.info["policy"]], sort_keys=True): (
            f"{made_with(f.info)} ({name})"
        )
        for name, f in frames.items()
    }
    if len(origins) > 1:
        problems.append(
            f"generation {generation} was made in {len(origins)} ways: "
            f"{' and '.join(origins.values())}; keep the files of one of the runs"
        )
    frame = Frame.joined(list(frames.values()))
    ends = np.cumsum(frame.counts)
    order = np.argsort(frame.keys, kind="stable")
    again = np.flatnonzero(frame.keys[order][1:] == frame.keys[order][:-1]) + 1
    different: dict[int, None] = {}
    for now, before in zip(order[again], order[again - 1], strict=True):
        a, b = (frame.changes[ends[n] - frame.counts[n] : ends[n]] for n in (now, before))
        if not np.array_equal(a, b):
            different[int(frame.keys[now])] = None
    if different:
        some = ", ".join(f"{key:016x}" for key in list(different)[:3])
        problems.append(
            f"generation {generation} edited {_plural(len(different), 'document')} twice, and "
            f"differently ({some}{', ...' if len(different) > 3 else ''}): replay uses the edit of "
            "the earlier step, while training may have used the other one, too; did two runs "
            "write to the journal?"
        )
    alike = sum(int(key) not in different for key in frame.keys[order][again])
    twice = f", {alike:,} of them recorded again with the same edit (fine)" if alike else ""
    print(f"generation {generation}: {_plural(len(frame.keys) - len(again), 'document')}{twice}")


def _replay_data(
    journal: Journal, path: str, tokenizer: Any, split: str | None, prep: Preparation,
    problems: list[str],
) -> None:  # fmt: skip
    """Replay all documents of a data file through all generations, and print a line about it."""
    data = open_data(path, split)
    tokenizer = prep.set_up(tokenizer)
    known = dict.fromkeys(journal.generations, 0)
    num_documents = 0
    for batch in data.batches():
        tokenize(data, batch, tokenizer, prep)
        documents = find_documents(data, batch).cut(prep.window)
        num_documents += len(documents.keys)
        for generation in known:
            known[generation] += int(journal.look_up(documents.keys, generation).known.sum())
        try:
            replay(data, batch, documents, journal, max(known))
        except UnusableError as error:
            problems.append(str(error))
            return
    check_known(max(known.values()), path, min(known))
    counts = ", ".join(f"{count:,} in generation {number}" for number, count in known.items())
    print(f"{path}: {num_documents:,} documents, all replayed; the journal knows {counts}")


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
