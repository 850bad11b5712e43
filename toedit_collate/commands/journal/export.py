"""`toedit journal export`: a dataset as a generation trained on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...data import Data, Preparation, Row, open_data
from ...data.documents import check_known
from ...data.files import whole
from ...data.progress import progress_bar
from ...data.revise import Counts, Reviser, replay
from ...data.writing import check_output, write_rows
from .opening import check_generation, open_journal, open_tokenizer


def export(
    path: Path,
    data_path: str,
    output: Path,
    *,
    generation: int | None,
    tokenizer: str | None,
    with_text: bool,
    split: str | None,
    prep: Preparation,
) -> None:
    """Write the data, and print what it is.

    Raises:
        UnusableError: an argument can't be used, or the data is not what was trained on.
    """
    check_output(output)
    journal = open_journal(path)
    if generation is None:
        generation = journal.generations[-1]
    check_generation(journal, generation, lowest=0)
    data = open_data(data_path, split)
    reviser = Reviser(
        data,
        lambda batch, documents: replay(data, batch, documents, journal, generation),
        prep.set_up(open_tokenizer(tokenizer)),
        prep,
        with_text=with_text,
    )
    with (
        whole(output, "--output", replace=False) as target,
        progress_bar(data.count_rows, "rows") as bar,
    ):
        rows = _revised(data, reviser, bar)
        write_rows(data, reviser, rows, target, output.suffix, bar)
        if not reviser.counts.rows:
            raise data.error("it holds no rows; check the path")
        if generation:
            check_known(reviser.counts.known, str(data_path), generation)
    print(_summary(output, generation, reviser.counts))
    if reviser.stale:
        print(
            f"The column {', '.join(sorted(reviser.stale))} was left out: it holds the text of the "
            "source. With --tokenizer, and without --no-text, the edited text is written as text."
        )


def _revised(data: Data, reviser: Reviser, bar: Any) -> Iterator[Row]:
    for batch in data.batches():
        yield from reviser.revise(batch)
        bar.update(len(batch.rows))


def _summary(output: Path, generation: int, counts: Counts) -> str:
    lines = [
        f"{output}: {counts.rows:,} rows as generation {generation} trained on them",
        f"{counts.tokens:,} tokens in the source: {counts.changed:,} changed, "
        f"{counts.removed:,} removed",
    ]
    if not generation:
        lines[0] = f"{output}: {counts.rows:,} rows, the source"
        return lines[0]
    known = f"{counts.documents:,} documents, of which generation {generation} knows"
    if counts.known == counts.documents:
        lines.insert(1, f"{known} all")
    else:
        before = "in the source" if generation == 1 else f"after generation {generation - 1}"
        lines.insert(
            1,
            f"{known} {counts.known:,}; the others, which it did not see, or in which nothing "
            f"could be edited, are as {before}",
        )
    return "\n".join(lines)
