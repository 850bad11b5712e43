"""The folder of a run: what it was made with, and the data that it trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toedit_collate.data.files import whole, write_json, write_text

TRAIN_DATASET = "train_dataset"


def write_settings(folder: Path, given: dict[str, Any], args: Any, policy: Any) -> None:
    """`config.yaml`, with which the recipe makes the run again; all arguments; and the policy."""
    import yaml

    write_text(folder / "config.yaml", yaml.safe_dump(given, sort_keys=False))
    write_json(folder / "arguments.json", args.to_dict())
    write_json(folder / "policy.json", None if policy is None else policy.record())


def keep_dataset(trainer: Any, output_dir: str) -> None:
    """Save the tokenized rows that a Trainer trains on, for `toedit journal export --data`.

    Streamed rows are not kept: they may have no end.
    """
    folder, rows = Path(output_dir) / TRAIN_DATASET, trainer.train_dataset
    if not trainer.args.should_save or folder.exists() or not hasattr(rows, "save_to_disk"):
        return
    with whole(folder, replace=False) as place:
        rows.save_to_disk(str(place))
    print(
        f"The tokenized data is kept in {folder}; toedit journal export "
        f"{folder.parent / 'journal'} --data {folder} --output OUT writes it as edited",
        flush=True,
    )
