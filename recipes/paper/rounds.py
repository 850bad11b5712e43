"""Table 9 and section 5.3: one frozen prior edits a text several times, and nothing is trained.

python recipes/paper/rounds.py --prior NAME --data FILE --policy reference_code --output FILE.jsonl
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from toedit_collate.config.console import run_guarded
from toedit_collate.config.options import (
    add_data,
    add_prior,
    add_reading,
    positive,
    preparation_of,
    prior_options,
    read_policy,
)
from toedit_collate.config.priors import open_prior
from toedit_collate.data import examples, open_data
from toedit_collate.editing.edit import edit_batch
from toedit_collate.errors import UnusableError
from toedit_collate.inspection.reading import as_token_batch, in_batches
from toedit_collate.policy import EditPolicy
from toedit_collate.prior.base import BasePrior

Array = npt.NDArray[np.float64]
GROUPS = 20  # of documents, for standard errors


@dataclass
class Counts:
    """What one pass of the prior found, for each group of documents.

    Attributes:
        tokens: (G,) scored tokens.
        selected: (G,) of them, in the region.
        changed: (G,) changed by this round's edit.
        nll: (G,) sum of -log P, nats.
        bins: (G, 10) tokens by P in [0, 0.1), ..., [0.9, 1].
        unigrams: (G, V) scored tokens by their id.
    """

    tokens: Array
    selected: Array
    changed: Array
    nll: Array
    bins: Array
    unigrams: Array

    @classmethod
    def empty(cls, vocab_size: int) -> Counts:
        """No counts yet."""
        tokens, selected, changed, nll = np.zeros((4, GROUPS))
        bins, unigrams = np.zeros((GROUPS, 10)), np.zeros((GROUPS, vocab_size))
        return cls(tokens, selected, changed, nll, bins, unigrams)

    def statistics(self, kept: npt.NDArray[np.bool_]) -> Array:
        """The shares, the mean and the entropies of `show`, of some groups."""
        total = self.tokens[kept].sum()
        bins = self.bins[kept].sum(0)
        return np.array(
            [
                100 * self.selected[kept].sum() / total,
                100 * self.changed[kept].sum() / total,
                100 * (bins[0] + bins[-1]) / total,
                entropy(bins),
                entropy(self.unigrams[kept].sum(0)),
                self.nll[kept].sum() / total,
            ]
        )


NAMES = (
    "selected, %", "changed, %", "outer bins, %", "entropy of the bins", "entropy of the tokens",
    "-log P",
)  # fmt: skip


def entropy(counts: Array) -> float:
    """Entropy of a distribution that is given by counts, in nats (Eq. 10)."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def jackknife(of: Callable[[npt.NDArray[np.bool_]], Array]) -> tuple[Array, Array]:
    """Statistics of all groups of documents, and their standard errors."""
    every = np.ones(GROUPS, dtype=bool)
    without = np.array([of(np.arange(GROUPS) != group) for group in range(GROUPS)])
    return of(every), np.sqrt((GROUPS - 1) * without.var(0))


def edit_rounds(
    prior: BasePrior, policy: EditPolicy, documents: list[Any], rounds: int, batch_tokens: int
) -> list[Counts]:
    """Edit documents several times by one frozen prior; each round draws afresh.

    Args:
        prior: that scores and draws in all rounds.
        policy: which tokens are edited, and how.
        documents: `Example`s.
        rounds: of edits.
        batch_tokens: how many tokens to score at once.

    Returns:
        The counts of each round, and those after the last.
    """
    found = []
    for number in range(rounds + 1):
        counts, edited = Counts.empty(prior.vocab_size), []
        for batch in in_batches(documents, batch_tokens):
            source = as_token_batch(batch)
            result = edit_batch(
                prior, policy, source, epoch=0, generation=number, return_logprob=True
            )
            assert result.labels is not None
            for row, one in enumerate(batch):
                _count(counts, result, row, one)
                ids, labels = (
                    values[row, : len(one.ids)].tolist()
                    for values in (result.input_ids, result.labels)
                )
                edited.append(replace(one, ids=ids, labels=labels))
        documents = sorted(edited, key=lambda one: one.number)
        found.append(counts)
    return found


