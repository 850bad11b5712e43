"""Which policy to use, and why; and notes about each policy that was tried."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .findings import Findings, KindTally

LABELS = "distill"
# A prior with another tokenizer draws a token piece by piece, which is too slow for many draws.
ONE_LABEL = "region=all top_k=64 target=labels"
# Fewer changed tokens make no difference in training: in the studies (docs/studies.md), 0.2 % made
# none that counts, 3.8 % made one of 0.13 nats.
TOO_FEW = 0.0025
# In these kinds of tokens, one wrong token can spoil a document; with the rule that protects them.
FRAGILE = {"digits": "numbers", "code": "code", "markup": None}
FRAGILE_SHARE = 0.005


@dataclass(frozen=True)
class Advice:
    """A recommendation."""

    title: str  # what to do
    reason: str  # why, in sentences


def recommend(seen: Findings) -> Advice | None:
    """The policy to use, if any; None if a training run made these edits."""
    if seen.run is not None:
        return None
    name = recommended_policy(seen)
    if name is None:
        share = "Redrawn labels were not among the policies compared here."
    else:
        changed = percent(acted(seen.tallies[name]))
        share = f"In this data, {changed} of the drawn labels differ from the text."
    best = ONE_LABEL if seen.is_aligned else LABELS
    other = " A prior with another tokenizer gained hardly anything." if seen.is_aligned else ""
    return Advice(
        f"Use {name or best!r} if the prior is larger than the model in training and knows such "
        "text. Otherwise train without edits.",
        "With this policy the model reads the original text, and learns tokens that the prior "
        f"draws. {share} In our studies (docs/studies.md), redrawn labels are the only edits that "
        "paid: with a larger prior and several epochs, they lowered the loss in pretraining, "
        "continual pretraining and SFT. They did harm in text whose notation the prior did not "
        f"know.{other} With the model's own base as the prior, no policy lowered the loss.",
    )


def recommended_policy(seen: Findings) -> str | None:
    """The policy that was tried with the most draws per label, then with the most changes."""

    def rank(name: str) -> tuple[int, float]:
        return seen.num_draws(name), acted(seen.tallies[name])

    redrawn = [
        name
        for name in seen.policies
        if seen.targets_labels(name) and acted(seen.tallies[name]) >= TOO_FEW
    ]
    return max(redrawn, key=rank, default=None)


def notes(seen: Findings) -> list[str]:
    """What to know about each policy: labels only, too few changes, changes of digits or code."""
    note = _note_on_policy if seen.run is None else _note_on_run
    return [f"{name}: {text}" for name in seen.tallies if (text := note(seen, name))]


def _note_on_run(seen: Findings, generation: str) -> str:
    """How many tokens training selected, which the documents do not show."""
    counts = (seen.run or {})[generation]
    return (
        f"training selected {counts['selected']:,} of {counts['scored']:,} scored tokens "
        f"({percent(counts['selected_share'])}) and changed {counts['changed']:,} "
        f"({percent(counts['changed_share'])})."
    )


def _note_on_policy(seen: Findings, name: str) -> str:
    tally, draws = seen.tallies[name], seen.num_draws(name)
    if seen.targets_labels(name):
        each = f" Each becomes {draws} draws; the first is shown here." if draws > 1 else ""
        return f"only labels change; the model reads the original text.{each}"
    if acted(tally) < TOO_FEW:
        share = percent(acted(tally))
        return (
            f"changes {share} of the tokens, which is too little to make a difference in training."
        )
    kinds = [kind for kind in FRAGILE if acted(tally, kind) > FRAGILE_SHARE]
    if not kinds:
        return ""
    parts = ", ".join(
        f"{kind} ({tally.of(kind, 'changed') + tally.of(kind, 'removed'):,} of "
        f"{tally.of(kind, 'tokens'):,} tokens)"
        for kind in kinds
    )
    rules = ",".join(sorted(filter(None, map(FRAGILE.get, kinds))))
    return f"changes {parts}." + (f" To leave them alone, add --protect {rules}." if rules else "")


def acted(tally: KindTally, kind: str | None = None) -> float:
    """The share of tokens of a kind that were changed or removed; `kind` None: of all tokens."""
    return tally.share(kind, "changed") + tally.share(kind, "removed")


def percent(share: float) -> str:
    """A share in words; "-" for NaN, a share of nothing.

    Example:
        >>> percent(0.01234), percent(math.nan)
        ('1.23 %', '-')
    """
    return "-" if math.isnan(share) else f"{100 * share:.3g} %"
