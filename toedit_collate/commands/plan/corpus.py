"""`toedit plan --corpus`: what it takes to edit a corpus once, computed on paper."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...config.nearest import did_you_mean
from ...errors import UnusableError
from ...stores.cache.store import FILLED_SEGMENT_BYTES
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
    "task_minutes": 30,
}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
# From the least to the most that was measured (docs/figures.md): bytes of the cache a token, and
# the share of tokens that is changed.
_CACHE_BYTES = {"paper": (2, 6), "reference_code": (14, 40)}
_CHANGED = {"paper": (0.00004, 0.0007), "reference_code": (0.0007, 0.009)}
_BYTES_A_DOCUMENT, _BYTES_A_CHANGE = 8, 4  # of a journal
# What a process that reads a cache holds of each document: keys, checks, two counts, and an index.
_INDEX_BYTES = 8 + 8 + 4 + 4 + 12
# English in a vocabulary of 128,000, roughly.
_TEXT_BYTES = 4.5
# 419 unexpected interruptions of 16,384 GPUs in 54 days (The Llama 3 Herd of Models, table 5).
_GPU_HOURS_AN_INTERRUPTION = 54 * 24 * 16_384 / 419
# At which a process reads, and checks, the whole of a cache before it looks anything up.
_READ_BYTES_A_SECOND = 1e9


@dataclass(frozen=True)
class CorpusPlan:
    """What editing a corpus once takes.

    Attributes:
        tokens: in the corpus.
        gpus: that share the work.
        tokens_per_second: of one GPU.
        hours: of all GPUs together, side by side.
        gpu_hours: summed over them.
        task_minutes: that a task takes, on one GPU.
        tasks: that many, of one GPU each.
        interruptions: of GPUs, hosts and networks, to be expected in all.
        lost_gpu_hours: work that they undo: half a task each.
        prior_bytes: weights of the prior on each GPU, in bfloat16.
        load_bytes_per_second: at which all GPUs together read the prior, at the start of each task.
        text_bytes: of the edited texts, not compressed.
        cache_bytes: of the decisions, least and most.
        cache_files: least and most.
        cache_memory_bytes: of each process that reads the whole cache.
        cache_open_hours: until it has read and checked it, least and most.
        journal_bytes: of one generation, least and most.
    """

    tokens: int
    gpus: int
    tokens_per_second: float
    hours: float
    gpu_hours: float
    task_minutes: int
    tasks: int
    interruptions: float
    lost_gpu_hours: float
    prior_bytes: float
    load_bytes_per_second: float
    text_bytes: float
    cache_bytes: tuple[float, float]
    cache_files: tuple[int, int]
    cache_memory_bytes: float
    cache_open_hours: tuple[float, float]
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
        fields: prior, edit_policy (paper or reference_code), max_length (tokens of a row),
            document_length (tokens of a document, on average), and task_minutes (of a task on one
            GPU, which begins anew when it is interrupted).

    Raises:
        UnusableError: a value can't be used.

    Example:
        >>> from .cards import find_card
        >>> plan = plan_corpus("1T", find_card("h100"), 256, 0.4, {})
        >>> round(plan.hours), plan.tasks
        (39, 20193)
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
    for name in ("max_length", "document_length", "task_minutes"):
        if not isinstance(settings[name], int) or settings[name] < 1:
            raise UnusableError(f"--{name} {settings[name]}: must be a whole number from 1")
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
    cache = tuple(each * float(tokens) for each in _CACHE_BYTES[policy])
    task_seconds = 60.0 * settings["task_minutes"]
    tasks = math.ceil(seconds / task_seconds)
    gpu_hours = seconds / 3600
    interruptions = gpu_hours / _GPU_HOURS_AN_INTERRUPTION
    prior_bytes = counts.total * 2.0
    return CorpusPlan(
        tokens=tokens,
        gpus=gpus,
        tokens_per_second=speed,
        hours=gpu_hours / gpus,
        gpu_hours=gpu_hours,
        task_minutes=settings["task_minutes"],
        tasks=tasks,
        interruptions=interruptions,
        lost_gpu_hours=interruptions * task_seconds / 2 / 3600,
        prior_bytes=prior_bytes,
        load_bytes_per_second=min(gpus, tasks) * prior_bytes / task_seconds,
        text_bytes=_TEXT_BYTES * tokens,
        cache_bytes=(cache[0], cache[1]),
        cache_files=(_num_files(cache[0], tasks), _num_files(cache[1], tasks)),
        cache_memory_bytes=_INDEX_BYTES * documents,
        cache_open_hours=(
            cache[0] / _READ_BYTES_A_SECOND / 3600, cache[1] / _READ_BYTES_A_SECOND / 3600
        ),
        journal_bytes=(low, high),
    )  # fmt: skip


def _num_files(cache_bytes: float, tasks: int) -> int:
    """Segments of a cache that tasks fill, each its own."""
    return tasks * math.ceil(cache_bytes / tasks / FILLED_SEGMENT_BYTES)


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
    files, opening = plan.cache_files, plan.cache_open_hours
    rows = {
        "tokens of the corpus": f"{plan.tokens:.3g}",
        "prior's weights on each GPU": f"{plan.prior_bytes / 2**30:.1f} GiB in bfloat16",
        "tokens/s of one GPU": f"{plan.tokens_per_second:,.0f}",
        f"hours of {plan.gpus} x {card.name}": f"{plan.hours:,.1f}",
        "GPU hours": f"{plan.gpu_hours:,.0f}",
        f"tasks of {plan.task_minutes} minutes": (
            f"{plan.tasks:,}, of {plan.tokens / plan.tasks:.3g} tokens"
        ),
        "interruptions to expect": (
            f"{plan.interruptions:.2g}, and {plan.lost_gpu_hours:.2g} GPU hours lost by them"
        ),
        "to load the prior": f"{_bytes(plan.load_bytes_per_second)}/s in all, from near the GPUs",
        "edited texts": _bytes(plan.text_bytes),
        "decision cache": f"{_span(plan.cache_bytes)}, in {files[0]:,} to {files[1]:,} files",
        "each process that reads it": (
            f"{_bytes(plan.cache_memory_bytes)} of memory, "
            f"{opening[0]:.2g} to {opening[1]:.2g} hours until it is open"
        ),
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
