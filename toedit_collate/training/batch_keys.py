"""Refuses batch keys that would still describe the tokens from before the edit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_ENCODER_DECODER = "only decoder-only language models are supported"
_REFUSED = {
    "shift_labels": "which would keep the tokens from before the edit; let the model shift labels, "
    "and remove shift_labels from the base collator's output",
    "inputs_embeds": "so the model reads no token ids, and only token ids can be edited; remove "
    "inputs_embeds from the base collator's output",
    "decoder_input_ids": f"of an encoder-decoder model; {_ENCODER_DECODER}",
    "decoder_inputs_embeds": f"of an encoder-decoder model; {_ENCODER_DECODER}",
}
# What a teacher, a reference model or a reward computed from the unedited tokens.
_DEPENDS_ON_TOKENS = re.compile(
    r"log_?p(s|rob|$)|logits|advantage|reward|teacher|target_token|target_mask|"
    r"(start|end)_positions",
    re.IGNORECASE,
)
_KNOWN_MASKS = ("attention_mask", "special_tokens_mask")
_NOT_TEXT = re.compile(r"pixel_values|image|video|audio|input_features|input_values", re.IGNORECASE)


def check_keys(batch: Mapping[str, Any]) -> None:
    """Raise a ValueError that names a key which an edit of `input_ids` and `labels` makes wrong.

    Example:
        >>> import torch
        >>> ids = torch.tensor([[5, 6, 7, 2]])
        >>> check_keys({"input_ids": ids, "targets": ids.roll(-1)})
        Traceback (most recent call last):
        ...
        ValueError: the batch has 'targets', a copy of input_ids, which would keep the tokens ...
    """
    for key, why in _REFUSED.items():
        if batch.get(key) is not None:
            raise ValueError(f"the batch has {key}, {why}")
    knows_loss = batch.get("labels") is not None
    for key, value in batch.items():
        if value is None or key in ("input_ids", "labels"):
            continue
        if _DEPENDS_ON_TOKENS.search(key):
            raise ValueError(
                f"the batch has {key!r}, which belongs to the tokens from before the edit (a span, "
                "or the output of a teacher, a reference model or a reward); token editing is for "
                "supervised fine-tuning and pretraining on the next token"
            )
        if re.search(r"masks?$", key) and key not in _KNOWN_MASKS and not knows_loss:
            raise ValueError(
                f"the batch has {key} and no labels, so it is not known what is learned from; let "
                "the base collator return labels, -100 where there is no loss"
            )
        if _is_copy(value, batch["input_ids"], batch.get("attention_mask")):
            raise ValueError(
                f"the batch has {key!r}, a copy of input_ids, which would keep the tokens from "
                "before the edit; let the base collator return it as labels, or remove it"
            )


def find_other_input(batch: Mapping[str, Any]) -> str | None:
    """A key for images, audio or video, which the prior does not get; or None."""
    return next((key for key in batch if _NOT_TEXT.search(key)), None)


def _is_copy(value: Any, ids: Any, mask: Any) -> bool:
    """Whether a tensor holds the token ids, or the next ones, wherever it is not -100."""
    if not (isinstance(value, Tensor) and isinstance(ids, Tensor)):
        return False
    if value.shape != ids.shape or ids.dim() != 2:
        return False
    if value.is_floating_point() or value.dtype == torch.bool:
        return False
    value = value.to(ids.device)
    real = value != -100
    if isinstance(mask, Tensor) and mask.shape == ids.shape:
        real &= mask.to(ids.device) != 0
    same = (ids == value) | ~real
    next_real = real[:, :-1] & real[:, 1:]
    next_same = (ids[:, 1:] == value[:, :-1]) | ~next_real
    # Two tokens or fewer may agree by chance.
    return any(
        int(compared.sum()) > 2 and bool(equal.all())
        for equal, compared in ((same, real), (next_same, next_real))
    )
