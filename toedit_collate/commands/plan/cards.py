"""Cards: memory and speed, as their makers publish them; none was measured here."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UnusableError


@dataclass(frozen=True)
class Card:
    """One GPU.

    Attributes:
        name: as `--gpu` has it.
        memory_gib: that the driver reports; None: not a card.
        tflops_bf16: dense, with sums in float32 (TFLOP/s).
        tflops_fp32: without TF32, PyTorch's default.
    """

    name: str
    memory_gib: float | None
    tflops_bf16: float
    tflops_fp32: float

    @property
    def is_gpu(self) -> bool:
        """False for `cpu`."""
        return self.memory_gib is not None


# NVIDIA's data sheets, without sparsity; h100 and h200 are the SXM modules.
CARDS = {
    card.name: card
    for card in (
        Card("h200", 140.4, 989.0, 67.0),
        Card("h100", 79.6, 989.0, 67.0),
        Card("a100-80gb", 80.0, 312.0, 19.5),
        Card("a100-40gb", 40.0, 312.0, 19.5),
        Card("l40s", 45.0, 362.0, 91.6),
        Card("rtx4090", 24.0, 165.2, 82.6),
        Card("rtx3090", 24.0, 71.0, 35.6),
        Card("l4", 22.5, 121.0, 30.3),
        # Two cores of a server, roughly.
        Card("cpu", None, 0.1, 0.1),
    )
}


def find_card(name: str) -> Card:
    """A card by its name.

    Raises:
        UnusableError: it is not known.
    """
    if name not in CARDS:
        raise UnusableError(f"--gpu {name}: not known; write one of {', '.join(CARDS)}")
    return CARDS[name]
