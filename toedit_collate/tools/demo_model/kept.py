"""The small model of `toedit-demo`, trained once and kept."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

from .pretrain import make_prior
from .source import demo_rows

_SECONDS = 40.0


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
