"""Opens the prior that a user names, for all commands and recipes."""

from __future__ import annotations

from typing import Any

from ..prior.prior import Prior
from .errors import UnusableError, first_line


def open_prior(
    name: str, *, dtype: Any = "auto", device: Any = None, quantization: Any = None,
    adapter: str | None = None, revision: str | None = None, compile: bool = False,  # noqa: A002
    needs_tokenizer: bool = True, option: str = "--prior",
) -> Prior:  # fmt: skip
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
        option: that named it, for messages.

    Raises:
        UnusableError: it can't be loaded.
    """
    try:
        prior = Prior.from_pretrained(
            name, dtype=dtype, device=device, quantization=quantization, adapter=adapter,
            revision=revision,
        )  # fmt: skip
    except Exception as error:  # of many kinds, by what is wrong with the files or the device
        raise UnusableError(
            f"{option} {name}: can't be loaded ({first_line(error)}); name a folder with a causal "
            "language model and its tokenizer, or one of the hub"
        ) from None
    if needs_tokenizer and prior.tokenizer is None:
        raise UnusableError(
            f"{option} {name}: has no tokenizer beside it, by which special tokens are known; put "
            "it there: tokenizer.save_pretrained(FOLDER)"
        )
    if compile:
        prior.compile()
    return prior
