"""Inputs for all benchmarks: random weights in the shapes of real models, or a prior and its text.

Random weights never give a token 0.99. So the trunk computes as usual, and prepared states replace
what it returns: with them, the probabilities of the observed tokens follow Table 8 of
arXiv:2412.14689, and their competitors are as uneven as in text.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toedit_collate import EditPolicy, Prior
from toedit_collate.commands.bench import (
    Batch,
    Inputs,
    Row,
    available_bytes,
    format_table,
    machine_facts,
    read_inputs,
)
from toedit_collate.commands.known_models import KNOWN_MODELS
from toedit_collate.config.console import quiet
from toedit_collate.config.policies import parse_policy
from toedit_collate.data import open_data
from toedit_collate.errors import UnusableError
from toedit_collate.prior.families import find_trunk, unwrap_model

_TINY = {
    "model_type": "llama", "hidden_size": 320, "num_hidden_layers": 6, "num_attention_heads": 5,
    "intermediate_size": 1024, "vocab_size": 8192, "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "llama3-8b": KNOWN_MODELS["meta-llama/meta-llama-3-8b"],
    "olmo-1b": KNOWN_MODELS["allenai/olmo-1b-hf"],
    "qwen2.5-0.5b": KNOWN_MODELS["qwen/qwen2.5-0.5b"],
    "tiny": _TINY,
}
# Per cent of all tokens by their probability. The shares of 0.0-0.1 and 0.9-1.0 (27.1) are the
# paper's, and about 12 % at 0.99 and above. The eight between are ours: a shallow U.
TABLE_8 = (
    (34.7, 0.0, 0.1), (8.5, 0.1, 0.2), (5.5, 0.2, 0.3), (4.5, 0.3, 0.4), (4.0, 0.4, 0.5),
    (3.8, 0.5, 0.6), (3.7, 0.6, 0.7), (3.8, 0.7, 0.8), (4.4, 0.8, 0.9), (15.1, 0.9, 0.99),
    (12.0, 0.99, 1.0),
)  # fmt: skip
# At both ends P and 1 - P are spread evenly over their orders of magnitude, down to these.
_LEAST, _LEAST_LEFT = 1e-4, 1e-3
# Standard deviation of the competitors' logits from one position to the next, fitted to a real
# prior of 10M weights. Zipf's law alone would make all positions alike, and early reject too easy.
_UNEVENNESS = 3.0
SELF_CHECK_TOKENS = 16  # with which a prior checks that it reads its model as the model does
_TILE_ELEMENTS = 2**23
_NEWTON_STEPS = 5  # three reach the precision of float32


@dataclass(frozen=True)
class Source:
    """Where batches come from: random weights in a shape, or a prior and its text."""

    prior: Prior
    name: str
    text: str | None = None
    direction: Tensor | None = None  # along which the head of random weights was shaped

    def inputs(self, B: int, T: int, seed: int = 0) -> tuple[Inputs, Tensor | None]:
        """Batches of B rows of up to T tokens, and states to put in place of the trunk's."""
        T = min(T, self.prior.max_length or T)
        if self.text is not None:
            return read_inputs(self.prior, open_data(self.text), B=B, T=T, seed=seed), None
        batch, states = calibrated_batch(self.prior, self.direction, B, T, seed)
        return Inputs(self.prior, [batch], B, T), states


