"""Generations of models that train on text of the last one, and mixtures with such text.

Each generation trains the same start on rows of the same number, which are, by arm:
    real: the real rows.
    replaced: written by the last generation's model.
    accumulated: drawn from the real rows and those that all generations before wrote.
    edited, by a policy: the real rows, edited by each generation's model in turn (Eq. 3).
Mixtures (section 2.1) train on real rows and on those that the first model wrote, in some shares.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from common.ngrams import NGrams
from torch import Tensor, nn

from toedit_collate.config.policies import parse_policy
from toedit_collate.data.files import whole, write_json
from toedit_collate.editing.edit import edit_tokens

from .evaluation import frequency_deciles
from .settings import Study
from .summary import Result
from .train import measure, train
from .world import TokenRows, World
from .writing import write_rows

REAL = "real"
WRITERS = ("replaced", "accumulated")


def run_collapse(study: Study, world: World, output: Path) -> list[Result]:
    """Make all generations that are not made yet.

    Returns:
        What was measured for each arm, generation and seed.
    """
    return [one for seed in study.seeds for one in Chain(study, world, seed, output).run()]


class Chain:
    """All arms of one seed."""

    def __init__(self, study: Study, world: World, seed: int, output: Path) -> None:
        self.study = study
        self.world = world
        self.seed = seed
        settings = json.dumps([asdict(study.world), asdict(study.run)])
        digest = hashlib.sha256(settings.encode()).hexdigest()[:10]
        self.folder = output / "runs" / f"seed-{seed}-{digest}"
        self.real = world.rows(study.world.train).input_ids
        counts = torch.bincount(self.real.flatten(), minlength=len(world.tokenizer))
        self.groups = frequency_deciles(counts)

    def run(self) -> list[Result]:
        """Make all generations of all arms that are not made yet."""
        results = [self._generation(REAL, 0, self.real)]
        written = self.rows_after(REAL, 0)
        for share in self.study.fractions:
            order = torch.randperm(len(self.real), generator=self._generator(900))
            num = round(share * len(self.real))
            rows = torch.cat([written[order[:num]], self.real[order[num:]]])
            results.append(self._generation(f"mixture {share:.0%}", 1, rows))
        for arm in WRITERS:
            pool = [self.real, written]
            for generation in range(1, self.study.generations):
                rows = pool[-1] if arm == "replaced" else self._draw(pool, generation)
                results.append(self._generation(arm, generation, rows))
                if generation + 1 < self.study.generations:
                    pool.append(self.rows_after(arm, generation))
        for name in self.study.policies:
            last, rows = self.real, self.rows_after(REAL, 0, name)
            for generation in range(1, self.study.generations):
                results.append(self._generation(name, generation, rows, last))
                last, rows = rows, self.rows_after(name, generation)
        return results

    def _draw(self, pool: list[Tensor], generation: int) -> Tensor:
        """As many rows as there are real ones, out of all that there are."""
        every = torch.cat(pool)
        order = torch.randperm(len(every), generator=self._generator(generation))
        return every[order[: len(self.real)]]

    def _generation(
        self, arm: str, generation: int, rows: Tensor, last: Tensor | None = None
    ) -> Result:
        """Train one model on rows; measure it, and the rows; make what the next ones train on.

        `last` are the rows of the generation before, where these are an edit of them.
        """
        path = self._path(arm, generation, ".json")
        if path.exists():
            found: Result = json.loads(path.read_text())
            return found
        seed = 1000 * self.seed + generation
        model, trained = train(self.world, self.study.run, seed, rows=TokenRows(rows, rows))
        found = {
            "arm": arm, "generation": generation, "seed": self.seed,
            **trained, **measure(self.world, model, groups=self.groups),
            "rows": _ngrams(rows, set(self.world.tokenizer.all_special_ids)),
            "differs_from_real": _share(rows != self.real),
            "changed": None if last is None else _share(rows != last),
        }  # fmt: skip
        if arm == REAL or arm in WRITERS:
            bos = self.world.tokenizer.bos_token_id
            text = write_rows(model, len(self.real), self.real.shape[1], bos, seed)
            self._keep(text, arm, generation)
        for name in [*self.study.policies] if arm == REAL else [arm]:
            if name in self.study.policies:
                edited = self.edit(model, rows, self.study.policies[name], generation + 1)
                self._keep(edited, arm, generation, name)
        write_json(path, found)
        print(
            f"seed {self.seed}, {arm}, generation {generation}: test {found['test']['loss']:.4f}; "
            f"{found['seconds']:.0f} s",
            flush=True,
        )
        return found

    def edit(self, model: nn.Module, rows: Tensor, policy: str, generation: int) -> Tensor:
        """The rows, edited by a model of the generation before."""
        prior, own = self.world.prior_of(model), parse_policy(policy, seed=self.seed)
        parts = [
            edit_tokens(
                prior, ids.to(self.world.device), policy=own, generation=generation
            ).input_ids.cpu()
            for ids in rows.split(16)
        ]
        return torch.cat(parts)

    def _keep(self, rows: Tensor, arm: str, generation: int, name: str = "") -> None:
        target = self._path(arm, generation, f"{_slug(name)}.npy")
        with whole(target) as place, open(place, "wb") as file:
            np.save(file, rows.numpy().astype(np.int32))

    def rows_after(self, arm: str, generation: int, name: str = "") -> Tensor:
        """What the model of a generation wrote, or the rows as it edited them."""
        own = name or (arm if arm in self.study.policies else "")
        path = self._path(arm, generation, f"{_slug(own)}.npy")
        return torch.from_numpy(np.load(path)).long()

    def _path(self, arm: str, generation: int, ending: str) -> Path:
        return self.folder / f"{_slug(arm)}-{generation}{ending}"

    def _generator(self, more: int) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.seed + more)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())


def _ngrams(rows: Tensor, special: set[int]) -> dict[str, float]:
    """How varied the rows are: entropy of bigrams, share of the 64 most frequent, distinct ones."""
    counts = NGrams()
    pairs: set[tuple[int, int]] = set()
    total = 0
    for row in rows.tolist():
        ids = [i for i in row if i not in special]
        counts.add(np.array(ids))
        pairs.update(pairwise(ids))
        total += max(len(ids) - 1, 0)
    found = counts.record()
    return {
        "unigram_entropy_bits": found["unigrams"]["entropy_bits"],
        "bigram_entropy_bits": found["bigrams"]["entropy_bits"],
        "bigram_concentration": found["bigrams"]["concentration"],
        "top_64_bigrams": counts.top_share(64),
        "distinct_bigrams": len(pairs) / total,
    }
