"""Data and a model for the tiny recipes, made on the spot: no network, no download."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

from ..tools.demo_model.corpus import Corpus, python_topics
from ..tools.demo_model.pretrain import make_prior
from ..tools.errors import UnusableError

DEMO = "toedit-demo"
_SECONDS = 40.0
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


def demo_model() -> Path:
    """A small model that was trained on those passages; trained at the first call, in a minute.

    Returns:
        Its folder, with a tokenizer and a chat template: under `$XDG_CACHE_HOME` or `~/.cache`.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "toedit_collate" / "demo-model-1"
    if not (folder / "config.json").is_file():
        print(f"Training a small model for the tiny recipes, once; it is kept in {folder}")
        _make(folder)
    return folder


def _make(folder: Path) -> None:
    texts = [row["text"] for row in demo_rows("docs", "train")]
    prior = make_prior(texts, seconds=_SECONDS, seed=0).prior
    folder.parent.mkdir(parents=True, exist_ok=True)
    # It has its name only once it is whole.
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        cast(Any, prior.model).save_pretrained(unfinished)
        prior.tokenizer.save_pretrained(unfinished)
        unfinished.rename(folder)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        if not (folder / "config.json").is_file():
            raise
