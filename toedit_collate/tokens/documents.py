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
_HIDDEN = -1e3  # an additive mask is below this where a token is hidden


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
        ValueError: a document contains padding.

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
    np.not_equal(row[1:], row[:-1], out=first[1:])
    apart = np.diff(index) > 1
    for numbers in (attention_mask, document_ids):
        if numbers is not None:
            number = numbers.numpy().reshape(-1)[index]
            first[1:] |= number[1:] != number[:-1]
    inside = ~first[1:]
    if position_ids is not None:
        given = position_ids.numpy().reshape(-1)[index]
        continues = given[1:] == given[:-1] + 1
        first[1:] |= ~continues
        # After padding, positions may restart, or continue as if there were no padding.
        inside &= given[1:] > given[:-1] + 1
    if (apart & inside).any():
        b, t = divmod(int(index[1:][apart & inside][0]), T)
        raise ValueError(
            f"attention_mask has a hole: row {b}, column {t - 1} is 0 between tokens of one "
            "document, which then can't be scored as it is trained on; remove such tokens from the "
            "rows, or mark where the next document begins, by position_ids that restart at 0 or by "
            "numbers in attention_mask (1, 1, 0, 2, 2)"
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
    ids = batch["input_ids"]
    begins = torch.zeros(ids.numel(), dtype=torch.bool)
    found = False
    for name in (*BORDERS, *NUMBERS, LENGTHS):
        values = batch.get(name)
        if values is None or (name != LENGTHS and not isinstance(values, Tensor)):
            continue
        if name in NUMBERS and values.shape != ids.shape:
            continue
        numbers, found = torch.as_tensor(values), True
        if numbers.is_floating_point():  # bfloat16 has no odd number above 256
            raise ValueError(f"{name} must hold whole numbers, got {numbers.dtype}; use int64")
        numbers = numbers.reshape(-1).to("cpu", torch.int64)
        if name in NUMBERS:
            begins |= numbers.diff(prepend=numbers[:1]) != 0
            continue
        places = torch.arange(ids.numel())
        if name == LENGTHS:
            mask = batch.get("attention_mask")
            if isinstance(mask, Tensor) and mask.shape == ids.shape:
                places = places[mask.reshape(-1).cpu() != 0]
            numbers = torch.cat([numbers.new_zeros(1), numbers.cumsum(0)])
        last = numbers[-1] if len(numbers) else -1
        is_full = last == len(places) if name in BORDERS else last <= len(places)
        if not is_full or numbers[0] != 0 or (numbers.diff() < 0).any():
            must = "sum to no more than" if name == LENGTHS else "rise from 0 to"
            raise ValueError(
                f"{name} must {must} the {len(places)} tokens of the batch, got "
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
    ids = input_ids.numpy()
    if not ((ids[:, 0] == pad).any() or (ids[:, -1] == pad).any()):
        return None
    may_be = ids == pad
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


def mask_of_pairs(attention_mask: Tensor, B: int) -> Tensor:
    """Number the documents that a mask of pairs of tokens separates: (B, T) int64 on its device.

    Numbers start at 1 in each row; 0 is padding, a token that does not see itself. The mask is
    (B, 1, T, T) or (1, 1, T, T), which tokens (columns) each token (row) sees: bool, 0 and 1, or an
    additive mask (0 where it sees, the lowest number elsewhere).

    Raises:
        ValueError: a token sees less or more than its document up to itself.
    """
    T = attention_mask.shape[-1]
    column = torch.arange(T, device=attention_mask.device)
    numbers, fits = [], []
    for row in attention_mask[:, 0]:  # one at a time: each is T * T
        hidden = row < 0
        is_added = hidden.any() | ((row == 0).all() & row.is_floating_point())
        seen = torch.where(is_added, row == 0, row != 0)
        real = seen.diagonal()
        # Small added numbers are a bias (ALiBi). If no token sees itself but some see others, the
        # mask marks hidden tokens.
        fits.append(~(hidden & (row > _HIDDEN)).any() & (real.any() | ~seen.any()))
        start = seen.to(torch.uint8).argmax(-1)
        block = (column >= start.unsqueeze(-1)) & (column <= column.unsqueeze(-1))
        before = torch.cat([start.new_tensor([-1]), start[:-1]])
        goes_on = (start == column) | (start == before)
        fits.append((((seen == block).all(-1) & goes_on) | ~real).all())
        numbers.append(((start == column) & real).cumsum(0) * real)
    if not bool(torch.stack(fits).all()):
        raise ValueError(
            "attention_mask of four dimensions must let each token look at all of its document up "
            "to itself and at nothing else, which is not so here (a sliding window, a prefix that "
            "looks ahead, a bias, or True where a token is hidden?); mark documents by "
            "position_ids that restart at 0"
        )
    return torch.stack(numbers).expand(B, T)
