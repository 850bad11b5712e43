"""The text of the demo: Python's own help topics, some of them held out.

As a dataset it is called `toedit-demo`: it is made on the spot, without a network.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import UnusableError

DemoExample = dict[str, Any]
"""{"text": str}, {"messages": [...]} or {"prompt": ..., "completion": ...}, as TRL has them."""

DEMO = "toedit-demo"
# The models that are made on the spot, and how many tokens each one's tokenizer has.
DEMO_MODELS = {DEMO: 1024, f"{DEMO}-512": 512}
_CONFIGS = ("docs", "chat")
HELD_OUT_SHARE = 1 / 8
_PASSAGE_CHARACTERS = 700


@dataclass(frozen=True)
class Corpus:
    """Examples to train on and others, of other documents, to measure on."""

    name: str
    train: list[DemoExample]
    held_out: list[DemoExample]

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


def plain_text(example: DemoExample) -> str:
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


def demo_rows(config: str | None, split: str) -> list[dict[str, Any]]:
    """Passages of Python's own help topics, as text or as questions and answers.

    Args:
        config: "docs", rows with `text`; or "chat", with `prompt` and `completion`.
        split: "train", or "test": passages of other topics.

    Raises:
        UnusableError: there is no such configuration or split.
    """
    config = config or "docs"
    if config not in _CONFIGS or split not in ("train", "test"):
        raise UnusableError(
            f"{DEMO} has the configurations {', '.join(_CONFIGS)} and the splits train, test; got "
            f"{config}:{split}"
        )
    corpus = python_topics()
    rows = corpus.train if split == "train" else corpus.held_out
    return rows if config == "docs" else [_as_chat(row["text"]) for row in rows]


def _as_chat(text: str) -> dict[str, Any]:
    """The first sentence as a question about what follows."""
    first, stop, rest = text.partition(". ")
    # A completion that begins with a space would merge with the end of the prompt.
    answer = rest.strip() or first.strip()
    question = f"Python's help says: {first}{stop.strip()} What comes next?"
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }
