"""How often the host waits for a batch on the pretend GPU, which is installed, by policy."""

from __future__ import annotations

import sys
import tempfile

import pretend_gpu
import torch
from conftest import likely_ids, make_llama, make_tokenizer
from tokenizer_pairs import make

from toedit_collate import (
    DecisionCache,
    EditPolicy,
    Journal,
    Prior,
    ToEditCollator,
    edit_tokens,
)

POLICIES = {
    "paper": EditPolicy(),
    "half": EditPolicy(threshold=0.5),
    "full": EditPolicy(threshold=0.5, sampler="full", temperature=1.3),
    "top_p": EditPolicy(threshold=0.5, sampler="top_p"),
    "below": EditPolicy(region="below", threshold=0.1),
    "all": EditPolicy(region="all"),
    "distill": EditPolicy.distill(num_draws=4),
    "drop_below": EditPolicy(threshold=0.5, drop_below=0.01),
}


def count(function) -> int:
    function()  # measures the likely competitors
    pretend_gpu.WAITS.clear()
    function()
    for place in pretend_gpu.WAITS:
        print(place, file=sys.stderr)
    return len(pretend_gpu.WAITS)


def count_waits() -> dict[str, tuple[int, int | None]]:
    """How often it waits in a training loop, and in `edit_tokens` with results on the CPU."""
    ids = likely_ids(make_llama(), 6, 40)
    prior = Prior(make_llama().cuda(), make_tokenizer())
    found = {}

    def of_collator(policy, **stores):
        collator = ToEditCollator(prior, policy, base_collator=dict, **stores)
        batches = iter([ids, ids if "cache" in stores else ids.flip(0).roll(3, 1)])

        def step():
            batch = next(batches)
            return collator({"input_ids": batch, "labels": batch.clone()}).to("cuda")

        return count(step)

    for name, policy in POLICIES.items():
        print(name, file=sys.stderr)
        at_home = count(lambda policy=policy: edit_tokens(prior, ids, labels=ids, policy=policy))
        found[name] = (of_collator(policy), at_home)
    # A text of twice the length, too: the waits must not grow with it.
    own, other = make("coarse"), make("byte-level")
    aligned = Prior(make_llama(3, vocab_size=len(own)).cuda(), own).aligned_to(other)
    for name in ("half", "all"):
        print("aligned", name, file=sys.stderr)
        counts = []
        for repeats in (4, 8):
            text = torch.tensor([other("the quick brown fox jumps " * repeats)["input_ids"]] * 2)
            policy = POLICIES[name]
            counts.append(
                count(
                    lambda text=text, policy=policy: edit_tokens(
                        aligned, text, labels=text, policy=policy
                    )
                )
            )
        found[f"aligned, {name}"] = counts
    print("stores", file=sys.stderr)
    found["cache"] = (of_collator(POLICIES["half"], cache=DecisionCache()), None)
    with tempfile.TemporaryDirectory() as folder:
        found["journal"] = (of_collator(POLICIES["half"], journal=Journal(folder)), None)
    return found
