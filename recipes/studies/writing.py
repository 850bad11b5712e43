"""Text that a model writes: rows that it completes, rows of its own, and the answers in them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from toedit_collate.config.precision import fast_dtype, fast_precision

from .world import TokenRows

_COMPLETED_AT_ONCE = 64  # rows
_WRITTEN_AT_ONCE = 256
_PROMPT = 4  # of rows of text, the first of so many parts is the prompt


def complete_rows(model: nn.Module, rows: TokenRows, tokenizer: Any, *, sample: bool) -> TokenRows:
    """Keep the prompts of rows, and let a model write what follows them.

    The prompt of a conversation ends where its first label begins, and its answer ends with the
    first special token, or with the row. The prompt of a row of text is its first quarter, and
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
    special = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = sorted(special | set(tokenizer.all_special_ids)) if rows.is_padded else []
    parts = [
        _complete(model, ids, labels, ends, tokenizer.pad_token_id, sample)
        for ids, labels in zip(
            rows.input_ids.to(device).split(_COMPLETED_AT_ONCE),
            rows.labels.split(_COMPLETED_AT_ONCE),
            strict=True,
        )
    ]
    written, target = torch.cat([one for one, _ in parts]), torch.cat([one for _, one in parts])
    return TokenRows(written, target, rows.is_padded)


def _complete(
    model: Any, ids: Tensor, labels: Tensor, ends: list[int], pad: int, sample: bool
) -> tuple[Tensor, Tensor]:
    """Tokens and labels of completed rows, padded at the end; no `ends`: rows of text."""
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


def exact_match(model: nn.Module, rows: TokenRows, tokenizer: Any, after: str) -> float:
    """The share of conversations that a model ends with the right answer, decoded greedily.

    Args:
        model: a causal language model of transformers; it comes back in eval mode.
        rows: conversations; the loss is on what the model has to write.
        tokenizer: of the model.
        after: what precedes the answer, in the row and in what the model writes; the last one
            counts. Answers are compared as text, without commas and blanks.
    """
    written = complete_rows(model, rows, tokenizer, sample=False)

    def answer(labels: Tensor) -> str | None:
        text = tokenizer.decode(labels[labels != -100], skip_special_tokens=True)
        _, found, end = text.rpartition(after)
        return end.replace(",", "").strip() if found else None

    pairs = zip(map(answer, rows.labels), map(answer, written.labels), strict=True)
    right = [wanted is not None and wanted == given for wanted, given in pairs]
    return sum(right) / len(right)


def write_rows(model: nn.Module, num_rows: int, length: int, bos_id: int, seed: int) -> Tensor:
    """Sample rows from a model, (num_rows, length) int64.

    Every row begins with `bos_id`; where the model ends a document it begins the next one, as rows
    of real text do. Sampled at temperature 1 from the whole vocabulary: any cut would narrow the
    text by itself.

    Args:
        model: a causal language model of transformers.
        num_rows: rows to write.
        length: tokens of a row.
        bos_id: the first token of each row.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    writer: Any = copy.deepcopy(model).to(fast_dtype(next(model.parameters()).device)).eval()
    parts = []
    with torch.no_grad():
        for first in range(0, num_rows, _WRITTEN_AT_ONCE):
            rows = min(_WRITTEN_AT_ONCE, num_rows - first)
            ids = torch.full((rows, length), bos_id, device=writer.device)
            past = None
            for place in range(1, length):
                last = ids[:, place - 1 : place]
                output = writer(input_ids=last, past_key_values=past, use_cache=True)
                past = output.past_key_values
                # By the inverse of the distribution function: one number for each row, where
                # torch.multinomial draws one for each id.
                mass = output.logits[:, -1].float().softmax(-1).cumsum(-1)
                u = torch.rand(rows, 1, generator=generator).to(mass) * mass[:, -1:]
                drawn = torch.searchsorted(mass, u).clamp(max=mass.shape[1] - 1)
                ids[:, place] = drawn[:, 0]
            parts.append(ids)
    return torch.cat(parts).cpu()
