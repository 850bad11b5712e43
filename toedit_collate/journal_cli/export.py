"""`toedit journal export`: a dataset as a generation trained on it."""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .documents import check_known
from .errors import UnusableError
from .opening import check_generation, open_journal, open_tokenizer
from .revise import Counts, Reviser
from .rows import Data, Row, need_datasets, open_data


def export(
    path: Path,
    data_path: Path,
    output: Path,
    *,
    generation: int | None,
    tokenizer: str | None,
    with_text: bool,
    split: str | None,
) -> None:
    """Write the data, and print what it is.

    Raises:
        UnusableError: an argument can't be used, or the data is not what was trained on.
    """
    _check_output(output)
    journal = open_journal(path)
    if generation is None:
        generation = journal.generations[-1]
    check_generation(journal, generation, lowest=0)
    data = open_data(data_path, split)
    reviser = Reviser(data, journal, generation, open_tokenizer(tokenizer), with_text=with_text)
    with _new(output) as target, _bar(data) as bar:
        rows = _revised(data, reviser, bar)
        if output.suffix == ".jsonl":
            _write_lines(data, rows, target)
        else:
            _write_dataset(data, reviser, rows, target, bar)
        if not reviser.counts.rows:
            raise data.error("it holds no rows; check the path")
        if generation:
            check_known(reviser.counts.known, str(data_path), generation)
    print(_summary(output, generation, reviser.counts))
    if reviser.stale_text:
        print(
            "The column text was left out: it holds the text of the source. With --tokenizer, and "
            "without --no-text, the edited text is written."
        )


def _check_output(output: Path) -> None:
    if output.exists() or output.is_symlink():
        raise UnusableError(f"--output {output}: is there already; remove it, or name another")
    if output.suffix in (".parquet", ".json", ".csv", ".arrow", ".gz", ".zst"):
        raise UnusableError(
            f"--output {output}: a name that ends in {output.suffix!r}; write .jsonl, or the name "
            "of a folder for datasets.load_from_disk"
        )


@contextlib.contextmanager
def _new(output: Path) -> Iterator[Path]:
    """A place to write to, which becomes `output` in the end, or goes away."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(prefix=f".{output.name}.partial-", dir=output.parent)
    except OSError as error:
        raise UnusableError(
            f"--output {output}: can't be made ({error}); name a place that can be written to"
        ) from None
    try:
        target = Path(folder) / "output"
        yield target
        _check_output(output)  # another may have come meanwhile
        target.rename(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _bar(data: Data) -> Any:
    bar: Any = tqdm(unit=" rows", disable=None, leave=False)  # None: on a terminal only
    if not bar.disable:
        bar.reset(data.count_rows())
    return bar


def _revised(data: Data, reviser: Reviser, bar: Any) -> Iterator[Row]:
    for batch in data.batches():
        yield from reviser.revise(batch)
        bar.update(len(batch.rows))


def _write_lines(data: Data, rows: Iterator[Row], target: Path) -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, datetime.date | datetime.time):
            return value.isoformat()
        raise data.error(
            f"a column holds {type(value).__name__}, for which JSON has no word; write to a folder"
        )

    with target.open("w", encoding="utf-8") as file:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False, default=plain)
            try:
                file.write(f"{line}\n")
            except UnicodeEncodeError:  # half of a surrogate pair
                file.write(f"{json.dumps(row, default=plain)}\n")


def _write_dataset(
    data: Data, reviser: Reviser, rows: Iterator[Row], target: Path, bar: Any
) -> None:
    datasets = need_datasets()
    features = _features(datasets, data, reviser)
    cache = target.parent / "cache"
    had_bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    source = _Source(rows)
    try:
        dataset = datasets.Dataset.from_generator(source, features=features, cache_dir=str(cache))
        bar.set_postfix_str("copying to its folder")
        dataset.save_to_disk(str(target))
    except Exception as error:
        # datasets raises an error of its own from ours.
        if source.error is not None:
            raise source.error from None
        if isinstance(error, OSError):
            raise
        reason = error.__cause__ or error
        raise data.error(
            f"a column does not fit its type, {features} ({reason}); write to a .jsonl file"
        ) from None
    finally:
        if had_bars:
            datasets.enable_progress_bars()


class _Source:
    """Rows for `Dataset.from_generator`, which wants to hash where they come from."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self.error: UnusableError | None = None
        self._rows = rows

    def __call__(self) -> Iterator[Row]:
        try:
            yield from self._rows
        except UnusableError as error:
            self.error = error
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (uuid.uuid4().hex,)


def _features(datasets: Any, data: Data, reviser: Reviser) -> Any:
    """The types of the columns that are written, which may have lost tokens, and have text."""
    features = data.features()
    first = next(data.batches(), None)
    if first is not None:
        features.setdefault("input_ids", datasets.List(datasets.Value("int64")))
        rows = [row for row in first.rows if row.get("input_ids") is not None]
        for name in {"input_ids", "labels", "position_ids", *reviser.aligned_columns(rows)}:
            if isinstance(features.get(name), datasets.List):
                features[name] = datasets.List(features[name].feature)  # of any length
    features.pop("text", None)
    if reviser.with_text:
        features["text"] = datasets.Value("string")
    return features


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
