"""`toedit plan --corpus`: what it takes to edit a corpus once, computed on paper."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...tools.errors import UnusableError
from ...tools.nearest import did_you_mean
from .cards import Card
from .layers import layers_of
from .models import find_config
from .parameters import count_parameters
from .times import HEAD_SHARE, forward_flops

_DEFAULTS = {
    "prior": "meta-llama/Meta-Llama-3-8B",
    "edit_policy": "paper",
    "max_length": 2048,
    "document_length": 1000,
}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
# From the least to the most that was measured (docs/figures.md): bytes of the cache a token, and
# the share of tokens that is changed.
_CACHE_BYTES = {"paper": (2, 6), "reference_code": (14, 40)}
_CHANGED = {"paper": (0.00004, 0.0007), "reference_code": (0.0007, 0.009)}
_BYTES_A_DOCUMENT, _BYTES_A_CHANGE = 8, 4  # of a journal


@dataclass(frozen=True)
class CorpusPlan:
    """What editing a corpus once takes.

    Attributes:
        tokens: in the corpus.
        gpus: that share the work.
        tokens_per_second: of one GPU.
        hours: of all GPUs together, side by side.
        gpu_hours: summed over them.
        prior_gib: weights of the prior on each GPU, in bfloat16.
        cache_bytes: of the decisions, least and most.
        journal_bytes: of one generation, least and most.
    """

    tokens: int
    gpus: int
    tokens_per_second: float
    hours: float
    gpu_hours: float
    prior_gib: float
    cache_bytes: tuple[float, float]
    journal_bytes: tuple[float, float]


def plan_corpus(
    corpus: str, card: Card, gpus: int, mfu: float, fields: Mapping[str, Any]
) -> CorpusPlan:
    """Compute it.

    Args:
        corpus: a number of tokens, as in 1T, 300B or 5e9.
        card: the GPU.
        gpus: how many.
        mfu: share of the card's peak that is reached.
        fields: prior, edit_policy (paper or reference_code), max_length (tokens of a row), and
            document_length (tokens of a document, on average).

    Raises:
        UnusableError: a value can't be used.

    Example:
        >>> from .cards import find_card
        >>> plan = plan_corpus("1T", find_card("h100"), 256, 0.4, {})
        >>> round(plan.hours), round(plan.prior_gib)
        (39, 15)
    """
    for name in fields:
        if name not in _DEFAULTS:
            raise UnusableError(
                f"--{name}: not a field of a corpus plan; {did_you_mean(name, _DEFAULTS)}"
            )
    settings: dict[str, Any] = {**_DEFAULTS, **fields}
    policy = settings["edit_policy"]
    if policy not in _CACHE_BYTES:
        raise UnusableError(
            f"--edit_policy {policy}: bytes were measured for {' and '.join(_CACHE_BYTES)} only"
        )
    for name in ("max_length", "document_length"):
        if not isinstance(settings[name], int) or settings[name] < 1:
            raise UnusableError(f"--{name} {settings[name]}: must be a number of tokens from 1")
    tokens = read_tokens(corpus)
    config = find_config(settings["prior"], {}, field="prior")
    counts = count_parameters(config)
    length = min(settings["max_length"], settings["document_length"])
    flops = forward_flops(layers_of(config), counts.linear, length)
    each = flops + 2.0 * HEAD_SHARE * counts.head
    speed = 1e12 * mfu * card.tflops_bf16 / each
    seconds = tokens / speed
    documents = tokens / settings["document_length"]
    low, high = (
        _BYTES_A_DOCUMENT * documents + _BYTES_A_CHANGE * share * tokens
        for share in _CHANGED[policy]
    )
    least, most = _CACHE_BYTES[policy]
    return CorpusPlan(
        tokens=tokens,
        gpus=gpus,
        tokens_per_second=speed,
        hours=seconds / gpus / 3600,
        gpu_hours=seconds / 3600,
        prior_gib=counts.total * 2 / 2**30,
        cache_bytes=(least * float(tokens), most * float(tokens)),
        journal_bytes=(low, high),
    )


def read_tokens(text: str) -> int:
    """A number of tokens.

    Raises:
        UnusableError: it is none.

    Example:
        >>> read_tokens("1T"), read_tokens("2.5B"), read_tokens("5e9")
        (1000000000000, 2500000000, 5000000000)
    """
    match = re.fullmatch(r"([\d.]+(?:e\d+)?)([KMBT]?)", text.strip(), re.IGNORECASE)
    try:
        number = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    except ValueError:
        number = 0
    if number < 1:
        raise UnusableError(f"--corpus {text}: must be a number of tokens, as in 1T, 300B or 5e9")
    return number


def format_corpus(plan: CorpusPlan, card: Card, mfu: float) -> str:
    """The plan as lines of text."""
    rows = {
        "tokens of the corpus": f"{plan.tokens:.3g}",
        "prior's weights on each GPU": f"{plan.prior_gib:.1f} GiB in bfloat16",
        "tokens/s of one GPU": f"{plan.tokens_per_second:,.0f}",
        f"hours of {plan.gpus} x {card.name}": f"{plan.hours:,.1f}",
        "GPU hours": f"{plan.gpu_hours:,.0f}",
        "decision cache": _span(plan.cache_bytes),
        "journal of one generation": _span(plan.journal_bytes),
    }
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {value}" for name, value in rows.items()]
    return "\n".join([*lines, f"Computed at {mfu:.0%} of the card's peak, not measured."])


def _span(span: tuple[float, float]) -> str:
    return f"{_bytes(span[0])} to {_bytes(span[1])}"


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.3g} {unit}"
