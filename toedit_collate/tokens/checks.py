"""Input validation and its error messages."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from .documents import Documents

# "<|reserved_special_token_5|>", "<unused12>", "[unused3]"
_RESERVED = re.compile(r"[<\[]\|?(reserved_special_token_|unused)\d+\|?[>\]]")


def check_tensors(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    labels: Tensor | None,
    edit: object = None,
) -> None:
    """Raise unless the tensors describe one batch of B rows of T token ids."""
    tensors = {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}
    for name, tensor in {**tensors, "attention_mask": attention_mask}.items():
        if tensor is None and name != "input_ids":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{name} must be a torch tensor, got {type(tensor).__name__}; let the collator "
                "return PyTorch tensors (return_tensors='pt')"
            )
        if name != "attention_mask" and tensor.dtype not in (torch.int64, torch.int32):
            raise TypeError(
                f"{name} must be int64 or int32, got {tensor.dtype}; convert it with .long()"
            )
    if input_ids.dim() != 2 or input_ids.numel() == 0:
        raise ValueError(
            f"input_ids must have the shape (B, T), and at least one token, got "
            f"{tuple(input_ids.shape)}; for one row use input_ids.unsqueeze(0)"
        )
    for name, hint in (
        ("position_ids", "position_ids of several dimensions (vision models) are not supported"),
        ("labels", "each label must be at the column of its token, not shifted"),
    ):
        tensor = tensors[name]
        if tensor is not None and tensor.shape != input_ids.shape:
            raise ValueError(
                f"{name} must have the shape of input_ids, {tuple(input_ids.shape)}, got "
                f"{tuple(tensor.shape)}; {hint}"
            )
    if edit is None:
        return
    if not isinstance(edit, Tensor) or edit.dtype != torch.bool:
        got = edit.dtype if isinstance(edit, Tensor) else type(edit).__name__
        raise TypeError(
            f"edit must be a bool tensor, False for rows or tokens to leave alone, got {got}"
        )
    if edit.shape not in (input_ids.shape[:1], input_ids.shape):
        raise ValueError(
            f"edit must have the shape (B,) or (B, T) of input_ids {tuple(input_ids.shape)}, got "
            f"{tuple(edit.shape)}"
        )


def check_mask(attention_mask: Tensor | None) -> None:
    """Raise unless a (B, T) mask holds 0 at padding and whole numbers elsewhere."""
    if attention_mask is None:
        return
    fits = attention_mask >= 0
    if attention_mask.is_floating_point():
        fits = (attention_mask == 0) | (attention_mask == 1)
    if not fits.all():
        raise ValueError(
            "attention_mask must be 0 at padding, and at tokens 1 or the number of the document, "
            f"got {attention_mask[~fits][0].item()}"
        )


def check_labels(input_ids: Tensor, labels: Tensor | None, attention_mask: Tensor | None) -> None:
    """Raise unless each label outside of padding is -100 or the token at its place."""
    if labels is None:
        return
    wrong = (labels != -100) & (labels != input_ids)
    if attention_mask is not None:
        wrong &= attention_mask != 0
    if wrong.any():
        b, t = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"labels must be -100 or equal to input_ids (the model shifts them), got label "
            f"{int(labels[b, t])} at token {int(input_ids[b, t])}, row {b}, column {t}; masked "
            "language modelling and pre-shifted labels can't be edited"
        )


def check_documents(
    documents: Documents, tokens: Tensor, *, vocab_size: int, max_length: int | None
) -> None:
    """Raise if the prior can't score these documents."""
    if tokens.numel() == 0:
        return
    lowest, highest = (int(value) for value in torch.stack(tokens.aminmax()).tolist())
    if lowest < 0 or highest >= vocab_size:
        raise ValueError(
            f"input_ids must lie in the prior's vocabulary, [0, {vocab_size}), got "
            f"{lowest if lowest < 0 else highest}; the prior must have the trainee's tokenizer"
        )
    longest = max(documents.lengths)
    if max_length is not None and longest > max_length:
        raise ValueError(
            f"a document of {longest} tokens is longer than the prior's {max_length} positions; "
            f"shorten rows (max_length={max_length} or less), or use a prior with a longer context"
        )


def check_finite(is_finite: Tensor) -> None:
    """Raise where the prior's results for n tokens, (n,) bool, are not finite."""
    if not is_finite.all():
        raise ValueError(
            f"the prior returned NaN or infinity for {int((~is_finite).sum())} of "
            f"{is_finite.numel()} tokens; check its weights, and load it in bfloat16 or float32 "
            "(float16 overflows in many models)"
        )


def check_same_tokenizer(trainee: Any, prior: Any, vocab_size: int) -> None:
    """Raise a ValueError where `tokenizer_difference` finds a difference."""
    if difference := tokenizer_difference(trainee, prior, vocab_size):
        raise ValueError(
            f"tokenizer differs from the prior's: {difference}; use a prior with the trainee's "
            "tokenizer, or align this one (its scores then are lower bounds): "
            "prior.aligned_to(tokenizer), prior_aligned: true in a recipe, or --prior-aligned on "
            "the command line"
        )


def tokenizer_difference(trainee: Any, prior: Any, vocab_size: int) -> str:
    """How two tokenizers differ; "" where an id means the same token to both.

    Tokens that only one of them has are accepted: an id past the prior's vocabulary is refused
    when it occurs in a text. So are reserved tokens: Llama 3 and 3.2 have the same ids for all
    text, and name other ones of their reserved tokens.
    """
    if trainee is prior:
        return ""
    ours, theirs = trainee.get_vocab(), prior.get_vocab()
    if ours == theirs:
        return ""
    by_id = {token_id: token for token, token_id in theirs.items()}
    for token, token_id in sorted(ours.items(), key=lambda item: item[1]):
        other = by_id.get(token_id)
        is_reserved = _RESERVED.fullmatch(token) or _RESERVED.fullmatch(other or "")
        if other is not None and other != token and not is_reserved:
            return f"id {token_id} is {token!r} to the trainee and {other!r} to the prior"
    added = len(set(ours) ^ set(theirs))
    if added > max(64, len(theirs) // 100):
        return (
            f"{added} tokens are known to only one of them ({len(ours)} and {len(theirs)} tokens, "
            f"prior's vocabulary {vocab_size})"
        )
    return ""
