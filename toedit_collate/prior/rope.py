"""Rotary positions that depend on the length of a pass: which documents may share one.

With LongRoPE (Phi-3) and dynamic NTK scaling, transformers chooses the frequencies by the longest
position of the whole pass. So a short document would be scored differently next to a long one.
Documents share a pass only where the frequencies are the same for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def length_class(config: Any) -> Callable[[int], int] | None:
    """Documents share a pass only if this function of their lengths agrees; None: all may."""
    config = config.get_text_config()
    switches, grows = set(), set()
    for rope in _ropes(config):
        kind = str(rope.get("rope_type", rope.get("type", "")))
        original = (
            rope.get("original_max_position_embeddings")
            or getattr(config, "original_max_position_embeddings", None)
            or getattr(config, "max_position_embeddings", None)
        )
        if not isinstance(original, int):
            continue
        if kind == "longrope":
            switches.add(original)
        elif "dynamic" in kind:
            grows.add(original)
    if not switches and not grows:
        return None

    def class_of(length: int) -> int:
        # Beyond the original length, dynamic frequencies differ from each length to the next.
        longest = length if any(length > original for original in grows) else 0
        return 2 * longest + sum(length > original for original in switches)

    return class_of


def _ropes(config: Any) -> Iterator[dict[str, Any]]:
    """The settings of each kind of rotary positions that a model has."""
    for name in ("rope_parameters", "rope_scaling"):
        found = getattr(config, name, None)
        if not isinstance(found, dict):
            continue
        yield found
        yield from (value for value in found.values() if isinstance(value, dict))


@contextmanager
def rope_as_new(trunk: nn.Module) -> Iterator[None]:
    """Reset dynamic frequencies for the pass, and restore them afterwards.

    Transformers keeps the frequencies of the longest text so far. So a score would depend on
    earlier scores, and a shared prior would change the training.
    """
    before = []
    for module in trunk.modules():
        names = [name for name in vars(module) if name.endswith("max_seq_len_cached")]
        if not names or "dynamic" not in str(getattr(module, "rope_type", "")):
            continue
        buffers = {
            n: b for n, b in module._buffers.items() if n.endswith("inv_freq") and b is not None
        }
        values = {name: getattr(module, name) for name in (*names, "attention_scaling")}
        before.append((module, buffers, values))
        for name in names:
            setattr(module, name, getattr(module, "original_max_seq_len", values[name]))
        for name in buffers:
            prefix = name.removesuffix("inv_freq")
            original = getattr(module, f"{prefix}original_inv_freq", None)
            if not prefix.endswith("original_") and original is not None:
                module._buffers[name] = original.to(buffers[name].device)
    try:
        yield
    finally:
        for module, buffers, values in before:
            module._buffers.update(buffers)
            for name, value in values.items():
                setattr(module, name, value)
