"""Make a study: what is trained beforehand, all runs (each once, and kept), table and figures."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common.figures import check_can_draw, save_figure

from toedit_collate.config.console import quiet
from toedit_collate.data.files import whole, write_json, write_text

from .collapse import run_collapse
from .draw import draw_arms, draw_generations, draw_mixtures
from .settings import Pretraining, RunSettings, Study, WorldSettings, describe
from .summary import Result, format_generations, format_study, summarize, summarize_generations
from .train import measure, train
from .world import World


def make_study(
    study: Study, data: Path, prior: str, output: Path, trainee: str | None = None
) -> str:
    """Make the runs of a study that are not made yet, and write `NAME.json`, `.md` and figures.

    Args:
        study: what to run.
        data: the folder of its files.
        prior: folder or hub id of the prior.
        output: folder of runs and results; runs that it has with the same settings are not
            repeated.
        trainee: folder or hub id of the model that is trained; default: the prior.

    Returns:
        The table.

    Raises:
        UnusableError: figures can't be drawn here, the data do not suffice, or the runs in
            `output` were made in another way.
    """
    check_can_draw()
    world = prepare_world(study.world, data, prior, output, trainee)
    world.check_output(output)
    if study.generations:
        rows = summarize_generations(run_collapse(study, world, output))
        table, figures = format_generations(rows), {study.name: draw_generations(rows)}
        if study.fractions:
            figures[f"{study.name}_mixtures"] = draw_mixtures(rows, study.fractions)
    else:
        results = run_arms(study, world, output)
        rows = summarize(study, results)
        table, figures = format_study(rows), {study.name: draw_arms(rows, results)}
    for name, figure in figures.items():
        save_figure(figure, output, name)
    write_json(output / f"{study.name}.json", {"question": study.question, "rows": rows})
    write_text(output / f"{study.name}.md", table)
    return table


def prepare_world(
    settings: WorldSettings, data: Path, prior: str, output: Path, trainee: str | None = None
) -> World:
    """The world of a study, with the models that have to be trained for it first.

    They are kept in `output`, and taken from there the next time.
    """
    source = World(settings, data, prior, trainee=trainee)
    trained = {"trainee": settings.trainee_before, "prior": settings.prior_before}
    prepared = {
        name: _prepare(name, before, source, output)
        for name, before in trained.items()
        if before is not None
    }
    return World(settings, data, prior, prepared, trainee) if prepared else source


def _prepare(name: str, before: Pretraining, source: World, output: Path) -> Path:
    """The folder of a model, which is trained where it does not exist."""
    settings = source.settings
    trainee = settings.trainee if name == "trainee" else None
    digest = _digest(source.prior.fingerprint, trainee, settings.row_length, asdict(before))
    folder = output / "prepared" / f"{name}-{digest}"
    if folder.exists():
        return folder
    run = RunSettings(
        epochs=before.epochs, learning_rate=before.learning_rate, batch_rows=before.batch_rows
    )
    world = World(replace(settings, trainee=trainee), source.data, source.prior_name)
    print(f"the {name}, beforehand: rows {list(before.rows)} of {before.file}", flush=True)
    model, found = train(world, run, 0, rows=world.rows(before))
    with whole(folder) as place:
        _save(model, world, place)
    loss, seconds = found["train_loss"], found["seconds"]
    print(f"    training loss {loss:.4f} in its last epoch; {seconds:.0f} s", flush=True)
    return folder


def run_arms(study: Study, world: World, output: Path) -> dict[str, list[Result]]:
    """Of each arm, a result for each seed, with the settings of its best trial."""
    runs = Runs(study, world, output)
    kept = {arm: runs.best_trial(arm) for arm in study.arms}
    results: dict[str, list[Result]] = {arm: [] for arm in study.arms}
    for seed in study.seeds:  # seed by seed, so that a study which is stopped early has all arms
        for arm, settings in kept.items():
            results[arm].append(runs.result(arm, settings, seed))
    return results


class Runs:
    """The runs of a study with arms, each made when it is first asked for."""

    def __init__(self, study: Study, world: World, output: Path) -> None:
        self.study = study
        self.world = world
        self.output = output
        self.first = next(iter(study.arms))

    def best_trial(self, arm: str) -> RunSettings:
        """The trial with the lowest loss on the validation rows; a single one is not run."""
        trials, seed = self.study.arms[arm], self.study.tuning_seed
        if len(trials) == 1 or seed is None:
            return trials[0]
        losses = [min(self.result(arm, one, seed)["validation"]) for one in trials]
        return trials[losses.index(min(losses))]

    def result(self, arm: str, settings: RunSettings, seed: int) -> Result:
        """What one run gave."""
        path = self._path(arm, settings, seed)
        if path.exists():
            found: Result = json.loads(path.read_text())
            return found
        print(f"{arm}, seed {seed}: {describe(asdict(settings))}", flush=True)
        world, prior = self.world, None
        if settings.prior == "self":
            kept = self.best_trial(self.first)
            self.result(self.first, kept, seed)
            prior = world.load_prior(str(self._path(self.first, kept, seed).with_suffix("")))
        validation = world.rows(world.settings.validation)
        model, trained = train(world, settings, seed, prior=prior, validation=validation)
        found = {"arm": arm, "seed": seed, "settings": asdict(settings), **trained}
        found |= measure(world, model)
        if arm == self.first and seed in self.study.seeds:
            _save(model, world, path.with_suffix(""))
        write_json(path, found)
        print(
            f"    validation {min(found['validation']):.4f} after {found['best_epoch']} epochs, "
            f"test {found['test']['loss']:.4f}; {found['seconds']:.0f} s",
            flush=True,
        )
        return found

    def _path(self, arm: str, settings: RunSettings, seed: int) -> Path:
        digest = _digest(asdict(settings), asdict(self.study.world))
        return self.output / "runs" / re.sub(r"[^\w.-]", "_", arm) / f"seed-{seed}-{digest}.json"


def _save(model: Any, world: World, folder: Path) -> None:
    with quiet():
        model.save_pretrained(folder)
    world.tokenizer.save_pretrained(folder)


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
