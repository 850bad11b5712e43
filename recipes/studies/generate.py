"""Text that a model writes: rows of tokens, sampled from it one after another."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from toedit_collate.config.precision import fast_dtype

_ROWS_AT_ONCE = 256


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
        for first in range(0, num_rows, _ROWS_AT_ONCE):
            rows = min(_ROWS_AT_ONCE, num_rows - first)
            parts.append(_write(writer, rows, length, bos_id, generator))
    return torch.cat(parts).cpu()


def _write(model: Any, rows: int, length: int, bos_id: int, generator: torch.Generator) -> Tensor:
    ids = torch.full((rows, length), bos_id, device=model.device)
    past = None
    for place in range(1, length):
        output = model(input_ids=ids[:, place - 1 : place], past_key_values=past, use_cache=True)
        past = output.past_key_values
        # By the inverse of the distribution function: one number for each row, where
        # torch.multinomial draws one for each id.
        mass = output.logits[:, -1].float().softmax(-1).cumsum(-1)
        u = torch.rand(rows, 1, generator=generator).to(mass) * mass[:, -1:]
        ids[:, place] = torch.searchsorted(mass, u).clamp(max=mass.shape[1] - 1)[:, 0]
    return ids
