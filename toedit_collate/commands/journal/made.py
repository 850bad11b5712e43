"""What made a generation: the prior and the policy that its frames name."""

from __future__ import annotations

import json
from typing import Any

from ...policy import EditPolicy


def made_with(info: dict[str, Any]) -> str:
    """The prior's fingerprint, shortened, and the settings that are not the paper's."""
    fingerprint, _, precision = str(info["prior"]).partition(" ")
    prior = " ".join(filter(None, [fingerprint[:12], precision]))
    return f"prior {prior}, {_policy(info['policy'])}"


def same_origin(info: dict[str, Any]) -> str:
    """Equal for frames that were made with the same prior and policy."""
    return json.dumps([info["prior"], info["policy"]], sort_keys=True)


def _policy(policy: dict[str, Any]) -> str:
    default = EditPolicy().record()
    settings = [f"{k}={v!r}" for k, v in policy.items() if k not in default or default[k] != v]
    return f"EditPolicy({', '.join(settings)})"
