"""Other libraries' log P of observed tokens, where they are installed and run on the device.

All take states, (n, D), a projection, (V, D), and ids, (n,), and keep the (n, V) logits out of
memory; none can stop early. They know neither a scale nor a cap of the logits as we call them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LogProb = Callable[[Tensor, Tensor, Tensor], Tensor]


def installed_libraries(device: torch.device) -> dict[str, LogProb]:
    """By name, those that can be imported and run on `device`."""
    found: dict[str, LogProb] = {}
    loaders: list[tuple[str, Callable[[], LogProb], bool]] = [
        ("TRL, chunked log-probabilities", _trl, False),
        ("cut-cross-entropy", _cut_cross_entropy, True),
        ("Liger, fused linear cross-entropy", _liger, True),
    ]
    for name, load, needs_gpu in loaders:
        if needs_gpu and device.type != "cuda":
            continue
        try:
            found[name] = load()
        except (ImportError, RuntimeError, AttributeError):  # not there, or of another version
            continue
    return found


def _trl() -> LogProb:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    def logprob(states: Tensor, weight: Tensor, ids: Tensor) -> Tensor:
        # Its trainers take chunks of 8192 ids; of its outputs we want the first alone.
        return ChunkedLogProbFunction.apply(
            states, weight, None, ids, 1.0, 8192, None, 1.0, ()
        )[0]  # fmt: skip

    return logprob


def _cut_cross_entropy() -> LogProb:
    from cut_cross_entropy import linear_cross_entropy

    return lambda states, weight, ids: -linear_cross_entropy(states, weight, ids, reduction="none")


def _liger() -> LogProb:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return lambda states, weight, ids: (
        -liger_fused_linear_cross_entropy(states, weight, ids, reduction="none")
    )
