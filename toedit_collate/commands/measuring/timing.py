"""Paired timing: in each round every variant runs once, and ratios are taken within a round.

A machine that slows down for a while slows all variants of a round, so that ratios hold where
milliseconds do not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .machine import free_memory, is_out_of_memory, synchronize

Variant = Callable[[int], object]
"""Takes the number of the round; what it returns is thrown away."""

MIN_PAIRS = 5
_WARM_UPS = {"cuda": 3}  # rounds, in which kernels are chosen; elsewhere one


@dataclass(frozen=True)
class Quartiles:
    """Median and quartiles of some figures."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: list[float]) -> Quartiles:
        """Of at least one figure."""
        if len(figures) == 1:
            return cls(figures[0], figures[0], figures[0])
        low, median, high = statistics.quantiles(figures, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Comparison:
    """Times of several variants, by `clock_of` their device.

    Attributes:
        seconds: of each variant, one figure for each round.
        out_of_memory: names of the variants that could not run.
    """

    seconds: dict[str, list[float]]
    out_of_memory: list[str]

    def ratios(self, name: str, baseline: str) -> list[float]:
        """Time of one variant / time of another, for each round."""
        pairs = zip(self.seconds[name], self.seconds[baseline], strict=True)
        return [ours / theirs for ours, theirs in pairs]

    def milliseconds(self, name: str) -> float:
        """Median."""
        return 1000 * statistics.median(self.seconds[name])


def compare(
    variants: Mapping[str, Variant],
    device: torch.device,
    *,
    pairs: int,
    seconds: float,
    least: int = MIN_PAIRS,
) -> Comparison:
    """Time variants against each other.

    Args:
        variants: by name; one that runs out of memory is dropped.
        device: to wait for before and after each.
        pairs: most rounds.
        seconds: after these, `least` rounds are enough.
        least: fewest rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    failed = []
    started = 0.0
    warm_ups = _WARM_UPS.get(device.type, 1)
    for number in range(-warm_ups, max(pairs, least)):
        if number == 0:
            started = time.perf_counter()
        if number >= least and time.perf_counter() - started > seconds:
            break
        for name in _order(list(times), number):
            try:
                elapsed = _seconds(variants[name], number + warm_ups, device)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                elapsed = None
            if elapsed is None:  # out here, where no traceback holds what was too much
                del times[name]
                failed.append(name)
                free_memory(device)
            elif number >= 0:
                times[name].append(elapsed)
    return Comparison(times, failed)


def _order(names: list[str], number: int) -> list[str]:
    """Another one each round, so that none always follows the same other one."""
    first = number % max(len(names), 1)
    names = names[first:] + names[:first]
    return names[::-1] if number % 2 else names


def clock_of(device: torch.device) -> tuple[str, Callable[[], float]]:
    """What times are taken by, in words, and a function that gives seconds.

    With one thread on a CPU, the time of this process is what the wall would show on a machine
    that has nothing else to do; on others, it alone is of use.
    """
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return "of this process (one thread)", time.process_time
    return "by the clock on the wall", time.perf_counter


def _seconds(variant: Variant, number: int, device: torch.device) -> float:
    _, clock = clock_of(device)
    synchronize(device)
    started = clock()
    variant(number)
    synchronize(device)
    return clock() - started
