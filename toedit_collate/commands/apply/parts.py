"""Which part of the data is this process's, where a launcher started several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Number and count of processes, and the number on this machine, as launchers set them. Slurm sets
# the second group in a step of srun alone, not in the batch script around it.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun, accelerate launch
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # srun
)


@dataclass(frozen=True)
class Part:
    """The part `number` of `count`, and the process's number on its machine."""

    number: int
    count: int
    local: int

    def device(self) -> str | None:
        """The process's own GPU; None: there is none."""
        import torch

        return (
            f"cuda:{self.local % torch.cuda.device_count()}" if torch.cuda.is_available() else None
        )


def part_of_process(environment: Mapping[str, str]) -> Part | None:
    """What the launcher says; None: this process is the only one.

    Example:
        >>> part_of_process({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"})
        Part(number=1, count=4, local=1)
        >>> part_of_process({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"})  # a batch script
    """
    for rank, size, local in _LAUNCHERS:
        number, count = environment.get(rank, ""), environment.get(size, "")
        if number.isdecimal() and count.isdecimal() and int(number) < int(count) > 1:
            own = environment.get(local, "")
            return Part(int(number), int(count), int(own) if own.isdecimal() else int(number))
    return None
