"""What `toedit apply` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.tokens import Preparation
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
    preparation: Preparation
    shard: tuple[int, int]
    shows_progress: bool
    policy: EditPolicy
