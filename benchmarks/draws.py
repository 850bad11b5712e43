"""What drawing costs: the edit pass as a ratio to the prior's bare backbone, for many policies.

    python benchmarks/draws.py --prior FOLDER --data FILE.jsonl [--rows 8] [--length 512]

All cases run in each round, in one process and on one core. The clock counts processor time, so
that other programs disturb little. Printed: the median of the ratios of all rounds, their
quartiles, and the peak memory beyond that of the backbone.
"""

import argparse
import json
import re
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import AutoTokenizer

from toedit_collate import EditPolicy, Prior, edit_tokens
from toedit_collate.commands.bench import compare, ratio_rows
from toedit_collate.prior.families import find_trunk

SAMPLERS = {
    "top_k=8": {"top_k": 8},
    "top_k=64": {"top_k": 64},
    "full": {"sampler": "full"},
}
REGIONS = {
    "P >= 0.99": {},
    "P >= 0.9": {"threshold": 0.9},
    "P >= 0.5": {"threshold": 0.5},
    "P >= 0.1": {"threshold": 0.1},
    "every token": {"region": "all", "target": "labels"},
}


def load_rows(prior: str, data: str, rows: int, length: int) -> Tensor:
    """(rows, length) int64, from texts that are joined; no padding."""
    tokenizer = AutoTokenizer.from_pretrained(prior)
    ids: list[int] = []
    with open(data, encoding="utf-8") as lines:
        for line in lines:
            if len(ids) >= rows * length:
                return torch.tensor(ids[: rows * length]).view(rows, length)
            ids += tokenizer(json.loads(line)["text"])["input_ids"]
    raise SystemExit(f"{data} has {len(ids)} tokens, fewer than --rows {rows} x --length {length}")


def make_cases(prior: Prior, ids: Tensor, num_draws: list[int]) -> dict[str, Callable[[], object]]:
    """What is measured, by name; the first is what the others are compared with."""
    trunk = find_trunk(prior.model)

    @torch.no_grad()
    def backbone() -> object:
        return trunk(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)[0]

    @torch.no_grad()
    def softmax() -> object:
        return prior.model(input_ids=ids, use_cache=False).logits.float().softmax(-1)

    cases = {"backbone": backbone, "plain full softmax": softmax}
    for region, fields in REGIONS.items():
        for sampler, more in SAMPLERS.items():
            policy = EditPolicy(**fields, **more)
            cases[f"{region}, {sampler}"] = lambda policy=policy: edit_tokens(
                prior, ids, labels=ids, policy=policy
            )
    for number in num_draws:
        policy = EditPolicy.distill(num_draws=number)
        cases[f"every token, full, {number} draws"] = lambda policy=policy: edit_tokens(
            prior, ids, labels=ids, policy=policy
        )
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prior", required=True, help="folder of a causal language model")
    parser.add_argument("--data", required=True, help="JSON lines with a field `text`")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--num-draws", type=int, nargs="*", default=[64])
    parser.add_argument("--only", default="", help="measure the cases whose name matches this")
    args = parser.parse_args()
    torch.set_num_threads(1)
    prior = Prior.from_pretrained(args.prior, dtype=getattr(torch, args.dtype), device="cpu")
    ids = load_rows(args.prior, args.data, args.rows, args.length)
    cases = make_cases(prior, ids, args.num_draws)
    cases = {n: run for n, run in cases.items() if n == "backbone" or re.search(args.only, n)}
    peaks: dict[str, int] = {}
    variants = {name: lambda _, run=run: run() for name, run in cases.items()}
    times = compare(variants, prior.device, rounds=args.rounds, seconds=1e9, peaks=peaks)
    print(f"{args.rows} x {args.length} tokens, {args.dtype}, torch {torch.__version__}")
    for row in ratio_rows(times, "backbone"):
        extra = (peaks[row["name"]] - peaks["backbone"]) / 2**20
        spread = f"{row['low']:.2f} - {row['high']:.2f}"
        print(f"{row['name']:30} {row['ratio']:6.2f}  {spread}  {extra:8.1f} MiB more")


if __name__ == "__main__":
    main()
