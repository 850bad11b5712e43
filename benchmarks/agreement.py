"""How many decisions rounding turns: 16-bit and quantized weights against float32, full softmax.

Usage: python benchmarks/agreement.py --prior NAME --data FILE [--quantization 8bit,4bit,int8,fp8]
"""

from __future__ import annotations

import argparse
import copy

import torch
from shapes import add_inputs
from torch import Tensor

from toedit_collate import EditPolicy, Prior, edit_tokens
from toedit_collate.commands.bench import Inputs, full_softmax, read_inputs
from toedit_collate.config.console import quiet
from toedit_collate.config.policies import parse_policy
from toedit_collate.data import open_data


def decisions(prior: Prior, inputs: Inputs, policy: EditPolicy) -> tuple[Tensor, Tensor]:
    """Which tokens are scored, and which are selected: bool, one after another on the CPU."""
    results = [edit_tokens(prior, **batch, policy=policy) for batch in inputs.batches]
    scored, selected = (
        torch.cat([getattr(one, name).flatten().cpu() for one in results])
        for name in ("scored", "selected")
    )
    return scored, selected


@torch.no_grad()
def definition(inputs: Inputs) -> Tensor:
    """P of all tokens by float32 weights and a full softmax, row by row; 0 at first tokens."""
    model = copy.deepcopy(inputs.prior.model).float()
    found = []
    for number in range(len(inputs.batches)):
        batch = inputs.on_device(number)
        for row in range(inputs.B):
            one = {key: value[row : row + 1] for key, value in batch.items()}
            found += [torch.zeros(1), full_softmax(model, **one)[0].cpu()]
    return torch.cat(found).double()


def compare(selected: Tensor, p: Tensor, threshold: float) -> dict[str, float]:
    """Decisions of (n,) tokens against those by P."""
    turned = selected != (p >= threshold)
    away = (p[turned] - threshold).abs()
    return {
        "selected": float(selected.double().mean()),
        "turned": int(turned.sum()),
        "share": float(turned.double().mean()),
        "largest": float(away.max()) if len(away) else 0.0,
    }


def main(argv: list[str] | None = None) -> None:
    """Print a line for each kind of weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_inputs(parser)
    parser.add_argument("--quantization", default="", help="8bit,4bit,int8,fp8 or some of them")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    policy = parse_policy(args.policy)
    with quiet():
        prior = Prior.from_pretrained(args.prior, device=args.device)
        inputs = read_inputs(
            prior, open_data(args.data), B=args.batch_size, T=args.max_length, seed=0
        )
        scored, selected = decisions(prior, inputs, policy)
        p = definition(inputs)[scored]
        print(
            f"{len(p):,} tokens scored; by definition {(p >= policy.threshold).double().mean():.3%}"
        )
        print("weights      selected  turned     share  largest |P - threshold|")
        dtype = str(prior.model.dtype).removeprefix("torch.")
        rows = {dtype: selected[scored]}
        for name in filter(None, args.quantization.split(",")):
            try:
                other = Prior.from_pretrained(
                    args.prior, quantization=name, dtype=torch.bfloat16, device=args.device
                )
                rows[name] = decisions(other, inputs, policy)[1][scored]
            except Exception as error:  # of many kinds: a library or a GPU that is not there
                print(f"{name}: cannot be used here: {str(error).splitlines()[0]}")
        for name, found in rows.items():
            row = compare(found, p, policy.threshold)
            print(
                f"{name:12}{row['selected']:9.3%}{row['turned']:8,}{row['share']:10.4%}"
                f"{row['largest']:10.2g}"
            )


if __name__ == "__main__":
    main()
