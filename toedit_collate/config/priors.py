"""Opens the prior that a user names, for all commands and recipes."""

from __future__ import annotations

from typing import Any

from ..data.demo_model import demo_model
from ..data.demo_text import DEMO_MODELS
from ..errors import UnusableError, first_line
from ..prior.prior import Prior


def open_prior(
    name: str, *, dtype: Any = "auto", device: Any = None, quantization: Any = None,
    adapter: str | None = None, revision: str | None = None, compile: bool = False,  # noqa: A002
    needs_tokenizer: bool = True, said: str | None = None, aligned_to: Any = None,
) -> Any:  # fmt: skip
    """Load a prior; what is wrong is said in one line.

    Args:
        name: folder or hub id.
        dtype: of its weights; "auto": the checkpoint's.
        device: None: the GPU, if there is one.
        quantization: see `Prior.from_pretrained`.
        adapter: of PEFT, to put on it.
        revision: on the hub.
        compile: by `torch.compile`.
        needs_tokenizer: raise where there is none beside it.
        said: how messages name it; None: as the option `--prior` does.
        aligned_to: tokenizer of a trainee, or the folder or hub id of one; see `Prior.aligned_to`.

    Returns:
        A `Prior`, or where it is aligned to another tokenizer, an `AlignedPrior`.

    Raises:
        UnusableError: it can't be loaded, or not be aligned.
    """
    said = said or f"--prior {name}:"
    name = _folder_of(name)
    try:
        prior = Prior.from_pretrained(
            name, dtype=dtype, device=device, quantization=quantization, adapter=adapter,
            revision=revision,
        )  # fmt: skip
    except Exception as error:  # of many kinds, by what is wrong with the files or the device
        raise UnusableError(
            f"{said} can't be loaded ({first_line(error)}); name a folder with a causal "
            "language model and its tokenizer, or one of the hub"
        ) from None
    if needs_tokenizer and prior.tokenizer is None:
        raise UnusableError(
            f"{said} has no tokenizer beside it, by which special tokens are known; put "
            "it there: tokenizer.save_pretrained(FOLDER)"
        )
    if compile:
        prior.compile()
    return prior if aligned_to is None else aligned(prior, aligned_to, said)


def aligned(prior: Prior, tokenizer: Any, said: str) -> Any:
    """A prior for a trainee with another tokenizer, an object or a name; see `open_prior`."""
    try:
        if isinstance(tokenizer, str):
            tokenizer = open_tokenizer(tokenizer, "the tokenizer")
        return prior.aligned_to(tokenizer)
    except ValueError as error:
        raise UnusableError(f"{said} {error}") from None


def open_tokenizer(name: str, option: str) -> Any:
    """Load a tokenizer.

    Args:
        name: folder, hub id, or path of a tokenizer.json.
        option: that names it, for messages.

    Raises:
        UnusableError: it can't be loaded.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if name.endswith(".json"):
            return PreTrainedTokenizerFast(tokenizer_file=name)
        return AutoTokenizer.from_pretrained(_folder_of(name))
    except Exception as error:  # of many types
        raise UnusableError(
            f"{option} {name}: can't be loaded ({first_line(error)}); name a folder or a hub id "
            "with a tokenizer, or a tokenizer.json"
        ) from None


def _folder_of(name: str) -> str:
    """The folder of a demo model, as recipes name it; other names stay as they are."""
    return str(demo_model(name)) if name in DEMO_MODELS else name
