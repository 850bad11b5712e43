"""Runs a prior's model: frozen weights, eval mode, no gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .adapters import Survey, parameters_used, survey, unwrap_layer
from .families import unwrap_model
from .shared_base import check_base_is_frozen, check_prior_is_frozen


class FrozenModel:
    """Runs a model, and checks that training does not change its weights."""

    def __init__(self, shared: bool) -> None:
        self._shared = shared
        # Parameters that may be trained: those of the trainee's adapters. Held, not only their
        # ids: the id of a parameter that is gone may come again.
        self._may_be_trained: dict[int, nn.Parameter] = {}

    @contextmanager
    def scoring(
        self,
        model: nn.Module,
        adapter: str | None,
        device: torch.device,
        dtype: torch.dtype | None,
    ) -> Iterator[None]:
        """Score with the frozen weights, after a check that training does not change them.

        A shared model scores with `adapter` on, or with all adapters off. It computes in `dtype`,
        or in that of its weights.

        Raises:
            ValueError: an adapter was merged into the weights, or they are trained.
        """
        found = survey(model)
        self._check(model, adapter, found)
        with self.as_it_is(model, adapter, found), own_precision(device, dtype):
            yield

    @contextmanager
    def as_it_is(
        self, model: nn.Module, adapter: str | None, found: Survey | None = None
    ) -> Iterator[None]:
        """As `scoring`, without the check and in the caller's precision."""
        found = survey(model) if found is None else found
        layers = found.layers if self._shared else []
        before = [(layer._disable_adapters, layer._active_adapter) for layer in layers]
        try:
            # Eval mode: no dropout, no embedding noise (NEFTune), no gradient checkpointing.
            for module in found.training:
                module.training = False
            for layer in layers:
                layer._disable_adapters = adapter is None
                if adapter is not None:
                    layer._active_adapter = [adapter]
            # Not inference_mode: it marks tensors that FSDP2 must write to in its next step.
            with torch.no_grad():
                yield
        finally:
            for layer, (disabled, active) in zip(layers, before, strict=True):
                layer._disable_adapters, layer._active_adapter = disabled, active
            for module in found.training:
                module.training = True

    def _check(self, model: nn.Module, adapter: str | None, found: Survey) -> None:
        """Runs for each batch: an adapter may be merged, or a part unfrozen, at any time."""
        known = self._may_be_trained
        stray = any(id(parameter) not in known for parameter in found.trained)
        if not self._shared:
            if stray:
                check_prior_is_frozen(model)
            return
        merged = any(getattr(layer, "merged_adapters", None) for layer in found.layers)
        if stray or merged or not found.layers:
            check_base_is_frozen(model, adapter)
            used = {id(p) for p in parameters_used(unwrap_model(model), adapter)}
            self._may_be_trained = {id(p): p for p in model.parameters() if id(p) not in used}


@contextmanager
def own_precision(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Compute in `dtype`, or in that of the weights, whatever autocast the caller uses.

    A batch is edited where it is first read, and that place must not change the edit.
    """
    if not (dtype is not None or torch.is_autocast_enabled(device.type)):
        yield
        return
    # Without the cache: what it keeps of a weight under no_grad has no gradient in training.
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False):
        yield


def input_device(model: nn.Module) -> torch.device:
    """The device of a model's input."""
    embeddings = unwrap_layer(unwrap_model(model).get_input_embeddings(), None)
    return embeddings.weight.device
