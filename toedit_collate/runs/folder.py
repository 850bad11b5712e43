"""The folder of a run: what it was made with, and what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Write numbers and names; the file has its name only once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=2, default=str) + "\n")
    unfinished.replace(path)


def write_settings(folder: Path, given: dict[str, Any], args: Any, policy: Any) -> None:
    """`config.yaml`, with which the recipe makes the run again; all arguments; and the policy."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    write_json(folder / "arguments.json", args.to_dict())
    write_json(folder / "policy.json", None if policy is None else policy.record())
