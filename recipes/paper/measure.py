"""Measures one dataset in a single pass, for the report.

Words:
    stratum: positions whose observed tokens have a P between two bounds. Some of each are looked at
        closely, with the whole distribution, and represent the others.
    bucket: one of 10,000 numbers that an n-gram is hashed to.
    concentration: the chance that two n-grams drawn from a set fall into one bucket, times the
        number of buckets: 1 if all are equally frequent.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from common.ngrams import NGrams
from torch import Tensor

from toedit_collate.data import Preparation, examples
from toedit_collate.data.progress import progress_bar
from toedit_collate.data.tokens import SFT_DEFAULTS
from toedit_collate.editing.editable import find_editable
from toedit_collate.inspection.findings import THRESHOLDS, Probabilities
from toedit_collate.inspection.reading import (
    Source,
    as_data,
    as_token_batch,
    in_batches,
)
from toedit_collate.inspection.scoring import Scored, score_batch
from toedit_collate.policy import EditPolicy
from toedit_collate.prior.base import BasePrior
from toedit_collate.transfer import fetch

from .whatif import WhatIf, standard_settings

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
MAX_SAMPLED = 2000  # documents kept for maps, distributions and baselines
MAX_IDS = 512  # of each of them
# With fewer tokens, a mean says more of these than of the document: headings, the rests of windows.
MIN_TOKENS = 30
EMBEDDED = 500  # of them with a mean hidden state in the map


@dataclass(frozen=True)
class SetSettings:
    """How a set is read.

    Attributes:
        limit: look at so many documents; None: at all.
        preparation: how rows become tokens; without `max_length`, longer documents are cut into
            windows of what the prior can take.
        batch_tokens: how many tokens to score at once.
        seed: of all samples.
        progress: show a bar.
    """

    limit: int | None = None
    preparation: Preparation = SFT_DEFAULTS
    batch_tokens: int = 16_384
    seed: int = 0
    progress: bool = False


@dataclass(frozen=True)
class Sampled:
    """A document that is kept.

    Attributes:
        ids: its first tokens, without special ones.
        logprob: mean log P of its tokens with a label, nats; NaN where there is none.
        num_scored: tokens with a label.
        state: (D,) its mean hidden state; None: the prior has none to show.
    """

    ids: Ids
    logprob: float
    num_scored: int
    state: Floats | None


@dataclass
class Measured:
    """What was found in a set.

    Attributes:
        name: as the user gave it, or its file's name.
        probabilities: of all tokens with a label.
        deciles: (10,) counts of P in [0, 0.1), ..., [0.9, 1] (Table 8).
        ngrams: of all tokens but special ones.
        whatif: what settings would change.
        sample: documents, each with the same chance of being kept.
        num_documents: that were read.
        num_tokens: of them.
    """

    name: str
    probabilities: Probabilities = field(default_factory=Probabilities)
    deciles: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(10, np.int64))
    ngrams: NGrams = field(default_factory=NGrams)
    whatif: WhatIf = field(default_factory=lambda: WhatIf(standard_settings()))
    sample: list[Sampled] = field(default_factory=list)
    num_documents: int = 0
    num_tokens: int = 0

    @property
    def log_perplexity(self) -> npt.NDArray[np.float64]:
        """(n,) of the sampled documents with 30 labelled tokens or more, or else of all; nats."""
        long = [one for one in self.sample if one.num_scored >= MIN_TOKENS]
        some = long or [one for one in self.sample if one.num_scored]
        return np.array([-one.logprob for one in some])

    def share_from(self, p: float) -> float:
        """Share of tokens with a label whose P is at or above one of `THRESHOLDS`."""
        return float(self.probabilities.at_least[THRESHOLDS.index(p)]) / max(
            self.probabilities.total, 1
        )

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        quantiles = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
        spread = self.log_perplexity
        return {
            "name": self.name,
            "documents": self.num_documents,
            "tokens": self.num_tokens,
            "tokens_with_label": self.probabilities.total,
            "perplexity": self.probabilities.perplexity,
            "deciles": self.deciles.tolist(),
            "histogram": self.probabilities.bins.tolist(),
            "share_from_0.99": self.share_from(0.99),
            "share_from_0.999": self.share_from(0.999),
            "document_perplexity_quantiles": {
                str(q): float(np.exp(np.quantile(spread, q))) for q in quantiles if len(spread)
            },
            "ngrams": self.ngrams.record(),
            "what_if": self.whatif.results(),
        }


def measure_set(
    prior: BasePrior, source: Source, settings: SetSettings | None = None, *, name: str = ""
) -> Measured:
    """Read a set once; memory does not grow with it.

    Args:
        prior: with its tokenizer.
        source: see `inspect_edits`.
        settings: how to read it.
        name: for tables; "": the source's.

    Raises:
        ValueError: there is no document that could be scored.
        UnusableError: the data can't be read.
    """
    settings = SetSettings() if settings is None else settings
    data = as_data(source)
    measured = Measured(name or data.name, whatif=WhatIf(standard_settings(), settings.seed))
    prep = settings.preparation
    if prep.max_length is None:
        prep = replace(prep, max_length=prior.max_length)
    documents = examples(data, prior.tokenizer, prep, vocab_size=prior.vocab_size)
    special = np.array(sorted(prior.special_ids), np.int64)
    rng = random.Random(settings.seed)
    batches = in_batches(islice(documents, settings.limit), settings.batch_tokens)
    with progress_bar(
        lambda: None, "tokens", desc=measured.name[-30:], shown=settings.progress
    ) as bar:
        for batch in batches:
            arrays = (np.array(document.ids, np.int64) for document in batch)
            texts = [ids[~np.isin(ids, special)] for ids in arrays]
            num_tokens = sum(len(document.ids) for document in batch)
            for ids in texts:
                measured.ngrams.add(ids)
            measured.num_documents += len(batch)
            measured.num_tokens += num_tokens
            _add(measured, score_batch(prior, as_token_batch(batch)), texts, rng)
            bar.update(num_tokens)
    if not measured.num_documents:
        raise ValueError(f"{measured.name} has no document of two tokens or more")
    return measured


def _add(measured: Measured, scored: Scored, texts: list[Ids], rng: random.Random) -> None:
    """Add what the prior says of a batch. A random choice of all documents is kept."""
    policy = EditPolicy()
    labelled = scored.in_scope(policy)[scored.where]
    logprob = scored.logprob[labelled].numpy()
    measured.probabilities.add(logprob)
    chances = np.exp(logprob.astype(np.float64)).clip(0, 1)
    measured.deciles += np.histogram(chances, np.linspace(0, 1, 11))[0]
    editable = find_editable(scored.prior, policy, scored.batch)[scored.where]
    measured.whatif.add(scored, editable & labelled)
    document = torch.as_tensor(scored.batch.documents.document)[scored.where]
    counts = torch.bincount(document[labelled], minlength=len(texts))
    sums = torch.zeros(len(texts), dtype=torch.float64)
    sums.index_add_(0, document[labelled], scored.logprob[labelled].double())
    means = sums / counts  # NaN where there is no label
    states = _mean_states(scored, document, len(texts))
    seen = measured.num_documents - len(texts)  # before this batch
    for number, ids in enumerate(texts):
        # Each document of the set has the same chance to stay (reservoir sampling).
        place = seen + number if seen + number < MAX_SAMPLED else rng.randrange(seen + number + 1)
        if place < MAX_SAMPLED:
            state = None if states is None else states[number].copy()  # without the batch's others
            kept = Sampled(ids[:MAX_IDS], float(means[number]), int(counts[number]), state)
            measured.sample[place : place + 1] = [kept]


def _mean_states(scored: Scored, document: Tensor, count: int) -> Floats | None:
    """Mean hidden states: (count, D)."""
    states = getattr(scored.predictions, "states", None)
    if states is None or not len(states):
        return None
    there = document.to(states.device)
    sums = torch.zeros(count, states.shape[-1], device=states.device)
    sums.index_add_(0, there, states.float())
    counts = torch.bincount(there, minlength=count).clamp_(min=1).unsqueeze(-1)
    (means,) = fetch(sums / counts)
    return means.numpy()
