"""Bytes that an optimizer keeps for each trained tensor."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

_BLOCK = 256  # of bitsandbytes' 8-bit states, each with a scale
_LEAST_8BIT = 4096  # smaller tensors keep states of 32 bits
_TWO_STATES = ("adamw", "ademamix", "nadam", "radam", "lamb", "stable_adamw")
_ONE_STATE = ("lion", "rmsprop", "adagrad", "lars")


def optimizer_bytes(name: str, shapes: Sequence[tuple[int, ...]], element: int) -> float:
    """What an optimizer keeps.

    Args:
        name: as `optim` has it; one that is not known here counts as AdamW.
        shapes: of the trained tensors.
        element: bytes of their dtype.

    Example:
        >>> optimizer_bytes("adamw_torch_fused", [(10, 10)], element=4)
        804
    """
    return sum(_tensor_bytes(name.removeprefix("paged_"), shape, element) for shape in shapes)


def is_known(name: str) -> bool:
    """Whether `optimizer_bytes` knows it."""
    return name.removeprefix("paged_").startswith(
        (*_TWO_STATES, *_ONE_STATE, "adam", "sgd", "adafactor")
    )


def _tensor_bytes(name: str, shape: tuple[int, ...], element: int) -> float:
    count = prod(shape)
    if name.startswith("sgd"):
        return 0.0  # the Trainer's has no momentum
    if name.startswith("adafactor"):
        if len(shape) < 2:
            return count * 4.0
        return 4.0 * (count // shape[-1] + count // shape[-2])
    states = 1 if name.startswith(_ONE_STATE) else 2
    if "8bit" in name and count >= _LEAST_8BIT:
        return states * (count + 4 * -(-count // _BLOCK))
    if "bnb" in name or "8bit" in name:
        return states * 4.0 * count
    return states * count * element + 4  # and the number of its step
