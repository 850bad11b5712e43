"""What drawing costs: the edit pass as a ratio to the prior's bare backbone, for many policies.

    python benchmarks/draws.py --prior FOLDER --data FILE.jsonl [--rows 8] [--length 512]

All cases run one after the other in each round, in one process and on one core. The clock counts
processor time, so that other programs disturb little. A ratio is that of the medians.
"""

import argparse
import json
import re
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import AutoTokenizer

from toedit_collate import EditPolicy, Prior, edit_tokens
from toedit_collate.prior.families import find_trunk

SAMPLERS = {
    "top_k=8": {"top_k": 8},
    "top_k=64": {"top_k": 64},
    "top_p=0.9": {"sampler": "top_p", "top_p": 0.9},
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
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(args.rounds + 1):
        for name, run in cases.items():
            begin = time.process_time()
            run()
            seconds[name].append(time.process_time() - begin)
    print(f"{args.rows} x {args.length} tokens, {args.dtype}, torch {torch.__version__}")
    backbone = statistics.median(seconds["backbone"][1:])  # the first round warms up
    for name, took in seconds.items():
        middle = statistics.median(took[1:])
        print(f"{name:45s} {1e3 * middle:8.1f} ms {middle / backbone:6.2f}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
