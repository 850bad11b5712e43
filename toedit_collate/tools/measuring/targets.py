"""What the project has set itself, for the settings that it speaks of."""

from __future__ import annotations

from dataclasses import dataclass

# (model, device, rows, tokens of a row) -> the figures of a section, by the name of the row.
_TARGETS: dict[tuple[str, str, int, int], dict[str, str]] = {
    ("10m", "cpu", 8, 512): {"ours": "<= 1.08", "plain / ours": ">= 1.5"},
    ("llama3-8b", "cuda", 8, 1024): {
        "ours": "<= 1.03",
        "plain / ours": ">= 1.25",
        "memory ours": "<= 256 MiB",
    },
    ("qwen2.5-0.5b", "cuda", 8, 1024): {"ours": "<= 1.10", "plain / ours": ">= 2.0"},
}
_STEPS = {
    "LoRA, checkpointing, edited": "<= 1.35",
    "LoRA, checkpointing, epoch 2, cached": "<= 1.02",
}


@dataclass(frozen=True)
class Setting:
    """What a target depends on.

    Attributes:
        model: name of a shape, "10m" for a prior of about that size, or "".
        device: "cpu" or "cuda".
        B: rows.
        T: tokens of a row.
    """

    model: str
    device: str
    B: int
    T: int

    def target(self, row: str) -> str:
        """The project's target for a row; "": there is none for this setting."""
        return _TARGETS.get((self.model, self.device, self.B, self.T), {}).get(row, "")


def step_target(row: str) -> str:
    """The target for a step of training, on a GPU."""
    return _STEPS.get(row, "")
