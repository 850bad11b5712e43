"""Generations of models that train on text of the last one, and mixtures with such text.

Each generation trains the same start on rows of the same number, which are, by arm:
    real: the real rows.
    replaced: written by the last generation's model; of conversations, the answers only.
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
from .writing import answer_rows, write_rows

REAL = "real"
_EDITED_AT_ONCE = 16  # rows


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
        self.real = world.rows(study.world.train)
        self.special = set(world.tokenizer.all_special_ids)
        counts = torch.bincount(_text(self.real), minlength=len(world.tokenizer))
        self.groups = frequency_deciles(counts)

    def run(self) -> list[Result]:
        """Make all generations of all arms that are not made yet."""
        results = [self._generation(REAL, 0, self.real)]
        written = self.rows_after(REAL, 0)
        for share in self.study.fractions:
            order = torch.randperm(len(self.real), generator=self._generator(900))
            num = round(share * len(self.real))
            rows = TokenRows.join([written[order[:num]], self.real[order[num:]]])
            results.append(self._generation(f"mixture {share:.0%}", 1, rows))
        for arm in self.study.writers:
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

    def _draw(self, pool: list[TokenRows], generation: int) -> TokenRows:
        """As many rows as there are real ones, out of all that there are."""
        every = TokenRows.join(pool)
        order = torch.randperm(len(every), generator=self._generator(generation))
        return every[order[: len(self.real)]]

    def _generation(
        self, arm: str, generation: int, rows: TokenRows, last: TokenRows | None = None
    ) -> Result:
        """Train one model on rows; measure it, and the rows; make what the next ones train on.

        `last` are the rows of the generation before, where these are an edit of them.
        """
        path = self._path(arm, generation, ".json")
        if path.exists():
            found: Result = json.loads(path.read_text())
            return found
        seed = 1000 * self.seed + generation
        model, trained = train(self.world, self.study.run, seed, rows=rows)
        found = {
            "arm": arm, "generation": generation, "seed": self.seed,
            **trained, **measure(self.world, model, groups=self.groups),
            "rows": _ngrams(rows, self.special),
            "differs_from_real": _difference(rows, self.real),
            "changed": None if last is None else _difference(rows, last),
        }  # fmt: skip
        if arm == REAL or arm in self.study.writers:
            self._keep(self.write(model, seed), arm, generation)
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

    def write(self, model: nn.Module, seed: int) -> TokenRows:
        """What a model writes in place of the real rows, or of the answers in them."""
        if self.real.is_padded:
            return answer_rows(model, self.real, self.world.tokenizer, seed)
        length, bos = self.real.input_ids.shape[1], self.world.tokenizer.bos_token_id
        ids = write_rows(model, len(self.real), length, bos, seed)
        return TokenRows(ids, ids)

    def edit(self, model: nn.Module, rows: TokenRows, policy: str, generation: int) -> TokenRows:
        """The rows, edited by a model of the generation before."""
        prior, own = self.world.prior_of(model), parse_policy(policy, seed=self.seed)
        device, parts = self.world.device, []
        for some in rows.split(_EDITED_AT_ONCE):
            edit = edit_tokens(
                prior,
                some.input_ids.to(device),
                attention_mask=some.attention_mask.to(device),
                labels=some.labels.to(device),
                policy=own,
                generation=generation,
            )
            assert edit.labels is not None
            parts.append(TokenRows(edit.input_ids.cpu(), edit.labels.cpu(), rows.is_padded))
        return TokenRows.join(parts)

    def _keep(self, rows: TokenRows, arm: str, generation: int, name: str = "") -> None:
        target = self._path(arm, generation, f"{_slug(name)}.npy")
        both = torch.stack([rows.input_ids, rows.labels])
        with whole(target) as place, open(place, "wb") as file:
            np.save(file, both.numpy().astype(np.int32))

    def rows_after(self, arm: str, generation: int, name: str = "") -> TokenRows:
        """What the model of a generation wrote, or the rows as it edited them."""
        own = name or (arm if arm in self.study.policies else "")
        path = self._path(arm, generation, f"{_slug(own)}.npy")
        ids, labels = torch.from_numpy(np.load(path)).long()
        return TokenRows(ids, labels, self.real.is_padded)

    def _path(self, arm: str, generation: int, ending: str) -> Path:
        return self.folder / f"{_slug(arm)}-{generation}{ending}"

    def _generator(self, more: int) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * self.seed + more)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def _text(rows: TokenRows) -> Tensor:
    """The tokens that are trained on, (n,)."""
    return rows.input_ids[rows.labels != -100]


def _difference(rows: TokenRows, before: TokenRows) -> float:
    """Share of the trained tokens that another text has at the same place."""
    places = (rows.labels != -100) | (before.labels != -100)
    return float((rows.input_ids != before.input_ids)[places].double().mean())


def _ngrams(rows: TokenRows, special: set[int]) -> dict[str, float]:
    """How varied the rows are: entropy of bigrams, share of the 64 most frequent, distinct ones."""
    counts = NGrams()
    pairs: set[tuple[int, int]] = set()
    total = 0
    for row in rows.split(1):
        ids = [i for i in _text(row).tolist() if i not in special]
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