def open_source(args: argparse.Namespace) -> Source:
    """The prior and text that were asked for, or random weights of `--shape`."""
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if args.prior is not None:
        prior = Prior.from_pretrained(args.prior, device=device)
        return Source(prior, f"{args.prior}, text of {args.data}", args.data)
    model: Any = random_model(args.shape, device, torch.bfloat16)
    direction = shape_head(model.get_output_embeddings().weight.detach())
    return Source(Prior(model), f"random weights in the shape of {args.shape}", None, direction)


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add the options that `run` reads."""
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--prior", help="a real prior, with --data, in place of a shape")
    parser.add_argument("--data", help="its text")
    parser.add_argument("--device")
    parser.add_argument("--policy", default="paper")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")


def run(
    parser: argparse.ArgumentParser,
    measure: Callable[[Inputs, EditPolicy, argparse.Namespace], Row],
    argv: list[str] | None = None,
) -> None:
    """Read the options, measure, and print the machine and a table."""
    add_inputs(parser)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    with quiet():
        source = open_source(args)
        inputs, states = source.inputs(args.batch_size, args.max_length)
        facts = machine_facts(source.prior.device, source.prior.model.dtype)
        facts |= {"prior": source.name, "policy": args.policy, "options": " ".join(sys.argv[1:])}
        print("\n".join(f"{name:10}  {value}" for name, value in facts.items()), flush=True)
        with states_replaced(source.prior, states):
            print(format_table(measure(inputs, parse_policy(args.policy), args)), flush=True)


def random_model(shape: str, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Any:
    """A causal language model of one of `SHAPES`.

    Raises:
        UnusableError: it does not fit into the memory that is free.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {key: value for key, value in SHAPES[shape].items() if key != "dtype"}
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, dtype=dtype)
    needed = sum(p.numel() * p.element_size() for p in empty.parameters())
    if needed > available_bytes(device):
        raise UnusableError(f"--shape {shape}: needs {needed / 2**30:.1f} GiB; use a smaller one")
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def calibrated_batch(
    prior: Prior, direction: Tensor | None, B: int, T: int, seed: int
) -> tuple[Batch, Tensor]:
    """Tokens as frequent as words are, and states (B, T, D) that predict them as in Table 8."""
    weight = prior.head.weight
    assert weight is not None
    assert direction is not None
    generator = torch.Generator().manual_seed(seed)
    frequencies = 1 / torch.arange(1, prior.vocab_size + 1, dtype=torch.float64)
    ids = torch.multinomial(frequencies, B * T, replacement=True, generator=generator).view(B, T)
    targets = table_8_targets(B * (T - 1), generator)
    found = calibrated_states(weight, direction, ids[:, 1:].reshape(-1), targets, generator)
    states = weight.new_zeros(B, T, weight.shape[1])
    states[:, :-1] = found.view(B, T - 1, -1)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
    return batch, states


def table_8_targets(num: int, generator: torch.Generator) -> Tensor:
    """Probabilities of `num` tokens as in Table 8, in random order: (num,) float64 on the CPU."""
    shares = torch.tensor([row[0] for row in TABLE_8], dtype=torch.float64) / 100
    ends = shares.cumsum(0)
    # One in each of `num` equal strata, so that small batches have these shares, too.
    place = (torch.randperm(num, generator=generator).double() + 0.5) / num
    row = torch.searchsorted(ends, place).clamp(max=len(TABLE_8) - 1)
    inside = ((place - (ends - shares)[row]) / shares[row]).clamp(0, 1)
    low, high = (torch.tensor([r[i] for r in TABLE_8], dtype=torch.float64)[row] for i in (1, 2))
    even = low + inside * (high - low)
    rare = _LEAST * (0.1 / _LEAST) ** inside
    left = torch.where(high == 1, _LEAST_LEFT, 1 - high).clamp(min=_LEAST_LEFT)
    sure = 1 - (1 - low) * (left / (1 - low)) ** inside
    return torch.where(low == 0, rare, torch.where(low >= 0.9, sure, even))


@torch.no_grad()
def shape_head(weight: Tensor) -> Tensor:
    """Give the rows of a vocabulary projection (V, D) a common direction g, in place.

    Along g, (D,) float32, row j has -log(j + 1), up to a factor: a state with the right component
    along g alone gives id j a probability in proportion to 1 / (j + 1), Zipf's law over the ids.
    """
    V, D = weight.shape
    generator = torch.Generator().manual_seed(D)
    g = torch.randn(D, generator=generator).to(weight.device)
    g /= g.norm()
    along = -torch.log(torch.arange(1, V + 1, device=weight.device).float())
    spread = weight[:4096].float().std()
    size = spread * math.sqrt(D) / 4  # entries of the size of the others
    for rows, a in zip(weight.split(4096), along.split(4096), strict=True):
        free = rows.to(torch.float32, copy=True)
        # A row of zeros (a padding id of tied embeddings) would equal its neighbours.
        blank = (~free.any(dim=-1)).nonzero().squeeze(-1)
        free[blank] = spread * torch.randn(len(blank), D, generator=generator).to(weight.device)
        free -= (free @ g).unsqueeze(-1) * g
        rows.copy_(free + size * a.unsqueeze(-1) * g)
    return g


