"""The part `aligned`: the edit for a trainee with another tokenizer, beside the prior's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ...config.priors import aligned
from ...errors import UnusableError
from ...policy import EditPolicy
from ...tokens.token_batch import TokenBatch
from ..measuring.inputs import Inputs
from ..measuring.rows import Batch
from ..measuring.timing import Variant, compare
from .edit import COLUMNS, time_rows
from .passes import make_collator, ours
from .table import Section

OWN = "own tokens"
IN_WORKERS = "trainee's tokens, tokenized for the prior before"
IN_STEP = "trainee's tokens, tokenized for the prior in the step"
_SECONDS = 60.0


def measure_aligned(inputs: Inputs, policy: EditPolicy, *, tokenizer: str, pairs: int) -> Section:
    """Time the edit of the same text in the prior's own tokens and in a trainee's.

    Args:
        inputs: the prior and batches of its own tokens.
        policy: of the edit.
        tokenizer: of the trainee: folder, hub id or tokenizer.json.
        pairs: most rounds.

    Raises:
        UnusableError: the prior can't be aligned to it, or has the same one.
    """
    prior = aligned(inputs.prior, tokenizer, f"--prior-aligned {tokenizer}:")
    if prior is inputs.prior:
        raise UnusableError(
            f"--prior-aligned {tokenizer}: is the prior's own, for which nothing is aligned; "
            "name another one, or leave it out"
        )
    batches = [_in_other_tokens(batch, prior) for batch in inputs.batches]
    other = replace(inputs, prior=prior, batches=batches)
    own, translated = make_collator(inputs, policy), make_collator(other, policy)
    aligner = prior.aligner
    prepared = [aligner.prepare(TokenBatch.collated(batch)) for batch in batches]
    for number in range(len(batches)):  # tables of groups are made, and counted
        ours(inputs, own, number)
        ours(other, translated, number)

    def before(number: int) -> Any:
        prior.take_prepared(prepared[number % len(prepared)])
        return ours(other, translated, number)

    def in_step(number: int) -> Any:
        prior.take_prepared({})
        return ours(other, translated, number)

    variants: dict[str, Variant] = {
        OWN: lambda number: ours(inputs, own, number),
        IN_WORKERS: before,
        IN_STEP: in_step,
    }
    times = compare(variants, inputs.device, pairs=pairs, seconds=_SECONDS)
    stats, other_stats = own.stats, translated.stats
    num_rounds = len(times.seconds[OWN])
    return Section(
        "aligned",
        "Time of the edit for a trainee with another tokenizer / in the prior's own tokens",
        COLUMNS,
        rows=time_rows(times, OWN),
        notes=[
            f"Medians of {num_rounds} rounds on the same text: {stats['tokens'] // 1:,.0f} of the "
            f"prior's own tokens were edited, {other_stats['tokens']:,.0f} of the trainee's, of "
            f"which {prior.aligned_share:.1%} begin where one of the prior's begins.",
            f"Selected: {stats['selected_share']:.2%} of the scored own tokens, "
            f"{other_stats['selected_share']:.2%} of the trainee's.",
        ],
        figures={
            "aligned_share": prior.aligned_share,
            "selected_share": {
                "own": stats["selected_share"],
                "aligned": other_stats["selected_share"],
            },
        },
    )


def _in_other_tokens(batch: Batch, prior: Any) -> Batch:
    """The same text in the trainee's tokens; prompts keep no loss."""
    one = prior.aligner.one
    special = {there: here for here, there in one.special.items()}
    rows: list[list[int]] = []
    masks: list[list[bool]] = []
    for ids, mask, labels in zip(
        batch["input_ids"].tolist(),
        batch["attention_mask"].tolist(),
        batch["labels"].tolist(),
        strict=True,
    ):
        row: list[int] = []
        has_loss: list[bool] = []
        text, with_loss = b"", None
        for token_id, real, label in [*zip(ids, mask, labels, strict=True), (-1, 1, -100)]:
            piece = one.prior.bytes[token_id] if real and token_id >= 0 else None
            if text and (piece is None or (label != -100) != with_loss):
                encoded = one.trainee.encode(text)
                row += encoded
                has_loss += [bool(with_loss)] * len(encoded)
                text = b""
            if real and token_id in special:
                row.append(special[token_id])
                has_loss.append(False)
            if piece is not None:
                text, with_loss = text + piece, label != -100
        rows.append(row)
        masks.append(has_loss)
    T = max(map(len, rows))
    shape = (len(rows), T)
    new = {
        "input_ids": torch.full(shape, prior.pad_id),
        "attention_mask": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.full(shape, -100),
    }
    for number, (row, has_loss) in enumerate(zip(rows, masks, strict=True)):
        here = torch.tensor(row, dtype=torch.int64)
        new["input_ids"][number, : len(row)] = here
        new["attention_mask"][number, : len(row)] = 1
        new["labels"][number, : len(row)] = torch.where(torch.tensor(has_loss), here, -100)
    return new
