"""The text of the demo: Python's own help topics, or a file of the user's."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UnusableError

Example = dict[str, Any]
"""{"text": str}, {"messages": [...]} or {"prompt": ..., "completion": ...}, as TRL has them."""

MAX_DOCUMENTS = 20_000  # of a file; the rest is left unread
HELD_OUT_SHARE = 1 / 8
_PASSAGE_CHARACTERS = 700
_FORMATS = (("messages",), ("prompt", "completion"), ("text",))


@dataclass(frozen=True)
class Corpus:
    """Examples to train on and others, of other documents, to measure on."""

    name: str
    train: list[Example]
    held_out: list[Example]

    @property
    def is_conversational(self) -> bool:
        """True where a chat template is needed."""
        return any(not isinstance(value, str) for value in self.train[0].values())


def python_topics() -> Corpus:
    """The help topics that every Python carries (`help("for")`), cut at blank lines.

    Whole topics are held out.
    """
    from pydoc_data.topics import topics  # type: ignore[import-untyped]

    train, held_out = _split(sorted(topics.items()), key=lambda item: item[0])
    # Some topics are parts of others: what is held out must not be learned from those.
    hidden = {paragraph for _, text in held_out for paragraph in _prose(text)}
    return Corpus(
        name=f"Python's help topics (pydoc_data.topics): {len(train)} to train on, "
        f"{len(held_out)} held out",
        train=[
            {"text": passage}
            for _, text in train
            for passage in _passages(p for p in _prose(text) if p not in hidden)
        ],
        held_out=[{"text": passage} for _, text in held_out for passage in _passages(_prose(text))],
    )


def read_corpus(path: Path) -> Corpus:
    """Read documents from a .txt, .jsonl or .parquet file; one in eight is held out.

    Raises:
        UnusableError: the file can't be read, or holds no documents of a known format.
    """
    readers = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise UnusableError(
            f"--data {path}: a name that ends in {path.suffix or 'nothing'!r}; "
            "write .txt, .jsonl or .parquet"
        )
    if not path.is_file():
        raise UnusableError(f"--data {path}: there is no such file; check the path")
    try:
        examples = list(_first(_checked(path, readers[path.suffix](path)), MAX_DOCUMENTS))
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableError(f"--data {path}: can't be read ({error}); it must be UTF-8") from None
    kinds = {tuple(example) for example in examples}
    if len(kinds) > 1:
        raise UnusableError(
            f"--data {path}: documents of {len(kinds)} formats {sorted(kinds)}; keep to one"
        )
    if len(examples) < 2:
        raise UnusableError(
            f"--data {path}: {len(examples)} documents; the demo needs at least 2, to train on "
            "some and hold out others"
        )
    train, held_out = _split(examples, key=lambda example: json.dumps(example, sort_keys=True))
    first = "the first " if len(examples) == MAX_DOCUMENTS else ""
    name = f"{path}: {first}{len(train):,} documents to train on, {len(held_out):,} held out"
    return Corpus(name, train, held_out)


def enough_examples(corpus: Corpus, most: int, seed: int) -> Corpus:
    """`most` training examples drawn at random: the rest need not be tokenized."""
    if len(corpus.train) <= most:
        return corpus
    return Corpus(corpus.name, random.Random(seed).sample(corpus.train, most), corpus.held_out)


def plain_text(example: Example) -> str:
    """The text of an example, for a prior to be trained on."""
    parts = []
    for value in example.values():
        messages = [value] if isinstance(value, str) else [m["content"] for m in value]
        parts.extend(messages)
    return "\n".join(parts)


def _paragraphs(text: str) -> list[str]:
    return [p.strip("\n") for p in re.split(r"\n[ \t]*\n", text) if p.strip()]


def _prose(text: str) -> list[str]:
    """The paragraphs but for tables and grammars, whose edits would be hard to read."""
    return [
        paragraph
        for paragraph in _paragraphs(text)
        if "::=" not in paragraph and not paragraph.lstrip().startswith(("+-", "|", "=="))
    ]


def _passages(paragraphs: Iterable[str]) -> Iterator[str]:
    """Runs of paragraphs of at most `_PASSAGE_CHARACTERS`, unless one alone is longer."""
    passage = ""
    for paragraph in paragraphs:
        if passage and len(passage) + len(paragraph) > _PASSAGE_CHARACTERS:
            yield passage
            passage = ""
        passage += ("\n\n" if passage else "") + paragraph
    if passage:
        yield passage


def _split(items: list[Any], key: Any) -> tuple[list[Any], list[Any]]:
    """Hold out those of the lowest hashes: the same ones in every run, and never none."""

    def place(item: Any) -> bytes:
        return hashlib.sha256(key(item).encode()).digest()

    num_held_out = max(1, int(len(items) * HELD_OUT_SHARE))
    held_out = set(sorted(range(len(items)), key=lambda i: place(items[i]))[:num_held_out])
    train = [item for i, item in enumerate(items) if i not in held_out]
    return train, [items[i] for i in sorted(held_out)]


def _first(examples: Iterable[Example], most: int) -> Iterator[Example]:
    for _, example in zip(range(most), examples, strict=False):
        yield example


def _read_txt(path: Path) -> Iterator[tuple[str, Any]]:
    for number, text in enumerate(_paragraphs(path.read_text("utf-8")), 1):
        yield f"document {number}", {"text": text}


def _read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise UnusableError(
                    f"--data {path}: line {number} is not JSON ({error.msg}): {line[:40]!r}; "
                    "write one JSON object a line"
                ) from None


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-untyped]
    except ImportError:
        raise UnusableError(
            'reading .parquet needs pyarrow; pip install "toedit_collate[recipes]"'
        ) from None
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except ValueError as error:  # pyarrow's own errors are ValueErrors
        raise UnusableError(f"--data {path}: not a parquet file ({error})") from None


def _checked(path: Path, documents: Iterable[tuple[str, Any]]) -> Iterator[Example]:
    """The columns of each document that the demo uses; empty documents are skipped."""
    for place, document in documents:
        columns = sorted(document) if isinstance(document, dict) else type(document).__name__
        names = next((f for f in _FORMATS if set(f) <= set(columns)), None)
        if names is None or not isinstance(document, dict):
            raise UnusableError(
                f"--data {path}: {place} has {columns}; the demo reads text, messages, or prompt "
                "and completion: rename the columns"
            )
        example = {name: document[name] for name in names}
        values = list(example.values())
        if not (
            all(isinstance(v, str) for v in values)
            if "messages" not in example and isinstance(values[0], str)
            else all(_are_messages(v) for v in values) and names != ("text",)
        ):
            raise UnusableError(
                f"--data {path}: {' and '.join(names)} of {place} is neither text nor a list of "
                f"messages with role and content: {str(values)[:60]}; see TRL's dataset formats"
            )
        if values[-1] if "text" not in example else example["text"].strip():
            yield example


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in value
    )
