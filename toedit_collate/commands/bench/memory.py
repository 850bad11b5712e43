"""The part `memory`: how much more memory the edit takes at its peak than the bare trunk."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...policy import EditPolicy
from ..measuring.inputs import Inputs
from ..measuring.machine import is_out_of_memory
from ..measuring.memory import peak_bytes
from .passes import (
    OURS,
    PLAIN,
    TRUNK,
    WHOLE_HEAD,
    bare_trunk,
    make_collator,
    ours,
    plain,
    plain_fits,
    plain_left_out,
)
from .switches import no_early_reject
from .table import Column, Row, Section

_MIB = 2**20


def measure_memory(inputs: Inputs, policy: EditPolicy) -> Section:
    """Compare the peaks of one batch."""
    collator = make_collator(inputs, policy)

    def whole_head() -> object:
        with no_early_reject():
            return ours(inputs, collator, 0)

    functions: dict[str, Callable[[], object]] = {
        TRUNK: lambda: bare_trunk(inputs, 0),
        PLAIN: lambda: plain(inputs, policy, 0),
        OURS: lambda: ours(inputs, collator, 0),
        WHOLE_HEAD: whole_head,
    }
    if not plain_fits(inputs):
        del functions[PLAIN]
    section = Section(
        "memory",
        f"Peak memory for a batch of {inputs.size}, beyond weights",
        [Column("MiB", "{peak_mib:,.1f}"), Column("more than the backbone", "{extra_mib:+,.1f}")],
        notes=[_how(inputs.device)],
    )
    bare = 0.0
    with inputs.in_place():
        ours(inputs, collator, 0)  # what is kept from the first edit on is no peak
        for name, function in functions.items():
            try:
                peak = peak_bytes(function, inputs.device) / _MIB
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                section.rows.append(Row(name, text="out of memory"))
                continue
            if name == TRUNK:
                bare = peak
                section.rows.append(Row(name, {"peak_mib": peak}))
                continue
            section.rows.append(Row(name, {"peak_mib": peak, "extra_mib": peak - bare}))
    if PLAIN not in functions:
        section.rows.append(plain_left_out(inputs))
    return section


def _how(device: torch.device) -> str:
    if device.type == "cuda":
        return "By torch.cuda.max_memory_allocated."
    return (
        "All tensors alive at once; what an operation takes and gives back inside itself is not "
        "seen."
    )