@torch.no_grad()
def calibrated_states(
    weight: Tensor, g: Tensor, ids: Tensor, targets: Tensor, generator: torch.Generator
) -> Tensor:
    """Hidden states a * unit(w_y) + b * g + c * e that give the ids y the wanted probabilities.

    b makes the competitors follow Zipf's law. c, with a random direction e, makes them differ from
    one position to the next. a is solved for by Newton's method: log(P / (1 - P)) is a concave and
    growing function of a.

    Args:
        weight: (V, D), from `shape_head`.
        g: (D,) float32.
        ids: (n,) int64, the tokens to be predicted.
        targets: (n,) float64, their probabilities.
        generator: of the random directions, on the CPU.

    Returns:
        (n, D), in the dtype of `weight`.
    """
    V, D = weight.shape
    device = weight.device
    along = torch.cat([rows.float() @ g for rows in weight.split(4096)])
    b = math.log(V) / float(along[0] - along[-1])
    sample = weight[:4096].float()
    across = sample - (sample @ g).unsqueeze(-1) * g
    c = _UNEVENNESS / float(across.square().mean().sqrt())
    wanted = torch.logit(targets).float().to(device)
    rows_at_once = max(1, _TILE_ELEMENTS // V)
    pieces = []
    for y, logit in zip(ids.split(rows_at_once), wanted.split(rows_at_once), strict=True):
        own = y.to(device).unsqueeze(-1)
        unit = _across(weight[own.squeeze(-1)].float(), g)
        rest = b * g + c * _across(torch.randn(len(y), D, generator=generator).to(device), g)
        slopes, base = (
            torch.cat([h @ rows.float().T for rows in weight.split(4096)], dim=-1)
            for h in (unit, rest)
        )
        a = torch.zeros_like(own, dtype=torch.float32)
        for _ in range(_NEWTON_STEPS):
            logits = a * slopes + base
            own_logit = logits.gather(-1, own)
            logits.scatter_(-1, own, -math.inf)
            others = logits.logsumexp(-1, keepdim=True)
            share = logits.sub_(others).exp_()  # of each competitor among them
            slope = slopes.gather(-1, own) - (share * slopes).sum(-1, keepdim=True)
            a = a + (logit.unsqueeze(-1) - (own_logit - others)) / slope
        pieces.append((a * unit + rest).to(weight.dtype))
    return torch.cat(pieces)


def _across(vectors: Tensor, g: Tensor) -> Tensor:
    """Unit vectors without a component along g: (n, D)."""
    vectors = vectors - (vectors @ g).unsqueeze(-1) * g
    return vectors / vectors.norm(dim=-1, keepdim=True)


@contextmanager
def states_replaced(prior: Prior, states: Tensor | None) -> Iterator[None]:
    """The trunk computes, and returns prepared states (B, T, D); only without gradients.

    The batch must have no padding, and its rows must come in order.
    """
    if states is None:
        with nullcontext():
            yield
        return

    # Not compiled with the trunk: the compiler would leave out the work that is replaced.
    @torch.compiler.disable
    def replace(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        rows = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if torch.is_grad_enabled() or rows.numel() == SELF_CHECK_TOKENS:
            return None
        if rows.numel() != states.shape[0] * states.shape[1]:
            raise RuntimeError(f"{tuple(rows.shape)} tokens, but states {tuple(states.shape[:2])}")
        output.last_hidden_state = states.view(*rows.shape, -1)  # one row, or one a document
        return output

    trunk = find_trunk(unwrap_model(prior.model))
    handle = trunk.register_forward_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def scored_states(inputs: Inputs, most: int) -> tuple[Tensor, Tensor]:
    """The states of up to `most` labelled tokens, (n, D), and the tokens, (n,)."""
    states, ids, found = [], [], 0
    for number in range(len(inputs.batches)):
        batch = inputs.on_device(number)
        mask, labels = batch["attention_mask"], batch["labels"]
        hidden = inputs.trunk(
            input_ids=batch["input_ids"], attention_mask=mask, use_cache=False
        ).last_hidden_state
        scored = (mask[:, 1:] == 1) & (labels[:, 1:] != -100)
        states.append(hidden[:, :-1][scored])
        ids.append(batch["input_ids"][:, 1:][scored])
        found += len(ids[-1])
        if found >= most:
            break
    return torch.cat(states)[:most], torch.cat(ids)[:most]
