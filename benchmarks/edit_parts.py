"""The edit pass compared with the bare backbone, with each trick of it switched off.

Usage: python benchmarks/edit_parts.py --shape tiny | --prior NAME --data FILE [--policy POLICY]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from shapes import run, scored_states

from toedit_collate import EditPolicy, Prior, ToEditCollator
from toedit_collate.commands.bench import Inputs, Row, Variant, measure_edit, measure_training
from toedit_collate.head import kernels, logprob, predictions
from toedit_collate.head.logprob import Competitors
from toedit_collate.tokens import passes

TILES = (256, 512, 1024, 2048)
Switch = Callable[[], AbstractContextManager[None]]


@contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """While it lasts, `owner.name` is `value`.

    Raises:
        AttributeError: there is no such name: the package has changed, and this file must follow.
    """
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def no_early_reject() -> AbstractContextManager[None]:
    """Every scored position is projected on to the whole vocabulary."""
    score = predictions.score_observed
    return swapped(
        predictions,
        "score_observed",
        lambda *args, **settings: score(*args, **{**settings, "competitors": None}),
    )


def no_lazy_resample() -> AbstractContextManager[None]:
    """Every selected token is drawn."""

    def none_kept(uniforms: torch.Tensor, *args: Any, **settings: Any) -> torch.Tensor:
        return torch.zeros_like(uniforms, dtype=torch.bool)

    return swapped(predictions, "surely_kept", none_kept)


def padding_kept() -> AbstractContextManager[None]:
    """Documents of all lengths are padded to one rectangle for the backbone."""
    one_group = lambda lengths, cost: [list(range(len(lengths)))] if lengths else []  # noqa: E731
    return swapped(passes, "group_by_length", one_group)


def with_kernel(prior: Prior) -> AbstractContextManager[None]:
    """Log P by the GPU kernel."""
    return swapped(prior, "uses_kernel", True)


def first_tile(prior: Prior, competitors: Competitors | None) -> AbstractContextManager[None]:
    """Other ids are visited first."""
    return swapped(prior, "competitors", competitors)


def one_tile(prior: Prior, states: torch.Tensor, num_ids: int) -> Competitors:
    """The likeliest `num_ids` ids as one tile, measured on (n, D) states."""
    with (
        swapped(logprob, "ONLY_TILE_IDS", num_ids),
        swapped(logprob, "ONLY_TILE_SHARE", 0.0),
        swapped(logprob, "on_host", lambda _: False),
    ):
        found = logprob.measure_competitors(prior.head, states)
    assert found is not None
    return found


def variants(inputs: Inputs, policy: EditPolicy) -> dict[str, Variant]:
    """The edit with each trick off, by name. All make the same edit, but the one of all tokens."""
    prior = inputs.prior

    def edit(switch: Switch = nullcontext, policy: EditPolicy = policy) -> Variant:
        collator = ToEditCollator(prior, policy, base_collator=dict)

        def run_once(number: int) -> Any:
            collator.set_epoch(number // len(inputs.batches))
            with switch():
                return collator(inputs.batch(number)).to(prior.device)

        return run_once

    found = {
        "no early reject": edit(no_early_reject),
        "every selected token drawn": edit(no_lazy_resample),
        'every token drawn (region="all")': edit(
            policy=policy.replace(region="all", drop_below=None)
        ),
    }
    if any((batch["attention_mask"] == 0).any() for batch in inputs.batches):
        found["padding kept"] = edit(padding_kept)
    states, _ = scored_states(inputs, most=2048)
    for num_ids in TILES:
        if num_ids < prior.vocab_size:
            tile = one_tile(prior, states, num_ids)
            found[f"one first tile of {num_ids} ids"] = edit(lambda t=tile: first_tile(prior, t))
    if kernels.is_available(prior.device):
        found["Triton kernel"] = edit(lambda: with_kernel(prior))
    return found


def measure(inputs: Inputs, policy: EditPolicy, args: argparse.Namespace) -> Row:
    """The table."""
    if args.training:
        return measure_training(inputs, policy, rounds=args.rounds)
    more = {} if args.plain else variants(inputs, policy)
    return measure_edit(inputs, policy, rounds=args.rounds, more=more)


def make_parser() -> argparse.ArgumentParser:
    """The options of this script, next to those of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", action="store_true", help="all tricks on, as `toedit bench`")
    parser.add_argument("--training", action="store_true", help="training steps instead")
    return parser


if __name__ == "__main__":
    run(make_parser(), measure)
