"""What is measured: a prior, and batches for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...data import open_data
from ...errors import UnusableError
from ...prior.families import find_trunk, unwrap_model
from ...prior.prior import Prior
from .calibrate import calibrated_states, shape_head, states_replaced, table_8_targets, zipf_ids
from .rows import Batch, text_batches
from .shapes import random_model

NUM_BATCHES = 8  # of real text; of random weights there is one


@dataclass(frozen=True)
class Inputs:
    """A prior and batches.

    Attributes:
        prior: frozen.
        batches: on the CPU, as a DataLoader has them.
        states: (B, T, D) that stand in for those of the trunk, or None.
        B: rows of a batch.
        T: tokens of a row, at most.
    """

    prior: Prior
    batches: list[Batch]
    states: Tensor | None
    B: int
    T: int

    @property
    def trunk(self) -> Any:
        """The prior without its vocabulary projection."""
        return find_trunk(unwrap_model(self.prior.model))

    @property
    def device(self) -> torch.device:
        """Of the prior."""
        return self.prior.device

    @property
    def size(self) -> str:
        """Of a batch, as text."""
        B, T = self.B, self.T
        return f"{B} x {T} tokens" if self.states is not None else f"{B} rows of up to {T} tokens"

    def batch(self, number: int) -> Batch:
        """That of a round."""
        return self.batches[number % len(self.batches)]

    def on_device(self, number: int) -> Batch:
        """The same, where the prior is."""
        return {key: value.to(self.device) for key, value in self.batch(number).items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While it lasts, the trunk gives the prepared states, if there are any."""
        with states_replaced(self.prior, self.states):
            yield


@dataclass(frozen=True)
class Source:
    """Where inputs of any size come from: a shape, or a real prior and its data."""

    prior: Prior
    name: str
    seed: int
    text: tuple[str, str | None] | None = None  # data and split, of a real prior
    shape: str | None = None
    direction: Tensor | None = None  # of the shaped head

    def inputs(self, B: int, T: int, *, option: str = "--max-length") -> Inputs:
        """Batches of B rows of up to T tokens, which `option` asked for.

        Raises:
            UnusableError: the prior has fewer positions, or there is too little text.
        """
        most = self.prior.max_length
        if most is not None and most < T:
            raise UnusableError(
                f"{option} {T}: the prior has {most} positions; give at most {option} {most}"
            )
        if T < 2:
            raise UnusableError(f"{option} {T}: a token alone can't be scored; give 2 at least")
        states = None
        if self.text is not None:
            data = open_data(*self.text)
            batches = text_batches(self.prior, data, num=NUM_BATCHES, B=B, T=T, seed=self.seed)
        else:
            batches, states = self._calibrated(B, T)
        return Inputs(self.prior, batches, states, B, T)

    def _calibrated(self, B: int, T: int) -> tuple[list[Batch], Tensor]:
        weight = self.prior.head.weight
        assert weight is not None
        assert self.direction is not None
        generator = torch.Generator().manual_seed(self.seed)
        ids = zipf_ids(B, T, self.prior.vocab_size, generator)
        targets = table_8_targets(B * (T - 1), generator)
        found = calibrated_states(
            weight, self.direction, ids[:, 1:].reshape(-1), targets, generator
        )
        states = weight.new_zeros(B, T, weight.shape[1])
        states[:, :-1] = found.view(B, T - 1, -1)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}
        return [batch], states


def random_source(shape: str, *, device: torch.device, dtype: torch.dtype, seed: int) -> Source:
    """Random weights, and states that are calibrated to Table 8 of the paper."""
    model: Any = random_model(shape, device, dtype, seed)
    direction = shape_head(model.get_output_embeddings().weight.detach())
    name = (
        f"random weights in the shape of {shape}; observed tokens as in Table 8 of "
        "arXiv:2412.14689, competitors: Zipf over ids, uneven by e^(3z), z normal"
    )
    return Source(Prior(model), name, seed, shape=shape, direction=direction)
