"""What a prior reads before a token, and what that changes: its BOS, other texts, the prompt.

python benchmarks/context.py --prior NAME --texts FILE --answers FILE --tokenizer TOKENIZER
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from toedit_collate import EditPolicy, Prior, edit_tokens
from toedit_collate.config.priors import open_tokenizer
from toedit_collate.data import examples, open_data
from toedit_collate.inspection.reading import as_token_batch
from toedit_collate.prior.aligned import AlignedPrior

SCORE = EditPolicy(region="none")
Rows = tuple[Tensor, Tensor, Tensor]  # ids, mask, labels


def rows_of(sequences: list[list[int]]) -> Rows:
    """Sequences as rows that are padded on the right."""
    T = max(map(len, sequences))
    ids = torch.tensor([one + [0] * (T - len(one)) for one in sequences])
    mask = torch.tensor([[1] * len(one) + [0] * (T - len(one)) for one in sequences])
    return ids, mask, torch.where(mask == 1, ids, -100)


def score(prior: Any, rows: Rows, context: Any = "document") -> Tensor:
    """Log P of the tokens with a label, (B, T) float64; NaN elsewhere."""
    ids, mask, labels = rows
    scored = [
        edit_tokens(
            prior, ids[b : b + 1], attention_mask=mask[b : b + 1], labels=labels[b : b + 1],
            policy=SCORE.replace(context=context), return_logprob=True,
        ).logprob
        for b in range(len(ids))
    ]  # fmt: skip
    found = torch.cat([one for one in scored if one is not None]).double()
    return found.masked_fill(labels == -100, torch.nan)


def report(name: str, base: Tensor, other: Tensor) -> None:
    """A line of a table: both on the tokens that both have; errors are over rows, paired."""
    both = base.isfinite() & other.isfinite()  # a lower bound can be 0
    n = both.sum()
    cells = [f"{int(n):,}"]
    for of, scale in ((lambda x: -x, 1.0), (lambda x: (x.exp() >= 0.99).double(), 100.0)):
        old, new = (torch.where(both, scale * of(x), 0.0) for x in (base, other))
        mean = (new - old).sum() / n
        error = ((new - old).sum(-1) - mean * both.sum(-1)).square().sum().sqrt() / n
        cells += [f"{old.sum() / n:.3f}", f"{new.sum() / n:.3f}", f"{mean:+.3f} ± {error:.3f}"]
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def texts_of(path: str) -> Iterator[str]:
    """The texts of a file."""
    for batch in open_data(path).batches():
        yield from (row["text"] for row in batch.rows)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--prior", "--texts", "--answers", "--tokenizer"):
        parser.add_argument(name, required=True)
    parser.add_argument("--bos", type=int, nargs="*", default=[], help="ids to try as a BOS")
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--length", type=int, default=500, help="of rows, in tokens")
    args = parser.parse_args()
    prior = Prior.from_pretrained(args.prior)
    trainee, own = open_tokenizer(args.tokenizer, "--tokenizer"), prior.tokenizer
    texts = list(itertools.islice(texts_of(args.texts), 4 * args.rows))
    print("| | tokens | -log P before | after | change | P >= 0.99, %: before | after | change |")
    print("| --- " * 8 + "|")

    def plain(tokenizer: Any, text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    short = rows_of([plain(trainee, one)[: args.length] for one in texts[: args.rows]])
    wrapped = list(itertools.chain(*([*plain(own, one), own.eos_token_id] for one in texts)))
    starts = range(args.length // 2, args.rows * args.length, args.length)
    wrapped_rows = rows_of([wrapped[start : start + args.length] for start in starts])
    chats = list(itertools.islice(examples(open_data(args.answers), own), args.rows))
    batch = as_token_batch(chats)
    assert batch.mask is not None
    assert batch.labels is not None
    answers = batch.input_ids, batch.mask, batch.labels

    added = prior.added_bos
    without = None
    for bos in (None, *dict.fromkeys([*([] if added is None else [added]), *args.bos])):
        prior._vocabulary.__dict__["added_bos"] = bos
        found = score(AlignedPrior(prior, trainee), short)
        if without is None:
            without, whole = found, score(prior, wrapped_rows)
            prompted = score(prior, answers)
        else:
            report(f"another tokenizer: BOS {bos}", without, found)
        lead = "" if bos is None else f", BOS {bos}"
        report(f"wrapped rows: texts apart{lead}", whole, score(prior, wrapped_rows, "text"))
        report(f"answers without prompts{lead}", prompted, score(prior, answers, "answer"))


if __name__ == "__main__":
    main()
