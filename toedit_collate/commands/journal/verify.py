"""`toedit journal verify`: is what the files hold what was written, and can it be replayed?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...data import Preparation
from ...stores.journal.files import SegmentFile, list_files, scan_files, without_void
from ...stores.journal.frames import Frame
from ...stores.segments import DamagedFileError
from .made import made_with, same_origin
from .opening import check_journal, open_journal, open_tokenizer
from .replayed import replay_data


@dataclass
class Findings:
    """What is wrong with a journal, and its frames as far as they can be read."""

    problems: list[str] = field(default_factory=list)
    frames: list[tuple[Path, Frame]] = field(default_factory=list)


def verify(
    path: Path,
    data: list[str],
    tokenizer: str | None,
    split: str | None,
    prep: Preparation,
) -> bool:
    """Print a line for each file, what is wrong, and a verdict.

    Returns:
        Whether the journal is sound.

    Raises:
        UnusableError: an argument can't be used, or no document of the data is known.
    """
    check_journal(path)
    as_tokens = open_tokenizer(tokenizer)
    findings = Findings()
    try:
        files = list_files(path)
    except DamagedFileError as error:  # one is missing; the others are looked at
        findings.problems.append(str(error))
        files = scan_files(path)[0]
    for file in files:
        print(_check_file(file, findings))
    valid = without_void([frame for _, frame in findings.frames])
    parts = [(path.name, frame) for (path, _), frame in zip(findings.frames, valid, strict=True)
             if len(frame.keys)]  # fmt: skip
    num_void = sum(len(f.keys) for _, f in findings.frames) - sum(len(f.keys) for f in valid)
    if num_void:
        are = "edit is" if num_void == 1 else "edits are"
        print(f"{num_void:,} {are} void: the run was killed, and resumed from before (fine)")
    for generation in sorted({frame.info["generation"] for _, frame in parts}):
        of = [part for part in parts if part[1].info["generation"] == generation]
        print(_check_generation(generation, of, findings))
    if data and findings.problems:
        print("--data was not replayed: mend the journal first")
    elif data:
        journal = open_journal(path)
        for one in data:
            findings.problems += replay_data(journal, one, as_tokens, split, prep)
    return _verdict(path, findings.problems)


def _verdict(path: Path, problems: list[str]) -> bool:
    for problem in problems:
        print(f"problem: {problem}")
    number = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    print(f"{path}: {f'not sound, {number}' if problems else 'sound'}")
    return not problems


def _check_file(file: SegmentFile, findings: Findings) -> str:
    """Read a file; the line for it."""
    name = file.path.name
    try:
        frame = file.read()
    except DamagedFileError as error:
        findings.problems.append(str(error))
        return f"{name}: DAMAGED"
    except OSError as error:
        findings.problems.append(f"{name} can't be read: {error}")
        return f"{name}: can't be read"
    wrong = _wrong_changes(frame)
    if wrong:
        findings.problems.append(f"{name}: {wrong}")
    else:
        findings.frames.append((file.path, frame))
    note = ", not as it should be" if wrong else ""
    if file.generation == 0:
        return f"{name}: a resumed run noted{note}"
    documents, changes = len(frame.keys), len(frame.changes)
    return f"{name}: {_plural(documents, 'document')}, {_plural(changes, 'change')}{note}"


def _wrong_changes(frame: Frame) -> str:
    """What a frame with the right checksum has that no writer writes; or nothing."""
    position, old, new = frame.changes.T
    document = np.repeat(np.arange(len(frame.keys)), frame.counts)
    if ((np.diff(position) <= 0) & (np.diff(document) == 0)).any():
        return "changes of a document are out of order"
    if (position < 1).any():
        return "the first token of a document is changed, which never is edited"
    if (new < -1).any() or (new == old).any():
        return "a change is none"
    return ""


def _check_generation(generation: int, parts: list[tuple[str, Frame]], findings: Findings) -> str:
    """See that there is one prior and policy, and one edit of each document; the line for it."""
    origins = {same_origin(f.info): f"{made_with(f.info)} ({name})" for name, f in parts}
    if len(origins) > 1:
        findings.problems.append(
            f"generation {generation} was made in {len(origins)} ways: "
            f"{' and '.join(origins.values())}; keep the files of one of the runs"
        )
    joined = Frame.joined([frame for _, frame in parts])
    keys, counts, changes = joined.keys, joined.counts, joined.changes
    begin = np.cumsum(counts) - counts
    order = np.argsort(keys, kind="stable")
    again = np.flatnonzero(keys[order][1:] == keys[order][:-1]) + 1
    different: dict[int, None] = {}
    for place in again:
        now, before = order[place], order[place - 1]
        a, b = (changes[begin[i] : begin[i] + counts[i]] for i in (now, before))
        if not np.array_equal(a, b):
            different[int(keys[now])] = None
    if different:
        some = ", ".join(f"{key:016x}" for key in list(different)[:3])
        findings.problems.append(
            f"generation {generation} edited {_plural(len(different), 'document')} twice, and "
            f"differently ({some}{', ...' if len(different) > 3 else ''}): of each, the edit of "
            "the earlier step is replayed, while training may have seen the other, too; did two "
            "runs write to the journal?"
        )
    num_documents = len(np.unique(keys))
    conflicting = np.fromiter(different, np.uint64, len(different))
    alike = int((~np.isin(keys[order][again], conflicting)).sum())
    twice = f", {alike:,} of them recorded again with the same edit (fine)" if alike else ""
    return f"generation {generation}: {_plural(num_documents, 'document')}{twice}"


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
