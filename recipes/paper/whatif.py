"""What each setting of Tables 5 to 7 would change in a set, without training or drawing.

At a few positions of every stratum the whole distribution is looked at: it gives the chance that a
selected token changes, and how far the edit moves the distribution; both are averaged over strata
by how many tokens these hold.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from toedit_collate.head.candidates import find_candidates
from toedit_collate.inspection.scoring import Scored
from toedit_collate.policy import EditPolicy, Sampler
from toedit_collate.transfer import send

# Bounds of the strata, probabilities. Those of Tables 5 to 7 are among them, so that a stratum is
# selected as a whole, or not at all.
BOUNDS = (0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0)
ROWS_PER_STRATUM = 6  # in each batch
Floats = npt.NDArray[np.float64]


class Setting(NamedTuple):
    """A row of Tables 5 to 7."""

    table: str
    name: str
    policy: EditPolicy


def standard_settings() -> list[Setting]:
    """The settings of the paper's Tables 5 to 7, and of the authors' script."""
    samplers: tuple[Sampler, ...] = ("top_k", "top_p", "full")
    above = (0.999, 0.99, 0.9, 0.5)
    with warnings.catch_warnings():  # that top-p 0.99 changes nothing is one of the results
        warnings.simplefilter("ignore")
        return [
            *(Setting("Table 5", f"sampler {s}", EditPolicy(sampler=s)) for s in samplers),
            *(Setting("Table 6", f"top-k, k = {k}", EditPolicy(top_k=k)) for k in (2, 8, 64)),
            *(Setting("Table 7", f"P >= {p}", EditPolicy(threshold=p)) for p in above),
            *(
                Setting("Table 7", f"P <= {p}", EditPolicy(threshold=p, region="below"))
                for p in (0.1, 0.01, 0.001)
            ),
            Setting("authors' script", "k = 8, T = 1.5", EditPolicy.reference_code()),
            Setting("authors' script", "k = 64, T = 1.5", EditPolicy.reference_code(top_k=64)),
        ]


class WhatIf:
    """Gathers, batch by batch, what settings would change.

    Args:
        settings: whose thresholds are among `BOUNDS`.
        seed: of the choice of positions.
    """

    def __init__(self, settings: list[Setting], seed: int = 0) -> None:
        for setting in settings:
            if setting.policy.threshold not in BOUNDS:
                raise ValueError(
                    f"threshold of {setting.name} must be one of {BOUNDS[1:-1]}, got "
                    f"{setting.policy.threshold}: strata are selected whole"
                )
        self.settings = settings
        strata = len(BOUNDS) - 1
        self.tokens = np.zeros(strata)
        # For each setting and stratum: sum and sum of squares of weighted values, and rows.
        self._rows = np.zeros(strata)
        self._changed = np.zeros((2, len(settings), strata))
        self._kl = np.zeros((2, len(settings), strata))
        self._rng = np.random.default_rng(seed)

    def add(self, scored: Scored, labelled: Tensor) -> None:
        """Look at some positions of a batch: those of its n tokens that are `labelled`."""
        chosen, strata = self._choose(scored.logprob, labelled)
        if not len(chosen):
            return
        done = 0
        for logprob in scored.distributions(torch.from_numpy(chosen)):
            rows = slice(done, done + len(logprob))
            done += len(logprob)
            places = scored.where[torch.from_numpy(chosen[rows])]
            observed = send(scored.batch.tokens[places], logprob.device)
            self._look(logprob, observed, strata[rows], _special(scored, logprob))

    def _choose(self, logprob: Tensor, labelled: Tensor) -> tuple[Any, Any]:
        """Some places of each stratum, ascending, and their strata."""
        cuts = np.log(np.array(BOUNDS[1:-1])).astype(np.float32)
        # "right": P at a bound belongs to the stratum above it, as "P >= threshold" has it.
        stratum = np.searchsorted(cuts, logprob.numpy(), side="right")
        stratum[~labelled.numpy()] = -1
        chosen = []
        for s in range(len(self.tokens)):
            places = np.flatnonzero(stratum == s)
            self.tokens[s] += len(places)
            take = min(ROWS_PER_STRATUM, len(places))
            chosen.append(self._rng.choice(places, take, replace=False))
            self._rows[s] += take
        every = np.sort(np.concatenate(chosen))
        return every, stratum[every]

    def _look(self, logprob: Tensor, observed: Tensor, strata: Any, forbidden: Tensor) -> None:
        for number, setting in enumerate(self.settings):
            policy = setting.policy
            selected = policy.selects(logprob.gather(-1, observed.unsqueeze(-1)).squeeze(-1))
            in_region = policy.selects(logprob)
            rows = (selected | in_region.any(-1)).nonzero().squeeze(-1)
            if not len(rows):
                continue
            own, region = observed[rows], in_region[rows]
            some = logprob[rows]
            found = find_candidates(policy, forbidden, some.clone(), own)
            weights = (found.logits.double() / policy.temperature).softmax(-1)
            kept = torch.where(found.ids == own.unsqueeze(-1), weights, 0.0).sum(-1)
            changed = torch.where(selected[rows], 1 - kept, 0.0).cpu().numpy()
            p = some.double().exp()
            mass = (p * region).sum(-1, keepdim=True)
            edited = torch.where(region, 0.0, p).scatter_add(-1, found.ids, mass * weights)
            kl = torch.where(edited > 0, edited * (edited.log() - some.double()), 0.0).sum(-1)
            kl = kl.clamp_(min=0)  # but for rounding, it is
            of = strata[rows.cpu().numpy()]
            for totals, values in ((self._changed, changed), (self._kl, kl.cpu().numpy())):
                np.add.at(totals[0, number], of, values)
                np.add.at(totals[1, number], of, values**2)

    def results(self) -> list[dict[str, Any]]:
        """For each setting: shares of selected and changed tokens, and KL, with standard errors.

        `kl` is Eq. 9's KL(edited || original) in nats a token, if the text were drawn from the
        prior itself: there the edit takes P to P outside the region, plus the region's mass spread
        by the sampler.
        """
        found = []
        total = max(self.tokens.sum(), 1)
        for number, setting in enumerate(self.settings):
            cut = BOUNDS.index(setting.policy.threshold)
            inside = self.tokens[cut:] if setting.policy.region == "above" else self.tokens[:cut]
            changed, changed_error = self._mean(self._changed[:, number])
            kl, kl_error = self._mean(self._kl[:, number])
            one: dict[str, Any] = {"table": setting.table, "setting": setting.name}
            one |= {"selected_share": float(inside.sum() / total)}
            one |= {"changed_share": changed, "changed_share_error": changed_error}
            found.append({**one, "kl": kl, "kl_error": kl_error})
        return found

    def _mean(self, totals: Floats) -> tuple[float, float]:
        """Mean over all tokens by strata, and its standard error."""
        rows = np.maximum(self._rows, 1)
        share = self.tokens / max(self.tokens.sum(), 1)
        mean = totals[0] / rows
        variance = np.maximum(totals[1] / rows - mean**2, 0) / np.maximum(rows - 1, 1)
        left_out = 1 - np.minimum(self._rows / np.maximum(self.tokens, 1), 1)
        return float((share * mean).sum()), math.sqrt(float((share**2 * variance * left_out).sum()))


def _special(scored: Scored, logprob: Tensor) -> Tensor:
    """The ids that no policy draws: (m,) int64."""
    forbidden = torch.isneginf(logprob).all(0)
    forbidden[[i for i in scored.prior.special_ids if i < len(forbidden)]] = True
    return forbidden.nonzero().squeeze(-1)
