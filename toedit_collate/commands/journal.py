"""`toedit journal`: look into a journal, check it, and write the data that a generation saw."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..config import options
from ..config.priors import open_tokenizer
from ..data import find_documents, open_data, tokenize
from ..data.documents import check_known
from ..data.files import whole
from ..data.progress import progress_bar
from ..data.revise import Reviser, replay
from ..data.writing import check_output, write_rows
from ..errors import UnusableError
from ..inspection.terminal import in_columns
from ..policy import EditPolicy
from ..stores.journal import Journal
from ..stores.journal.files import SegmentFile, list_files, read_valid, scan_files, without_void
from ..stores.journal.frames import Frame
from ..stores.segments import DamagedFileError

_DATA = (
    f"the source data: {options.DATA_HELP}. Best is what was trained on, saved by "
    "trainer.train_dataset.save_to_disk(FOLDER): it is tokenized (and packed) as in training. Text "
    "and chats are tokenized by --tokenizer"
)
_COLUMNS = (
    "generation", "documents", "tokens", "scored", "selected", "changed", "dropped", "files",
    "bytes", "bytes/change",
)  # fmt: skip


def add_journal(commands: Any) -> None:
    """Add `journal` to the subcommands of an argparse parser."""
    parser = commands.add_parser(
        "journal",
        help="show what a journal holds, check it, or export the data of a generation",
        description="A journal is the folder in which Journal(path) stores what was changed in "
        "each generation of a run.",
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")

    show = actions.add_parser(
        "show",
        help="what each generation did, and its first changes",
        description="Print a row for each generation, what made it, and the first changes. The "
        "journal may be in use.",
    )
    _add_common(show, "show", _show, "to show changed tokens as text")
    _add_generation(show, "only this one; default: all")
    show.add_argument(
        "--limit",
        type=options.whole,
        default=20,
        metavar="N",
        help="how many changes to show; default: %(default)s",
    )

    verify = actions.add_parser(
        "verify",
        help="check every file of a journal",
        description="Check all checksums, and that each document has one edit in each generation, "
        "by one prior and one policy. With --data, replay every document, too. The exit status is "
        "0 if the journal is sound, 1 if it is not.",
    )
    _add_common(verify, "verify", _verify, "for data of text or chats")
    verify.add_argument("--data", nargs="+", default=[], metavar="FILE", help=_DATA)
    _add_reading(verify)

    export = actions.add_parser(
        "export",
        help="write a dataset as a generation trained on it",
        description="Replay the journal on the source data, and write the result, row by row in "
        "the order of the data. Labels, masks and seq_lengths follow the tokens; other columns are "
        "copied.",
    )
    _add_common(
        export, "export", _export, "adds the column text, decoded from the tokens; and for data of "
        "text or chats",
    )  # fmt: skip
    export.add_argument("--data", required=True, metavar="FILE", help=_DATA)
    export.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="a new .jsonl or .parquet file; or, with any other name, a new folder for "
        "datasets.load_from_disk",
    )
    _add_generation(export, "default: the last; 0 is the source")
    export.add_argument("--no-text", action="store_true", help="write no column text")
    _add_reading(export)


def _add_common(parser: Any, name: str, run: Any, tokenizer: str) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="folder of the journal")
    parser.add_argument("--tokenizer", metavar="PATH_OR_HUB_ID", help=tokenizer)
    parser.set_defaults(run=run, command=f"journal {name}")


def _add_generation(parser: Any, meaning: str) -> None:
    parser.add_argument(
        "--generation", type=options.whole, metavar="N", help=f"its number; {meaning}"
    )


def _add_reading(parser: Any) -> None:
    options.add_reading(parser, max_length="whole documents")
    parser.add_argument("--split", metavar="NAME", help="of a folder that holds several")


def check_journal(path: Path, option: str = "PATH") -> None:
    """Check that there is a journal in a folder, which `option` names.

    Raises:
        UnusableError: there is none.
    """
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise UnusableError(
            f"{option} {path} {what}; name the folder that was passed to Journal(path)"
        )
    if not scan_files(path)[0]:
        raise UnusableError(
            f"{option} {path} is a folder without journal files (generation-*.safetensors); name "
            "the folder that was passed to Journal(path), and check that the run had a journal"
        )


def open_journal(path: Path, option: str = "PATH") -> Journal:
    """A journal with at least one generation, which `option` names.

    Raises:
        UnusableError: there is none, or it is damaged.
    """
    check_journal(path, option)
    try:
        journal = Journal(path)
        if not journal.generations:
            raise UnusableError(
                f"{option} {path} holds no edit yet; wait until the run has written some (it does "
                "so at each checkpoint, and about once a minute)"
            )
    except DamagedFileError as error:
        raise UnusableError(f"{error}. `toedit journal verify {path}` checks all files") from None
    except OSError as error:
        raise UnusableError(f"{option} {path}: can't be read ({error})") from None
    return journal


def named_tokenizer(name: str | None) -> Any:
    """The tokenizer that `--tokenizer` names, or None."""
    return None if name is None else open_tokenizer(name, "--tokenizer")


def made_with(info: dict[str, Any]) -> str:
    """What made a frame: the prior's fingerprint, shortened, and the policy's own settings."""
    fingerprint, _, precision = str(info["prior"]).partition(" ")
    default = EditPolicy().record()
    policy = ", ".join(
        f"{name}={value!r}"
        for name, value in info["policy"].items()
        if name not in default or default[name] != value
    )
    prior = f"{fingerprint[:12]} {precision}".strip()
    return f"prior {prior}, EditPolicy({policy})"


def _check_generation(journal: Journal, generation: int, *, lowest: int) -> None:
    held = journal.generations
    if generation not in held and not generation == lowest == 0:
        source = "0 (the source) or " if lowest == 0 else ""
        raise UnusableError(
            f"--generation {generation}: not in the journal; write {source}one of {held}"
        )


# show


def _show(args: argparse.Namespace) -> None:
    journal = open_journal(args.path)
    if args.generation is not None:
        _check_generation(journal, args.generation, lowest=1)
    chosen = journal.generations if args.generation is None else [args.generation]
    tokenizer = named_tokenizer(args.tokenizer)
    frames = [f for _, f in read_valid(args.path) if len(f.keys) and f.info["generation"] in chosen]
    _print_table(journal, chosen)
    print()
    for generation in chosen:
        of = [frame.info for frame in frames if frame.info["generation"] == generation]
        print(f"generation {generation}: {' and '.join(dict.fromkeys(map(made_with, of)))}")
    if args.limit:
        _print_changes(frames, tokenizer, args.limit)


def _print_table(journal: Journal, chosen: list[int]) -> None:
    stats = journal.stats()
    sizes: dict[int, list[int]] = {generation: [] for generation in chosen}
    for file in list_files(journal.path):
        if file.generation in sizes:
            sizes[file.generation].append(file.path.stat().st_size)
    rows = [list(_COLUMNS)]
    for generation, of_files in sizes.items():
        of = stats[generation]
        changes = of["changed"] + of["dropped"]
        rows.append(
            [
                str(generation),
                *(f"{of[name]:,}" for name in ("documents", "tokens", "scored")),
                f"{of['selected']:,} ({_percent(of['selected_share'])})",
                f"{of['changed']:,} ({_percent(of['changed_share'])})",
                f"{of['dropped']:,}",
                f"{len(of_files)}",
                f"{sum(of_files):,}",
                f"{sum(of_files) / changes:.1f}" if changes else "-",
            ]
        )
    print(in_columns(rows))


def _percent(share: float) -> str:
    return "-" if share != share else f"{100 * share:.3g}%"


def _print_changes(frames: list[Frame], tokenizer: Any, limit: int) -> None:
    shown = list(islice(_changes(frames), limit + 1))
    if not shown:
        print("\nNo token was changed.")
        return
    print(f"\n{'generation':>10}  {'document':16}  {'position':>8}  change")
    for generation, key, (position, old, new) in shown[:limit]:
        after = "removed" if new < 0 else _token(new, tokenizer)
        change = f"{_token(old, tokenizer)} -> {after}"
        print(f"{generation:>10}  {key:016x}  {position:>8}  {change}")
    if len(shown) > limit:
        print(f"{'...':>10}  --limit shows more")


def _changes(frames: list[Frame]) -> Iterator[tuple[int, int, list[int]]]:
    """Generation, document and change, in the order of the files."""
    for frame in frames:
        for key, change in zip(np.repeat(frame.keys, frame.counts), frame.changes, strict=True):
            yield frame.info["generation"], int(key), change.tolist()


def _token(token: int, tokenizer: Any) -> str:
    if tokenizer is None:
        return str(token)
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return f"{text!r} ({token})"


# export


def _export(args: argparse.Namespace) -> None:
    check_output(args.output)
    journal = open_journal(args.path)
    generation = journal.generations[-1] if args.generation is None else args.generation
    _check_generation(journal, generation, lowest=0)
    data, prep = open_data(args.data, args.split), options.preparation_of(args)
    reviser = Reviser(
        data,
        lambda batch, documents: replay(data, batch, documents, journal, generation),
        prep.set_up(named_tokenizer(args.tokenizer)),
        prep,
        with_text=not args.no_text,
    )
    with (
        whole(args.output, "--output", replace=False) as target,
        progress_bar(data.count_rows, "rows") as bar,
    ):

        def rows() -> Iterator[Any]:
            for batch in data.batches():
                yield from reviser.revise(batch)
                bar.update(len(batch.rows))

        write_rows(data, reviser, rows(), target, args.output.suffix, bar)
        if not reviser.counts["rows"]:
            raise data.error("it holds no rows; check the path")
        if generation:
            check_known(reviser.counts["known"], args.data, generation)
    counts = reviser.counts
    if generation:
        others = (
            "" if counts["known"] == counts["documents"] else "; the others are as they were before"
        )
        print(
            f"{args.output}: {counts['rows']:,} rows as generation {generation} trained on them\n"
            f"{counts['documents']:,} documents, of which generation {generation} knows "
            f"{counts['known']:,}{others}\n"
            f"{counts['tokens']:,} tokens in the source: {counts['changed']:,} changed, "
            f"{counts['removed']:,} removed"
        )
    else:
        print(f"{args.output}: {counts['rows']:,} rows, the source")
    if reviser.stale:
        print(
            f"The column {', '.join(sorted(reviser.stale))} was left out: it holds the text of the "
            "source. With --tokenizer, and without --no-text, the edited text is written as text."
        )


# verify


def _verify(args: argparse.Namespace) -> int:
    """Print a line for each file, all problems, and a verdict. Returns 0 for a sound journal."""
    check_journal(args.path)
    tokenizer = named_tokenizer(args.tokenizer)
    problems: list[str] = []
    try:
        files = list_files(args.path)
    except DamagedFileError as error:  # one is missing; check the others
        problems.append(str(error))
        files = scan_files(args.path)[0]
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
        _check_edits(generation, of, problems)
    if args.data and problems:
        print("--data was not replayed: repair the journal first")
    elif args.data:
        journal = open_journal(args.path)
        for data in args.data:
            _replay_data(journal, args, data, tokenizer, problems)
    for problem in problems:
        print(f"problem: {problem}")
    number = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    print(f"{args.path}: {f'not sound, {number}' if problems else 'sound'}")
    return 1 if problems else 0


def _check_file(file: SegmentFile, problems: list[str]) -> Frame | None:
    """Read a file and print a line about it; None: it has a problem."""
    name = file.path.name
    try:
        frame = file.read()
    except (DamagedFileError, OSError) as error:
        problems.append(str(error))
        print(f"{name}: DAMAGED")
        return None
    if file.generation == 0:
        print(f"{name}: notes a resumed run")
    else:
        documents, changes = len(frame.keys), len(frame.changes)
        print(f"{name}: {_plural(documents, 'document')}, {_plural(changes, 'change')}")
    return frame


def _check_edits(generation: int, frames: dict[str, Frame], problems: list[str]) -> None:
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
    journal: Journal, args: argparse.Namespace, path: str, tokenizer: Any, problems: list[str]
) -> None:
    """Replay all documents of a data file through all generations, and print a line about it."""
    data, prep = open_data(path, args.split), options.preparation_of(args)
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
