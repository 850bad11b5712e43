"""`toedit-demo`: a dataset made of Python's own help topics, without a network or a download."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import UnusableError

DEMO = "toedit-demo"
# The models that `demo_model` makes, and the size of the vocabulary of each.
DEMO_MODELS = {DEMO: 1024, f"{DEMO}-512": 512}
HELD_OUT_SHARE = 1 / 8
_CONFIGS = ("docs", "chat")
_PASSAGE_CHARACTERS = 700


def demo_rows(config: str | None, split: str) -> list[dict[str, Any]]:
    """Passages of Python's help topics.

    The configuration is "docs" for rows with `text`, or "chat" for `prompt` and `completion`. The
    split is "train", or "test" for passages of other topics.
    """
    config = config or "docs"
    if config not in _CONFIGS or split not in ("train", "test"):
        raise UnusableError(
            f"{DEMO} has the configurations {', '.join(_CONFIGS)} and the splits train and test, "
            f"got {config}:{split}"
        )
    train, held_out = python_topics()
    texts = train if split == "train" else held_out
    return [{"text": text} for text in texts] if config == "docs" else list(map(_as_chat, texts))


def _as_chat(text: str) -> dict[str, Any]:
    """The first sentence as a question about the rest."""
    first, stop, rest = text.partition(". ")
    # A completion that begins with a space would merge with the end of the prompt.
    answer = rest.strip() or first.strip()
    question = f"Python's help says: {first}{stop.strip()} What comes next?"
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": answer}],
    }


def python_topics() -> tuple[list[str], list[str]]:
    """Passages of Python's help topics (`help("for")`): to train on, and of held-out topics."""
    from pydoc_data.topics import topics  # type: ignore[import-untyped]

    # The topics with the lowest hashes are held out: the same ones in every run.
    by_hash = sorted(topics, key=lambda name: hashlib.sha256(name.encode()).digest())
    held_out = set(by_hash[: int(len(topics) * HELD_OUT_SHARE)])
    # Some topics contain others: paragraphs of a held-out topic must not be trained on.
    hidden = {paragraph for name in held_out for paragraph in _prose(topics[name])}
    train: list[str] = []
    test: list[str] = []
    for name in sorted(topics):
        if name in held_out:
            test += _passages(_prose(topics[name]))
        else:
            train += _passages(p for p in _prose(topics[name]) if p not in hidden)
    return train, test


def _prose(text: str) -> list[str]:
    """The paragraphs without tables and grammars, whose edits would be hard to read."""
    return [
        paragraph.strip("\n")
        for paragraph in re.split(r"\n[ \t]*\n", text)
        if paragraph.strip()
        and "::=" not in paragraph
        and not paragraph.lstrip().startswith(("+-", "|", "=="))
    ]


def _passages(paragraphs: Iterable[str]) -> Iterator[str]:
    """Paragraphs joined up to `_PASSAGE_CHARACTERS`, unless one alone is longer."""
    passage = ""
    for paragraph in paragraphs:
        if passage and len(passage) + len(paragraph) > _PASSAGE_CHARACTERS:
            yield passage
            passage = ""
        passage += ("\n\n" if passage else "") + paragraph
    if passage:
        yield passage
