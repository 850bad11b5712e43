"""Text that a model writes: rows that it completes, and rows of its own."""

from __future__ import annotations

import copy
from typing import Any

import torch
from common.precision import fast_dtype, fast_precision
from torch import Tensor, nn

from .world import TokenRows

_COMPLETED_AT_ONCE = 64  # rows
_WRITTEN_AT_ONCE = 256
_PROMPT = 4  # the first of so many parts of a row is the prompt


def complete_rows(model: nn.Module, rows: TokenRows, tokenizer: Any) -> TokenRows:
    """Keep the first quarter of each row of text, and let a model write the rest.

    Args:
        model: a causal language model of transformers; it comes back in eval mode. Tokens are
            sampled at temperature 1 from the whole vocabulary, by torch's own generator.
        rows: (N, T), without padding.
        tokenizer: of the model.

    Returns:
        Rows of the same shape; only what was written has labels.

    Raises:
        ValueError: the rows are conversations.
    """
    if rows.is_padded:
        raise ValueError("on_policy needs rows of text, and the training rows are conversations")
    model.eval()
    device = next(model.parameters()).device
    length = rows.input_ids.shape[1]
    start = length // _PROMPT
    parts = []
    for ids in rows.input_ids.to(device).split(_COMPLETED_AT_ONCE):
        prompt = ids[:, :start]
        with torch.no_grad(), fast_precision(device):
            written: Tensor = model.generate(  # type: ignore[operator]
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=length - start,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                eos_token_id=[-1],  # None would be the model's own
                pad_token_id=tokenizer.pad_token_id,
            )
        parts.append(written.cpu())
    ids = torch.cat(parts)
    labels = ids.clone()
    labels[:, :start] = -100
    return TokenRows(ids, labels)


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