def _count(counts: Counts, result: Any, row: int, one: Any) -> None:
    group = one.number % GROUPS
    scored = result.scored[row]
    logprob = result.logprob[row][scored].double().numpy()
    ids = torch.tensor(one.ids + [0] * (len(scored) - len(one.ids)))[scored].numpy()
    counts.tokens[group] += len(logprob)
    counts.selected[group] += int(result.selected[row].sum())
    counts.changed[group] += int(result.changed[row].sum())
    counts.nll[group] -= logprob.sum()
    counts.bins[group] += np.histogram(np.exp(logprob).clip(0, 1), np.linspace(0, 1, 11))[0]
    np.add.at(counts.unigrams[group], ids, 1)


def record_of(found: list[Counts]) -> list[dict[str, Any]]:
    """For each round: the statistics, and the differences to the round before and to the first."""
    rows = []
    for number, counts in enumerate(found):
        values, errors = jackknife(counts.statistics)
        row: dict[str, Any] = {"bins": counts.bins.sum(0).tolist()}
        row |= {"tokens": int(counts.tokens.sum())}
        row["values"] = dict(zip(NAMES, zip(values, errors, strict=True), strict=True))
        before = found[max(number - 1, 0)]
        for name, base in (("from the last", before), ("from the first", found[0])):
            difference = jackknife(functools.partial(_difference, counts, base))
            row[name] = dict(zip(NAMES, zip(*difference, strict=True), strict=True))
        rows.append(row)
    return rows


def _difference(one: Counts, base: Counts, kept: npt.NDArray[np.bool_]) -> Array:
    return one.statistics(kept) - base.statistics(kept)


def as_table(run: dict[str, Any]) -> str:
    """A run as Markdown; the differences are those to the round before, and to the first."""
    lines = [
        f"{run['prior']}, {run['data']}, `{run['policy']}`: {run['rounds'][0]['tokens']:,} tokens",
        "",
        "| | " + " | ".join(NAMES) + " |",
        "| --- " * (len(NAMES) + 1) + "|",
    ]
    last = len(run["rounds"]) - 1
    for number, row in enumerate(run["rounds"]):
        name = f"round {number + 1}" if number < last else "after"
        cells = [f"{value:.4g} ± {error:.2g}" for value, error in row["values"].values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        if number:
            for which in ("from the last", "from the first"):
                cells = [f"{value:+.3g} ± {error:.2g}" for value, error in row[which].values()]
                lines.append(f"| {which} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(prog="rounds.py", description=__doc__)
    add_data(parser, required=True)
    add_prior(parser, required=True)
    parser.add_argument("--policy", default="paper", help="default: %(default)s")
    parser.add_argument("--rounds", type=positive, default=3, help="default: %(default)s")
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N documents")
    parser.add_argument("--output", type=Path, metavar="FILE", help="a run is added to it")
    add_reading(parser, max_length="what the prior can take", batch_tokens=4096)
    return parser


def run(args: argparse.Namespace) -> None:
    """Make a run, and print it.

    Raises:
        UnusableError: an argument can't be used, or the data can't.
    """
    policy = read_policy(args.policy)
    if policy.drops_tokens or policy.target != "both":
        raise UnusableError(
            f"--policy {args.policy}: a round needs the tokens of the round before at their "
            "places; use target=both, and neither drop_below nor drop_above"
        )
    prior = open_prior(args.prior, **prior_options(args))
    prep = preparation_of(args)
    if prep.max_length is None:
        prep = replace(prep, max_length=prior.max_length)
    data = open_data(args.data)
    documents = list(
        islice(examples(data, prior.tokenizer, prep, vocab_size=prior.vocab_size), args.limit)
    )
    found = edit_rounds(prior, policy, documents, args.rounds, args.batch_tokens)
    record = {"prior": args.prior, "data": data.name, "policy": args.policy}
    record |= {"rounds": record_of(found)}
    if args.output is not None:
        with args.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    print(as_table(record))


def main(arguments: list[str] | None = None) -> int:
    """Run the script; returns its exit status."""
    args = make_parser().parse_args(arguments)
    return run_guarded("rounds.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
