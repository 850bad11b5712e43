"""Keys of a batch that would go on speaking of the tokens from before the edit are refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_ONLY_DECODERS = "only decoder-only language models can be trained so"
_REFUSED = {
    "shift_labels": "which would keep the tokens from before the edit; let the model shift labels, "
    "and remove shift_labels from the base collator's output",
    "inputs_embeds": "so that there is nothing to edit in what the model reads: only token ids can "
    "be edited; remove inputs_embeds from the base collator's output",
    "decoder_input_ids": "as for an encoder-decoder model, and they would keep the tokens from "
    f"before the edit; {_ONLY_DECODERS}",
    "decoder_inputs_embeds": f"as for an encoder-decoder model; {_ONLY_DECODERS}",
}
# What a teacher, a reference model or a reward said of the tokens as they were.
_SAID_OF_TOKENS = re.compile(
    r"log_?p(s|rob|$)|logits|advantage|reward|teacher|target_token|target_mask|"
    r"(start|end)_positions", re.IGNORECASE,
)  # fmt: skip
# Masks that say something else than which tokens are learned from, or that are understood.
_KNOWN_MASKS = ("attention_mask", "special_tokens_mask", "completion_mask", "assistant_masks")
# What a model of several kinds of input reads beside the tokens.
_NOT_TEXT = re.compile(r"pixel_values|image|video|audio|input_features|input_values", re.IGNORECASE)


def check_keys(batch: Mapping[str, Any]) -> None:
    """Raise at keys that an edit of `input_ids` and `labels` would leave behind.

    Args:
        batch: as collated, with `input_ids` (B, T).

    Raises:
        ValueError: names the key.

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
    ids = batch["input_ids"]
    has_labels = batch.get("labels") is not None
    understood = has_labels or any(batch.get(name) is not None for name in _KNOWN_MASKS[2:])
    for key, value in batch.items():
        if value is None or key in ("input_ids", "labels"):
            continue
        if _SAID_OF_TOKENS.search(key):
            raise ValueError(
                f"the batch has {key!r}, which speaks of the tokens from before the edit (of a "
                "span, or by a teacher, a reference model or a reward); token editing is for "
                "supervised fine-tuning and pretraining on the next token"
            )
        if re.search(r"masks?$", key) and key not in _KNOWN_MASKS and not understood:
            raise ValueError(
                f"the batch has {key} and no labels, so it is not known what is learned from; let "
                "the base collator return labels, -100 where there is no loss"
            )
        if _is_copy(value, ids, batch.get("attention_mask")):
            raise ValueError(
                f"the batch has {key!r}, a copy of input_ids, which would keep the tokens from "
                "before the edit; let the base collator return it as labels, or remove it"
            )


def other_input(batch: Mapping[str, Any]) -> str | None:
    """A key that says there is more than text, which a prior is not given; or None."""
    return next((key for key in batch if _NOT_TEXT.search(key)), None)


def _is_copy(value: Any, ids: Any, mask: Any) -> bool:
    """Whether a tensor holds the token ids, or the next ones, wherever it is not -100."""
    if not (isinstance(value, Tensor) and isinstance(ids, Tensor)):
        return False
    if value.shape != ids.shape or ids.dim() != 2:
        return False
    if value.is_floating_point() or value.dtype == torch.bool:
        return False
    value, real = value.to(ids.device), value.to(ids.device) != -100
    if isinstance(mask, Tensor) and mask.shape == ids.shape:
        real = real & (mask.to(ids.device) != 0)
    for ours, theirs, compared in (
        (ids, value, real),
        (ids[:, 1:], value[:, :-1], real[:, :-1] & real[:, 1:]),
    ):
        # Two tokens or fewer may agree by chance.
        if int(compared.sum()) > 2 and bool(((ours == theirs) | ~compared).all()):
            return True
    return False
