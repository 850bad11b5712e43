"""The text of the demo: Python's own help topics, some of them held out."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Example = dict[str, Any]
"""{"text": str}, {"messages": [...]} or {"prompt": ..., "completion": ...}, as TRL has them."""

HELD_OUT_SHARE = 1 / 8
_PASSAGE_CHARACTERS = 700


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

    train, held_out = hold_out(sorted(topics.items()), key=lambda item: item[0])
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


def hold_out(items: list[Any], key: Any) -> tuple[list[Any], list[Any]]:
    """Hold out those of the lowest hashes: the same ones in every run, and never none."""

    def place(item: Any) -> bytes:
        return hashlib.sha256(key(item).encode()).digest()

    num_held_out = max(1, int(len(items) * HELD_OUT_SHARE))
    held_out = set(sorted(range(len(items)), key=lambda i: place(items[i]))[:num_held_out])
    train = [item for i, item in enumerate(items) if i not in held_out]
    return train, [items[i] for i in sorted(held_out)]
