"""How a model is spread over GPUs, as a config of accelerate says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.fields import read_yaml
from ...errors import UnusableError


@dataclass(frozen=True)
class Sharding:
    """How many GPUs, and what is divided among them.

    Attributes:
        kind: "one" (a single process), "ddp", "fsdp", "zero1", "zero2" or "zero3".
        num_gpus: processes.
        keeps_gathered: FSDP without resharding: weights stay whole after the forward pass.
    """

    kind: str = "one"
    num_gpus: int = 1
    keeps_gathered: bool = False

    @property
    def divides_weights(self) -> bool:
        """FSDP and ZeRO-3."""
        return self.num_gpus > 1 and self.kind in ("fsdp", "zero3")

    @property
    def divides_gradients(self) -> bool:
        """These, and ZeRO-2."""
        return self.divides_weights or (self.num_gpus > 1 and self.kind == "zero2")

    @property
    def divides_optimizer(self) -> bool:
        """These, and ZeRO-1."""
        return self.divides_gradients or (self.num_gpus > 1 and self.kind == "zero1")

    @property
    def is_deepspeed(self) -> bool:
        """It keeps 16-bit weights, and copies in float32 with the optimizer."""
        return self.kind.startswith("zero")

    def __str__(self) -> str:
        names = {"one": "one process", "ddp": "DDP", "fsdp": "FSDP2"}
        return names.get(self.kind, self.kind.replace("zero", "ZeRO-"))


def read_sharding(path: Path | None, gpus: int | None, *, fsdp: bool) -> Sharding:
    """What a config of accelerate says.

    Args:
        path: of the YAML; None: several GPUs are DDP.
        gpus: goes before the file's `num_processes`.
        fsdp: the trainer's own arguments ask for it.

    Raises:
        UnusableError: the file can't be used.
    """
    if path is None:
        number = gpus or 1
        return Sharding("fsdp" if fsdp else "ddp" if number > 1 else "one", number)
    values = read_yaml(path, "--accelerate")
    number = gpus or values.get("num_processes", 1)
    if not isinstance(number, int) or number < 1:
        raise UnusableError(
            f"--accelerate {path}: num_processes must be a whole number from 1, got {number!r}"
        )
    return Sharding(*_kind(values, path, number, fsdp))


def _kind(values: dict[str, Any], path: Path, number: int, fsdp: bool) -> tuple[str, int, bool]:
    kind = str(values.get("distributed_type", "NO")).upper()
    if kind == "FSDP" or fsdp:
        options = values.get("fsdp_config") or {}
        reshards = options.get("fsdp_reshard_after_forward", True)
        return "fsdp", number, str(reshards).upper() in ("FALSE", "SHARD_GRAD_OP")
    if kind == "DEEPSPEED":
        stage = (values.get("deepspeed_config") or {}).get("zero_stage")
        if stage not in (0, 1, 2, 3):
            raise UnusableError(
                f"--accelerate {path}: zero_stage of deepspeed_config must be 0 to 3, got {stage!r}"
            )
        return (f"zero{stage}" if stage else "ddp"), number, False
    if kind in ("NO", "MULTI_GPU", "MULTI_CPU"):
        return ("ddp" if number > 1 else "one"), number, False
    raise UnusableError(
        f"--accelerate {path}: distributed_type {kind} is not planned; of NO, MULTI_GPU, FSDP, "
        "DEEPSPEED take one"
    )
