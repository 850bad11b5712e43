"""Text that a model writes: rows that it completes, answers, and rows of its own."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from common.precision import fast_dtype, fast_precision
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

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
    for prompt in rows.input_ids[:, :start].split(_COMPLETED_AT_ONCE):
        with fast_precision(device):
            # No end token: None would be the model's own.
            parts.append(_sample(model, prompt, length - start, [-1], tokenizer.pad_token_id))
    ids = torch.cat(parts)
    labels = ids.clone()
    labels[:, :start] = -100
    return TokenRows(ids, labels)


def answer_rows(model: nn.Module, rows: TokenRows, tokenizer: Any, seed: int) -> TokenRows:
    """Keep the prompt of each conversation, and let a model write the answer.

    Args:
        model: a causal language model of transformers. Tokens are sampled at temperature 1 from
            the whole vocabulary, up to the end token or the end of the row.
        rows: (N, T) conversations; the prompt goes up to the first labelled token. What follows the
            end token of the old answer (a newline of the chat template) follows that of the new.
        tokenizer: of the model.
        seed: of the draws.

    Returns:
        Rows of the same shape; only the answers have labels.
    """
    writer: Any = copy.deepcopy(model).to(fast_dtype(next(model.parameters()).device)).eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        parts = [_answer(writer, some, tokenizer) for some in rows.split(_COMPLETED_AT_ONCE)]
    return TokenRows.join(parts)


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


def _answer(writer: nn.Module, rows: TokenRows, tokenizer: Any) -> TokenRows:
    """`answer_rows` for as many rows as are written at once."""
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    length = rows.input_ids.shape[1]
    starts = (rows.labels != -100).int().argmax(1).tolist()
    prompts = [ids[:start] for ids, start in zip(rows.input_ids, starts, strict=True)]
    left = partial(pad_sequence, batch_first=True, padding_side="left")
    mask = left([torch.ones_like(prompt) for prompt in prompts])
    written = _sample(
        writer, left(prompts, padding_value=pad), length - min(starts), [end], pad, mask
    )
    ids = torch.full_like(rows.input_ids, pad)
    labels = torch.full_like(rows.labels, -100)
    for row, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
        old = rows.labels[row][rows.labels[row] != -100].tolist()
        answer = _ended(written[row, max(starts) :].tolist(), old, end)
        new = torch.tensor(answer[: length - start])
        ids[row, : start + len(new)] = torch.cat([prompt, new])
        labels[row, start : start + len(new)] = new
    return TokenRows(ids, labels, is_padded=True)


def _ended(answer: list[int], old: list[int], end: int) -> list[int]:
    """An answer up to its end token, and what follows the last one of the old answer."""
    if end not in answer:
        return answer
    tail = old[::-1].index(end) if end in old else 0
    return answer[: answer.index(end) + 1] + old[len(old) - tail :]


def _sample(
    model: Any, prompts: Tensor, num_new: int, ends: list[int], pad: int, mask: Tensor | None = None
) -> Tensor:
    """Prompts (N, T) with up to `num_new` tokens each, drawn at temperature 1 from all ids.

    Prompts of other lengths are padded at the left; `mask` (N, T) is 0 there.
    """
    device = next(model.parameters()).device
    mask = torch.ones_like(prompts) if mask is None else mask
    with torch.no_grad():
        written: Tensor = model.generate(
            input_ids=prompts.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=num_new,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            eos_token_id=ends,
            pad_token_id=pad,
        )
    return written.cpu()
