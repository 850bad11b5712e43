"""What a study trains before its first run: the trainee's start, or a prior that knows the text."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from toedit_collate.config.quiet import quiet
from toedit_collate.data.files import whole

from .settings import Preparation, RunSettings, WorldSettings
from .train import train
from .world import World


def prepare_world(settings: WorldSettings, data: Path, prior: str, output: Path) -> World:
    """The world of a study, with the models that have to be trained for it.

    They are kept in `output`, and taken from there the next time.

    Args:
        settings: of the study.
        data: the folder of its files.
        prior: folder or hub id of the prior, as it came.
        output: folder of the results.
    """
    source = World(settings, data, prior)
    trained = {"trainee": settings.trainee_before, "prior": settings.prior_before}
    folders = {
        name: _prepare(name, before, source, output)
        for name, before in trained.items()
        if before is not None
    }
    if not folders:
        return source
    return World(
        settings,
        data,
        prior,
        prepared_prior=folders.get("prior"),
        prepared_trainee=folders.get("trainee"),
    )


def _prepare(name: str, before: Preparation, source: World, output: Path) -> Path:
    """The folder of a model: made, if it is not there."""
    settings = source.settings
    started_as = settings.trainee if name == "trainee" else None
    content = [
        source.prior.fingerprint, started_as, settings.row_length, dataclasses.asdict(before)
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    folder = output / "prepared" / f"{name}-{digest}"
    if folder.exists():
        return folder
    run = RunSettings(
        epochs=before.epochs, learning_rate=before.learning_rate, batch_rows=before.batch_rows
    )
    world = World(dataclasses.replace(settings, trainee=started_as), source.data, source.prior_name)
    print(f"the {name}, beforehand: rows {list(before.rows)} of {before.file}", flush=True)
    model, found = train(world, run, 0, rows=world.rows(before))
    with whole(folder) as place, quiet():
        model.save_pretrained(place)  # type: ignore[operator]
        world.tokenizer.save_pretrained(place)
    print(
        f"    training loss {found['train_loss']:.4f} in its last epoch; {found['seconds']:.0f} s",
        flush=True,
    )
    return folder
