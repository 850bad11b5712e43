"""`toedit-demo`: a dataset that is made on the spot, without a network or a download."""

from __future__ import annotations

from typing import Any

from ...errors import UnusableError
from .topics import Corpus, python_topics

DEMO = "toedit-demo"
# The models that are made on the spot, and how many tokens each one's tokenizer has.
DEMO_MODELS = {DEMO: 1024, f"{DEMO}-512": 512}
_CONFIGS = ("docs", "chat")


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
    corpus: Corpus = python_topics()
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
