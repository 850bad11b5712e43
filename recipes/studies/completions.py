"""Rows that a model completes itself, and how many of its answers are right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from toedit_collate.config.precision import fast_precision

from .world import TokenRows

_ROWS_AT_ONCE = 64
_PROMPT = 4  # of rows of text, the first of so many parts is the prompt


def complete_rows(model: nn.Module, rows: TokenRows, tokenizer: Any, *, sample: bool) -> TokenRows:
    """Keep the prompts of rows, and let a model write what follows them.

    The prompt of a conversation is what stands before its first label, and its answer ends with
    the first special token, or with the row. The prompt of a row of text is its first quarter, and
    what follows fills the row.

    Args:
        model: a causal language model of transformers; it comes back in eval mode.
        rows: (N, T).
        tokenizer: of the model.
        sample: at temperature 1 from the whole vocabulary, by torch's own generator; False: the
            likeliest token.

    Returns:
        Rows of the same shape; what was written has labels, and nothing else.
    """
    model.eval()
    device = next(model.parameters()).device
    ends = _special_ids(tokenizer) if rows.is_padded else []
    pad = tokenizer.pad_token_id
    parts = [
        _complete(model, ids, labels, ends, pad, sample)
        for ids, labels in zip(
            rows.input_ids.to(device).split(_ROWS_AT_ONCE),
            rows.labels.split(_ROWS_AT_ONCE),
            strict=True,
        )
    ]
    written, target = torch.cat([one for one, _ in parts]), torch.cat([one for _, one in parts])
    return TokenRows(written, target, rows.is_padded)


def exact_match(model: nn.Module, rows: TokenRows, tokenizer: Any, after: str) -> float:
    """The share of conversations that a model ends with the right answer, decoded greedily.

    Args:
        model: a causal language model of transformers; it comes back in eval mode.
        rows: conversations; the loss is on what the model has to write.
        tokenizer: of the model.
        after: what stands before the answer, in the row and in what the model writes; the last
            one of these counts. Answers are compared as text, commas and blanks apart.
    """
    written = complete_rows(model, rows, tokenizer, sample=False)
    pairs = zip(rows.labels, written.labels, strict=True)
    answers = [[_answer(tokenizer, labels, after) for labels in pair] for pair in pairs]
    right = [wanted is not None and wanted == given for wanted, given in answers]
    return sum(right) / len(right)


def _complete(
    model: Any, ids: Tensor, labels: Tensor, ends: list[int], pad: int, sample: bool
) -> tuple[Tensor, Tensor]:
    """Tokens and labels of completed rows; padding behind the end. No `ends`: rows of text."""
    num_rows, length = ids.shape
    starts = (labels != -100).int().argmax(1).tolist() if ends else [length // _PROMPT] * num_rows
    longest = max(starts)
    padded = ids.new_zeros(num_rows, longest)
    mask = torch.zeros_like(padded)
    for row, start in enumerate(starts):
        padded[row, longest - start :] = ids[row, :start]
        mask[row, longest - start :] = 1
    with torch.no_grad(), fast_precision(ids.device):
        found = model.generate(
            input_ids=padded,
            attention_mask=mask,
            max_new_tokens=length - min(starts),
            do_sample=sample,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=ends or [-1],  # None would be the model's own
            pad_token_id=pad,
        )[:, longest:]
    written = torch.full_like(ids, pad).cpu()
    target = torch.full_like(written, -100)
    for row, start in enumerate(starts):
        own = found[row, : length - start].cpu()
        stops = torch.isin(own, torch.tensor(ends, dtype=torch.long)).nonzero()
        own = own[: int(stops[0]) + 1] if len(stops) else own
        written[row, :start] = ids[row, :start].cpu()
        written[row, start : start + len(own)] = own
        target[row, start : start + len(own)] = own
    return written, target


def _special_ids(tokenizer: Any) -> list[int]:
    added = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return sorted(added | set(tokenizer.all_special_ids))


def _answer(tokenizer: Any, labels: Tensor, after: str) -> str | None:
    text = tokenizer.decode(labels[labels != -100], skip_special_tokens=True)
    _, found, answer = text.rpartition(after)
    return answer.replace(",", "").strip() if found else None
