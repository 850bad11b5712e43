"""The small model of `toedit-demo`, trained once and kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, cast

from ...errors import UnusableError
from ..files import whole, write_json
from .pretrain import NUM_STEPS, make_config, make_prior, make_tokenizer, perplexity
from .source import DEMO, DEMO_MODELS, demo_rows

# By then the machine is busy with something else: a model that was cut short is of no use.
LONGEST = 1800.0  # seconds


def demo_model(name: str = DEMO) -> Path:
    """A small model that was trained on those passages; trained at the first call, in a minute.

    Args:
        name: of `DEMO_MODELS`; each has a tokenizer of its own.

    Returns:
        Its folder, with a tokenizer and a chat template: under `$XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        UnusableError: the training took too long, or the folder can't be written; nothing is kept.
    """
    folder = _folder_of(name)
    if not (folder / "config.json").is_file():
        print(
            f"Training {name}, a small model for the tiny recipes, once, in {NUM_STEPS} steps; it "
            f"is kept in {folder}",
            flush=True,
        )
        _make(folder, DEMO_MODELS[name])
    return folder


def demo_config(name: str = DEMO) -> Path:
    """The configuration and the tokenizer of such a model: enough to train one from scratch.

    Args:
        name: of `DEMO_MODELS`.

    Returns:
        Their folder, beside those of `demo_model`; nothing is trained.

    Raises:
        UnusableError: it can't be written.
    """
    trained = _folder_of(name)
    folder = trained.with_name(f"{trained.name}-config")
    if not (folder / "config.json").is_file():
        tokenizer = make_tokenizer(_texts("train"), DEMO_MODELS[name])
        try:
            with whole(folder, replace=False) as place:
                tokenizer.save_pretrained(place)
                make_config(tokenizer).save_pretrained(place)
        except UnusableError:
            if not (folder / "config.json").is_file():  # another process was first
                raise
    return folder


def _folder_of(name: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept_as = "demo-model-2" if name == DEMO else f"demo-model-2-{DEMO_MODELS[name]}"
    return cache / "toedit_collate" / kept_as


def _texts(split: str) -> list[str]:
    return [row["text"] for row in demo_rows("docs", split)]


def _make(folder: Path, vocab_size: int) -> None:
    texts, held_out = _texts("train"), _texts("test")
    made = make_prior(texts, seed=0, steps=NUM_STEPS, seconds=LONGEST, vocab_size=vocab_size)
    if not made.is_whole:
        raise UnusableError(
            f"the small model of toedit-demo got {made.num_steps} of {NUM_STEPS} steps in "
            f"{made.seconds:.0f} s, and is not kept; start again when the machine is less busy, or "
            "name a model of your own"
        )
    quality = perplexity(made.prior, held_out)
    shutil.rmtree(folder, ignore_errors=True)  # without a config: what is left of another
    try:
        with whole(folder, replace=False) as place:
            cast(Any, made.prior.model).save_pretrained(place)
            made.prior.tokenizer.save_pretrained(place)
            write_json(
                place / "training.json", {"steps": made.num_steps, "held_out_perplexity": quality}
            )
    except UnusableError:
        if not (folder / "config.json").is_file():  # another process was first
            raise
    print(
        f"Its perplexity is {quality:.1f} per token on passages that it has not seen. To make it "
        f"anew, remove {folder}",
        flush=True,
    )
