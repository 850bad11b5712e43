"""The edit for a trainee with another tokenizer, compared with the edit in the prior's own tokens.

Usage: python benchmarks/aligned_edit.py --prior NAME --data FILE --tokenizer FOLDER_OR_JSON
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from shapes import run
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from toedit_collate import EditPolicy, ToEditCollator
from toedit_collate.commands.bench import Batch, Inputs, Row, compare, ratio_rows
from toedit_collate.tokens.token_batch import TokenBatch

OWN = "the prior's own tokens"


def in_other_tokens(batch: Batch, prior: Any, tokenizer: Any) -> Batch:
    """The same text in the trainee's tokens. Prompts have no labels here, either."""
    ids, labels = [], []
    columns = (batch[key].tolist() for key in ("input_ids", "attention_mask", "labels"))
    for own, mask, own_labels in zip(*columns, strict=True):
        tokens: list[int] = []
        kept: list[int] = []
        start, end = 0, sum(mask)
        for stop in range(1, end + 1):
            has_loss = own_labels[start] != -100
            if stop == end or (own_labels[stop] != -100) != has_loss:
                text = prior.tokenizer.decode(own[start:stop], skip_special_tokens=True)
                new = tokenizer(text, add_special_tokens=False)["input_ids"]
                tokens += new
                kept += new if has_loss else [-100] * len(new)
                start = stop
        ids.append(torch.tensor(tokens))
        labels.append(torch.tensor(kept))
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(ids, batch_first=True),
        "attention_mask": pad([torch.ones_like(one) for one in ids], batch_first=True),
        "labels": pad(labels, batch_first=True, padding_value=-100),
    }


def measure(inputs: Inputs, policy: EditPolicy, args: argparse.Namespace) -> Row:
    """The table."""
    tokenizer = (
        PreTrainedTokenizerFast(tokenizer_file=args.tokenizer)
        if args.tokenizer.endswith(".json")
        else AutoTokenizer.from_pretrained(args.tokenizer)
    )
    prior: Any = inputs.prior.aligned_to(tokenizer)
    batches = [in_other_tokens(batch, inputs.prior, tokenizer) for batch in inputs.batches]
    other = Inputs(prior, batches, inputs.B, inputs.T)
    own, translated = (
        ToEditCollator(one.prior, policy, base_collator=dict) for one in (inputs, other)
    )
    prepared = [prior.aligner.prepare(TokenBatch.collated(one)) for one in batches]

    def edit(collator: ToEditCollator, given: Inputs, number: int, prepared: Any = None) -> object:
        if given is other:
            prior.take_prepared(prepared or {})
        return collator(given.batch(number)).to(inputs.prior.device)

    for number in range(len(batches)):  # tables of groups are made, and counted
        edit(own, inputs, number)
        edit(translated, other, number)
    times = compare(
        {
            OWN: lambda number: edit(own, inputs, number),
            "the trainee's, tokenized for the prior in a worker": lambda number: edit(
                translated, other, number, prepared[number % len(prepared)]
            ),
            "the trainee's, tokenized for the prior in the step": lambda number: edit(
                translated, other, number
            ),
        },
        inputs.prior.device,
        rounds=args.rounds,
    )
    counts = [collator.stats for collator in (own, translated)]
    note = (
        f"{counts[0]['tokens']:,.0f} own tokens, {counts[1]['tokens']:,.0f} of the trainee's, of "
        f"which {prior.aligned_share:.1%} are scored. Selected: {counts[0]['selected_share']:.2%} "
        f"and {counts[1]['selected_share']:.2%}."
    )
    return {"title": "Edit / edit in own tokens", "rows": ratio_rows(times, OWN), "notes": [note]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True, help="the trainee's")
    run(parser, measure)
