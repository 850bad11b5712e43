"""What `toedit apply` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...policy import EditPolicy


@dataclass(frozen=True)
class Settings:
    """What was asked for; see the options."""

    prior: str
    prior_options: dict[str, Any]
    data: str
    split: str | None
    cache: Path | None
    output: Path | None
    batch_tokens: int
    max_length: int | None
    assistant_only: bool
    eos: bool
    shard: tuple[int, int]
    shows_progress: bool
    policy: EditPolicy
