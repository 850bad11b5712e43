"""How much of the vocabulary projection the edit pass computes, by policy and by first tile.

Usage: python benchmarks/head_work.py --prior NAME --data FILE

Work: matrix products with the head, in passes of all scored tokens over the whole head. These are
the figures that `toedit plan` assumes. Open: the share of positions that a partial sum over the
likeliest ids leaves undecided, computed from all logits, apart from the fast path.
"""

from __future__ import annotations

import argparse
import math
import warnings

import torch
from shapes import add_inputs, open_source, scored_states, states_replaced
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from toedit_collate import EditPolicy, edit_tokens
from toedit_collate.commands.bench import Inputs
from toedit_collate.config.console import quiet
from toedit_collate.config.policies import parse_policy, short_name
from toedit_collate.head.projection import Head

POLICIES = (
    "threshold=0.999", "paper", "reference_code", "threshold=0.9", "threshold=0.5",
    "threshold=0.1", "threshold=0.01", "region=below threshold=0.1", "region=below threshold=0.01",
    "region=all", "region=all sampler=full", "distill",
)  # fmt: skip
_TILE_ELEMENTS = 2**22


def head_work(inputs: Inputs, policy: EditPolicy) -> tuple[float, float]:
    """Share of selected tokens, and passes of the scored tokens over the whole head."""
    flops = FlopCounterMode(display=False)
    inside = [0, 0]  # operations of the backbone; at its start

    def start(*_: object) -> None:
        inside[1] = flops.get_total_flops()

    def stop(*_: object) -> None:
        inside[0] += flops.get_total_flops() - inside[1]

    hooks = (
        inputs.trunk.register_forward_pre_hook(start),
        inputs.trunk.register_forward_hook(stop),
    )
    selected = scored = 0
    with flops, torch.no_grad():
        for batch in inputs.batches:
            result = edit_tokens(inputs.prior, **batch, policy=policy)
            selected += int(result.selected.sum())
            scored += int(result.scored.sum())
    for hook in hooks:
        hook.remove()
    V, D = inputs.prior.model.get_output_embeddings().weight.shape
    return selected / scored, (flops.get_total_flops() - inside[0]) / (2 * V * D * scored)


@torch.no_grad()
def count_open(head: Head, hidden: Tensor, ids: Tensor, order: Tensor, cut: float) -> Tensor:
    """Positions that are still open after 1, 2, ..., V ids in some order: (V,) int64.

    After the ids S, P(y) is at most e^l_y / (e^l_y + sum over S without y of e^l_j).

    Args:
        head: of the prior; V ids.
        hidden: (n, D), the states that predict `ids`.
        ids: (n,) int64.
        order: (V,) int64, in which the ids are visited.
        cut: log of the threshold.
    """
    counts = torch.zeros(len(order), dtype=torch.int64, device=hidden.device)
    rows = max(1, _TILE_ELEMENTS // len(order))
    for h, i in zip(hidden.split(rows), ids.split(rows), strict=True):
        own = i.unsqueeze(-1)
        logits = head.logits(h).double()
        odds = (logits - logits.gather(-1, own)).exp_().scatter_(-1, own, 0.0)
        counts += (-torch.log1p(odds[:, order].cumsum(-1)) >= cut).sum(0)
    return counts


@torch.no_grad()
def likelihood_order(head: Head, hidden: Tensor) -> Tensor:
    """The ids by their mean probability after some states, the likeliest first: (V,) int64."""
    mean = torch.zeros(head.vocab_size, dtype=torch.float64, device=hidden.device)
    for h in hidden.split(max(1, _TILE_ELEMENTS // head.vocab_size)):
        mean += head.logits(h).softmax(-1).double().sum(0)
    return mean.argsort(descending=True, stable=True)


def main(argv: list[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_inputs(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = open_source(args)
        inputs, states = source.inputs(args.batch_size, args.max_length)
        print(source.name)
        with states_replaced(source.prior, states):
            print(f"{'policy':32}selected   work")
            for text in POLICIES:
                policy = parse_policy(text)
                selected, work = head_work(inputs, policy)
                print(f"{short_name(policy):32.32}{selected:8.1%}  {work:5.2f}", flush=True)
            hidden, ids = scored_states(inputs, most=16384)
            head = source.prior.head
            # Even positions tell the order, odd ones are counted.
            order = likelihood_order(head, hidden[::2])
            cut = math.log(parse_policy(args.policy).threshold)
            open_after = count_open(head, hidden[1::2], ids[1::2], order, cut)
        print(f"\n{args.policy}, {len(ids[1::2]):,} positions\nlikeliest ids  open")
        for size in (*(2**n for n in range(6, 20) if 2**n < len(order)), len(order)):
            print(f"{size:13,}  {float(open_after[size - 1]) / len(ids[1::2]):.1%}")


if __name__ == "__main__":
    main()
