"""Finds the documents of a batch: padded on either side, packed, or flattened without padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Keys by which collators mark documents: their borders in the flattened batch, their lengths in
# order (Unsloth), and the number of each token's document.
BORDERS = ("cu_seq_lens_q", "cu_seq_lens", "cu_seqlens_q", "cu_seqlens")
LENGTHS = "packed_seq_lengths"
NUMBERS = ("seq_idx", "document_ids", "doc_ids", "sequence_ids", "segment_ids")


@dataclass(frozen=True)
class Documents:
    """The M real tokens of a batch, in N documents, one after another."""

    index: Tensor  # (M,) int64, the place of each token in the flattened (B * T) batch; ascending
    document: Tensor  # (M,) int64, the number of its document, in [0, N); ascending
    position: Tensor  # (M,) int64, its position in the document, from 0
    start: Tensor  # (N,) int64, which of the M tokens is the first of each document
    lengths: list[int]  # the N numbers of tokens

    @classmethod
    def of_lengths(cls, lengths: list[int]) -> Documents:
        """N documents of some lengths, one after another without padding."""
        number = torch.tensor(lengths, dtype=torch.int64)
        start = number.cumsum(0) - number
        document = torch.arange(len(lengths)).repeat_interleave(number)
        index = torch.arange(len(document))
        return cls(index, document, index - start[document], start, lengths)

    def cut(self, begins: Tensor) -> Documents:
        """The documents, cut also before some tokens: (M,) bool."""
        first = begins | (self.position == 0)
        lengths = first.nonzero().squeeze(-1).diff(append=torch.tensor([len(first)])).tolist()
        return dataclasses.replace(Documents.of_lengths(lengths), index=self.index)

    def put_before(self, tokens: Tensor, token_id: int) -> tuple[Documents, Tensor, Tensor]:
        """Put a token before each document that does not begin with it; `tokens` are (M,) int64.

        Returns:
            The documents; their tokens; and (M,) int64, the new place of each of the M tokens.

        Example:
            >>> Documents.of_lengths([1, 2]).put_before(torch.tensor([5, 0, 7]), 0)[1:]
            (tensor([0, 5, 0, 7]), tensor([1, 2, 3]))
        """
        lengths = torch.tensor(self.lengths)
        lacks = lengths > 0
        lacks[lacks.clone()] = tokens[self.start[lacks]] != token_id
        place = torch.arange(len(tokens)) + lacks.cumsum(0)[self.document]
        documents = Documents.of_lengths((lengths + lacks).tolist())
        longer = torch.full_like(documents.index, token_id).index_copy_(0, place, tokens)
        return documents, longer, place

    @property
    def num_tokens(self) -> int:
        """M: tokens without padding."""
        return self.index.numel()

    @property
    def slices(self) -> list[slice]:
        """Which of the M tokens each document has."""
        starts = zip(self.start.tolist(), self.lengths, strict=True)
        return [slice(start, start + length) for start, length in starts]

    @property
    def num_documents(self) -> int:
        """N."""
        return len(self.lengths)


def find_documents(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    document_ids: Tensor | None = None,
) -> Documents:
    """Find the documents of a batch on the host.

    A document ends with its row, where `position_ids` do not rise by one (as in transformers), and
    where the numbers in `attention_mask` or `document_ids` change. Padding is in no document. The
    arguments are those of `TokenBatch.of`, on the host, with a (B, T) mask.

    Raises:
        ValueError: the mask hides a token inside a document.

    Example:
        >>> ids = torch.tensor([[7, 8, 9, 5, 6]])
        >>> find_documents(ids, None, torch.tensor([[0, 1, 2, 0, 1]])).lengths
        [3, 2]
        >>> find_documents(ids, torch.tensor([[1, 1, 2, 2, 0]]), None).lengths
        [2, 2]
    """
    B, T = input_ids.shape
    if attention_mask is None:
        index = np.arange(B * T)
    else:
        index = attention_mask.numpy().reshape(-1).nonzero()[0]
    row = index // T
    first = np.ones(len(index), dtype=bool)
    first[1:] = row[1:] != row[:-1]
    for numbers in (attention_mask, document_ids):
        if numbers is not None:
            number = numbers.numpy().reshape(-1)[index]
            first[1:] |= number[1:] != number[:-1]
    hole = ~first[1:] & (np.diff(index) > 1)
    if position_ids is not None:
        position = position_ids.numpy().reshape(-1)[index]
        first[1:] |= position[1:] != position[:-1] + 1
        # After padding, positions may restart, or continue as if there were no padding.
        hole &= position[1:] > position[:-1] + 1
    if hole.any():
        b, t = divmod(int(index[1:][hole][0]), T)
        raise ValueError(
            f"attention_mask has a hole: row {b}, column {t - 1} is 0 between tokens of one "
            "document, which can't be scored as it is trained on; remove such tokens, or mark "
            "where the next document begins, by position_ids that restart at 0"
        )
    lengths = np.diff(first.nonzero()[0], append=len(index)).tolist()
    return dataclasses.replace(Documents.of_lengths(lengths), index=torch.from_numpy(index))


def document_ids_of(batch: Mapping[str, Any]) -> Tensor | None:
    """Number the documents of a collated batch by keys other than its mask and positions.

    The keys are cumulative lengths (`cu_seq_lens_q`: (N + 1,), borders in the flattened batch),
    lengths (`packed_seq_lengths`: (N,), row by row, without padding), numbers (`seq_idx`: (B, T)),
    and other names for these. A document begins wherever one of the keys says so.

    Returns:
        (B, T) int64 on the CPU, rising by one where a document begins; None: no such key.

    Raises:
        ValueError: borders or lengths do not fit the batch.
    """
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    begins = torch.zeros(ids.numel(), dtype=torch.bool)
    found = False
    for name in (*BORDERS, *NUMBERS, LENGTHS):
        values = batch.get(name)
        if values is None or (name != LENGTHS and not isinstance(values, Tensor)):
            continue
        if name in NUMBERS and values.shape != ids.shape:
            continue
        found = True
        numbers = torch.as_tensor(values).reshape(-1).to("cpu", torch.int64)
        if name in NUMBERS:
            begins |= numbers.diff(prepend=numbers[:1]) != 0
            continue
        places = torch.arange(ids.numel())
        if name == LENGTHS:
            if isinstance(mask, Tensor) and mask.shape == ids.shape:
                places = places[mask.reshape(-1).cpu() != 0]
            numbers = torch.cat([numbers.new_zeros(1), numbers.cumsum(0)])
        rises = len(numbers) > 0 and numbers[0] == 0 and not (numbers.diff() < 0).any()
        if not rises or numbers[-1] > len(places):
            raise ValueError(
                f"{name} does not fit the {len(places)} tokens of the batch: "
                f"{torch.as_tensor(values).tolist()}; give position_ids that restart at 0"
            )
        # Padding that no mask marks begins after the last length.
        begins[places[numbers[numbers < len(places)]]] = True
    return begins.cumsum(0).view(ids.shape) if found else None


def mask_of_padding(
    input_ids: Tensor, labels: Tensor | None, tokenizer: Any, *, is_packed: bool
) -> Tensor | None:
    """Find the padding of a batch without a mask: pad tokens without a label at the ends of rows.

    If the pad token also ends texts (pad = eos), it counts as padding only at the end of a row,
    without a label, in a batch that is not packed. `input_ids` and `labels` are on the host.

    Returns:
        (B, T) bool, False at padding; None: there is no padding.

    Raises:
        ValueError: rows start with several tokens that may be padding or text.
    """
    eos, bos = (getattr(tokenizer, f"{name}_token_id", None) for name in ("eos", "bos"))
    pad = getattr(tokenizer, "pad_token_id", None)
    pad = eos if pad is None else pad
    is_text = pad in (eos, bos)
    if pad is None or (is_text and (is_packed or labels is None)):
        return None
    may_be = input_ids.numpy() == pad
    if labels is not None:
        may_be &= labels.numpy() == -100
    left = np.logical_and.accumulate(may_be, axis=1)
    right = np.logical_and.accumulate(may_be[:, ::-1], axis=1)[:, ::-1]
    if is_text:
        left &= ~right
        if left[:, 1:].any():
            raise ValueError(
                f"rows start with several tokens {pad}, which both pad and begin or end texts, and "
                "there is no attention_mask, so it is not known where the texts begin; let the "
                "base collator return an attention_mask"
            )
        left[:] = False  # one token may begin the text
    real = ~(left | right)
    return None if real.all() else torch.from_numpy(real)


def mask_of_pairs(mask: Tensor, shape: torch.Size) -> Tensor:
    """Number the documents that a mask of pairs of tokens separates: (B, T) int64 on its device.

    Numbers start at 1 in each row; 0 is padding, which sees nothing. `mask` is (B, 1, T, T) or
    (1, 1, T, T), which tokens (columns) each token (row) sees: whole numbers or bool, 0 where it
    does not; or floating numbers to add to scores, 0 where it does and below -1,000 elsewhere.

    Raises:
        ValueError: a token sees less or more than its document up to itself.
    """
    B, T = shape
    refusal = ValueError(
        f"attention_mask must have the shape of input_ids, {(B, T)}, or {(B, 1, T, T)} where each "
        f"token sees its document up to itself and nothing else, got {tuple(mask.shape)}; mark "
        "documents by position_ids that restart at 0"
    )
    if mask.shape not in ((B, 1, T, T), (1, 1, T, T)):
        raise refusal
    pairs = mask[:, 0]
    sees = pairs == 0 if mask.is_floating_point() else pairs != 0
    real = sees.diagonal(dim1=1, dim2=2)
    first_seen = sees.to(torch.uint8).argmax(-1)
    is_first = real & (first_seen == torch.arange(T, device=mask.device))
    numbers = is_first.cumsum(-1) * real
    same = (numbers.unsqueeze(-1) == numbers.unsqueeze(-2)) & real.unsqueeze(-1)
    wrong = sees != same.tril()
    if mask.is_floating_point():
        wrong |= ~sees & (pairs > -1e3)  # a bias, as in ALiBi
    if wrong.any():
        raise refusal
    return numbers.expand(B, T)
