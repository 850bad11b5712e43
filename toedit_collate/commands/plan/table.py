"""The estimate as a table, as lines for a config's header, and as data."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import Any

from .estimate import Estimate
from .times import HEAD_SHARE

_WIDTH = 100
_FIGURES = 3


def format_table(plan: Estimate) -> str:
    """What a person reads."""
    memory, times, run = plan.memory, plan.times, plan.run
    unit, size = _unit(memory.peak)
    lines = [
        f"{run.model}: {count(plan.counts.total)} parameters, {count(plan.counts.trainable)} "
        "trained",
        f"{place(plan)}; {run.B} rows of {run.T} tokens on each, {run.accumulation} batch"
        f"{'es' if run.accumulation > 1 else ''} to a step",
        "",
        f"{'':36}{unit} on each",
    ]
    what = _explanations(plan)
    for name, value in memory.parts.items():
        if value or name in what:
            extra = f"  {what[name]}" if name in what else ""
            lines.append(f"  {name:28}{value / size:12,.1f}{extra}")
    lines.append(f"  {'peak':28}{memory.peak / size:12,.1f}  {memory.peak_moment}")
    lines += ["", f"  {verdict(plan)}", ""]
    lines += [
        f"  {'time of a step':28}{duration(times.step):>12}  {_tokens(plan)}",
        f"  {'of it the edit pass':28}{times.edit_share:12.0%}",
    ]
    if times.total is not None:
        lines.append(
            f"  {'whole run':28}{duration(times.total):>12}  {times.num_steps:,} steps"
            + (f", {run.generations} times" if run.generations > 1 else "")
        )
    lines.append("")
    for note in (_assumptions(plan), *plan.notes):
        lines += textwrap.wrap(note, _WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines)


def header_lines(plan: Estimate) -> list[str]:
    """The lines for the top of a config, which are the same wherever they are computed."""
    memory, times = plan.memory, plan.times
    unit, size = _unit(memory.peak)
    parts = ", ".join(f"{name} {value / size:.1f}" for name, value in memory.parts.items() if value)
    fits = {True: "fits", False: "does not fit", None: ""}[plan.fits]
    of_card = f" of {plan.card.memory_gib:g} GiB ({fits})" if fits else ""
    time = f"{duration(times.step)} a step, {times.tokens_per_second:,.0f} tokens/s"
    if plan.run.prior is not None:
        time += f", {times.edit_share:.0%} of it the edit pass"
    if times.total is not None:
        time += f"; {duration(times.total)} in all"
    text = (
        f"{count(plan.counts.total)} parameters, {count(plan.counts.trainable)} trained. "
        f"{unit} on each: {parts}; peak {memory.peak / size:.1f}{of_card}. "
        f"{time}. Estimated at {plan.mfu:.0%} of the {'card' if plan.card.is_gpu else 'CPU'}'s "
        "peak, not measured."
    )
    wrapped = textwrap.wrap(
        text, _WIDTH - len("# plan: "), break_long_words=False, break_on_hyphens=False
    )
    return [f"# plan: {line}" for line in wrapped]


def record(plan: Estimate) -> dict[str, Any]:
    """All figures, as JSON has them; bytes and seconds."""
    times = plan.times
    return {
        "config": asdict(plan.run),
        "card": asdict(plan.card),
        "sharding": asdict(plan.sharding),
        "assumed": {"mfu": plan.mfu, "head_share": HEAD_SHARE},
        "parameters": {"total": plan.counts.total, "trainable": plan.counts.trainable},
        "prior_parameters": plan.prior.counts.total if plan.prior else 0,
        "bytes": plan.memory.parts,
        "moments": plan.memory.moments,
        "peak_bytes": plan.memory.peak,
        "needed_gib": plan.needed_gib,
        "fits": plan.fits,
        "seconds": {
            "step": times.step,
            "training": times.train,
            "edit_pass": times.edit,
            "run": times.total,
        },
        "edit_share": times.edit_share,
        "tokens_per_second": times.tokens_per_second,
        "tokens_per_step": times.tokens_per_step,
        "num_steps": times.num_steps,
        "notes": list(plan.notes),
    }


def place(plan: Estimate) -> str:
    """The cards, and how the model is spread over them."""
    number = plan.sharding.num_gpus
    spread = f", {plan.sharding}" if number > 1 else ""
    return f"{number} x {plan.card.name}{spread}"


def verdict(plan: Estimate) -> str:
    """Whether it fits."""
    if plan.fits is None:
        return "no card: whether it fits is not said"
    word = "fits" if plan.fits else "DOES NOT FIT"
    return (
        f"{word}: {plan.needed_gib:.1f} of {plan.card.memory_gib:g} GiB, with 5 % for fragments "
        "and 1 GiB for CUDA"
    )


def count(number: int) -> str:
    """A number of weights as text.

    Example:
        >>> count(8_030_261_248), count(20_971_520), count(508_544)
        ('8.03 B', '21.0 M', '509 k')
    """
    for name, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            digits = max(0, _FIGURES - len(str(int(number / size))))
            return f"{number / size:.{digits}f} {name}"
    return str(number)


def duration(seconds: float) -> str:
    """A time as text.

    Example:
        >>> duration(0.0123), duration(4.56), duration(500), duration(9000), duration(1e6)
        ('12 ms', '4.6 s', '8.3 min', '2.5 h', '11.6 days')
    """
    if seconds < 1:
        return f"{seconds * 1000:.{0 if seconds >= 0.01 else 1}f} ms"
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


def _unit(num_bytes: float) -> tuple[str, int]:
    return ("GiB", 2**30) if num_bytes >= 2**30 else ("MiB", 2**20)


def _tokens(plan: Estimate) -> str:
    times = plan.times
    return f"{times.tokens_per_second:,.0f} tokens/s, {times.tokens_per_step:,} tokens in a step"


def _explanations(plan: Estimate) -> dict[str, str]:
    run = plan.run
    what = {"optimizer": run.optimizer}
    if run.quantization:
        what["weights"] = f"layers in {run.quantization}"
    what["activations"] = "layers checkpointed" if run.checkpointing else "not checkpointed"
    what["prior"] = {None: "no editing", "shared": "shared: the trainee's frozen base"}.get(
        run.prior, str(run.prior)
    )
    if run.prior is not None:
        what["edit pass"] = "over before the forward pass begins"
    if plan.memory.parts["gathered"]:
        what["gathered"] = "whole weights of two layers and of all outside them"
    return what


def _assumptions(plan: Estimate) -> str:
    return (
        f"Assumed: {plan.mfu:.0%} of {plan.card.name}'s peak (--mfu), communication hidden; the "
        f"edit pass computes {HEAD_SHARE:.0%} of the vocabulary projection. Weights are counted; "
        "what autograd saves follows formulas that were compared with PyTorch on CPUs; no figure "
        "was measured on a GPU."
    )
