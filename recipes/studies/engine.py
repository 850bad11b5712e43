"""All runs of a study: trials, then every arm with every seed; each is made once and kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from toedit_collate.config.quiet import quiet
from toedit_collate.data.files import write_json

from .prepare import prepare_world
from .settings import Arm, RunSettings, Study
from .summary import Result, told
from .train import measure, train
from .world import World


def run_study(study: Study, data: Path, prior: str, output: Path) -> dict[str, list[Result]]:
    """Make all runs that are not made yet.

    Args:
        study: what to run.
        data: the folder of its files.
        prior: folder or hub id of the prior.
        output: folder of the results; runs that are there with the same settings are not repeated.

    Returns:
        Of each arm, a result for each seed: the settings that were kept, and what was measured.
    """
    world = prepare_world(study.world, data, prior, output)
    world.check_output(output)
    runs = Runs(study, world, output)
    results: dict[str, list[Result]] = {}
    # Seed by seed, so that a study which is stopped early has all arms.
    kept = {arm.name: runs.best_trial(arm) for arm in study.arms}
    for seed in study.seeds:
        for arm in study.arms:
            results.setdefault(arm.name, []).append(runs.result(arm.name, kept[arm.name], seed))
    return results


class Runs:
    """The runs of a study, each made when it is first asked for.

    Args:
        study: whose runs.
        world: its data, prior and trainee.
        output: folder of the results.
    """

    def __init__(self, study: Study, world: World, output: Path) -> None:
        self.study = study
        self.world = world
        self.output = output

    def best_trial(self, arm: Arm) -> RunSettings:
        """The trial with the lowest loss on the validation rows; the only one is not run."""
        if len(arm.trials) == 1:
            return arm.trials[0]
        seed = self.study.tuning_seed
        losses = [min(self.result(arm.name, one, seed)["validation"]) for one in arm.trials]
        return arm.trials[losses.index(min(losses))]

    def result(self, arm: str, settings: RunSettings, seed: int) -> Result:
        """What one run gave."""
        path = self._path(arm, settings, seed)
        if path.exists():
            found: Result = json.loads(path.read_text())
            return found
        print(f"{arm}, seed {seed}: {told(dataclasses.asdict(settings))}", flush=True)
        world = self.world.settings
        model, found = train(
            self.world,
            settings,
            seed,
            prior=self._prior(settings, seed),
            validation=self.world.rows(world.validation),
        )
        found = {
            "arm": arm, "seed": seed, "settings": dataclasses.asdict(settings),
            **found, **measure(self.world, model),
        }  # fmt: skip
        if arm == self.study.arms[0].name and seed in self.study.seeds:
            saved: Any = model
            with quiet():
                saved.save_pretrained(path.with_suffix(""))
            self.world.tokenizer.save_pretrained(path.with_suffix(""))
        write_json(path, found)
        print(
            f"    validation {min(found['validation']):.4f} after {found['best_epoch']} epochs, "
            f"test {found['test']['loss']:.4f}; {found['seconds']:.0f} s",
            flush=True,
        )
        return found

    def _prior(self, settings: RunSettings, seed: int) -> Any:
        """Another prior than the world's, where an arm has one: the first arm's model."""
        if settings.prior == "prior":
            return None
        first = self.study.arms[0]
        kept = self.best_trial(first)
        self.result(first.name, kept, seed)
        return self.world.load_prior(str(self._path(first.name, kept, seed).with_suffix("")))

    def _path(self, arm: str, settings: RunSettings, seed: int) -> Path:
        content = json.dumps([settings.told(), self.study.world.told()], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:10]
        return self.output / "runs" / re.sub(r"[^\w.-]", "_", arm) / f"seed-{seed}-{digest}.json"
