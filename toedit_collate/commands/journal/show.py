"""`toedit journal show`: what each generation did, and its first changes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...stores.journal import Journal
from ...stores.journal.files import list_files, read_valid
from .made import made_with
from .opening import check_generation, open_journal, open_tokenizer

Change = tuple[int, int, int, int, int]
_COLUMNS = (
    "generation", "documents", "tokens", "scored", "selected", "changed", "dropped", "files",
    "bytes", "bytes/change",
)  # fmt: skip


def show(path: Path, generation: int | None, tokenizer: str | None, limit: int) -> None:
    """Print the table and the changes.

    Raises:
        UnusableError: an argument can't be used.
    """
    journal = open_journal(path)
    if generation is not None:
        check_generation(journal, generation, lowest=1)
    chosen = journal.generations if generation is None else [generation]
    as_text = open_tokenizer(tokenizer)
    _print_table(journal, chosen)
    _print_origins(path, chosen)
    if limit:
        _print_changes(path, chosen, as_text, limit)


def _print_table(journal: Journal, chosen: list[int]) -> None:
    stats = journal.stats()
    rows = [list(_COLUMNS)]
    for generation in chosen:
        of = stats[generation]
        files = [
            file.path.stat().st_size
            for file in list_files(journal.path)
            if file.generation == generation
        ]
        changes = of["changed"] + of["dropped"]
        rows.append(
            [
                str(generation),
                *(f"{of[name]:,}" for name in ("documents", "tokens", "scored")),
                f"{of['selected']:,} ({_percent(of['selected_share'])})",
                f"{of['changed']:,} ({_percent(of['changed_share'])})",
                f"{of['dropped']:,}",
                f"{len(files)}",
                f"{sum(files):,}",
                f"{sum(files) / changes:.1f}" if changes else "-",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def _percent(share: float) -> str:
    return "-" if share != share else f"{100 * share:.3g}%"


def _print_origins(path: Path, chosen: list[int]) -> None:
    print()
    origins: dict[int, dict[str, None]] = {generation: {} for generation in chosen}
    for _, frame in read_valid(path):
        if len(frame.keys) and frame.info["generation"] in origins:
            origins[frame.info["generation"]][made_with(frame.info)] = None
    for generation, found in origins.items():
        print(f"generation {generation}: {' and '.join(found)}")


def _print_changes(path: Path, chosen: list[int], tokenizer: Any, limit: int) -> None:
    shown = list(islice(_changes(path, chosen), limit + 1))
    if not shown:
        print("\nNo token was changed.")
        return
    print(f"\n{'generation':>10}  {'document':16}  {'position':>8}  change")
    for generation, key, position, old, new in shown[:limit]:
        after = "removed" if new < 0 else _token(new, tokenizer)
        change = f"{_token(old, tokenizer)} -> {after}"
        print(f"{generation:>10}  {key:016x}  {position:>8}  {change}")
    if len(shown) > limit:
        print(f"{'...':>10}  --limit shows more")


def _changes(path: Path, chosen: list[int]) -> Iterator[Change]:
    """Generation, document, position, old and new token, as they stand in the files."""
    for _, frame in read_valid(path):
        generation = frame.info["generation"]
        if generation in chosen:
            keys = np.repeat(frame.keys, frame.counts).tolist()
            for key, change in zip(keys, frame.changes.tolist(), strict=True):
                yield (generation, key, *change)


def _token(token: int, tokenizer: Any) -> str:
    if tokenizer is None:
        return str(token)
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return f"{text!r} ({token})"
