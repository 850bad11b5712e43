"""The surroundings in which a prior's model is run: frozen weights, eval mode, no gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from .adapters import Survey, adapters_switched, evaluation_mode, survey, unwrap_layer
from .families import unwrap_model
from .shared_base import check_base_is_frozen, check_prior_is_frozen, trained_adapters


class FrozenModel:
    """Runs a model with the weights that do not move, and watches that they don't.

    Args:
        shared: whether the model is the one in training.
    """

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
        """The frozen weights, once it is certain that training does not change them.

        Args:
            model: to run.
            adapter: to switch on where the model is shared; None: all off.
            device: where it runs.
            dtype: to compute in; None: that of the weights.

        Raises:
            ValueError: an adapter was merged into them, or they are trained.
        """
        found = survey(model)
        self._check(model, adapter, found)
        with self.as_it_is(model, adapter, found), own_precision(device, dtype):
            yield

    @contextmanager
    def as_it_is(
        self, model: nn.Module, adapter: str | None, found: Survey | None = None
    ) -> Iterator[None]:
        """The frozen weights, unchecked, in eval mode, without gradients; afterwards as before."""
        found = survey(model) if found is None else found
        with ExitStack() as stack:
            # Not inference_mode: it marks tensors that FSDP2 must write to in its next step.
            stack.enter_context(torch.no_grad())
            if self._shared:
                stack.enter_context(adapters_switched(found.layers, adapter))
            stack.enter_context(evaluation_mode(found.training))
            yield

    def _check(self, model: nn.Module, adapter: str | None, found: Survey) -> None:
        """Each batch: an adapter may be merged, or a part unfrozen, at any time."""
        known = self._may_be_trained
        stray = any(id(parameter) not in known for parameter in found.trained)
        if not self._shared:
            if stray:
                check_prior_is_frozen(model)
            return
        merged = any(getattr(layer, "merged_adapters", None) for layer in found.layers)
        if stray or merged or not found.layers:
            check_base_is_frozen(model, adapter)
            self._may_be_trained = {id(p): p for p in trained_adapters(model, adapter)}


@contextmanager
def own_precision(device: torch.device, dtype: torch.dtype | None) -> Iterator[None]:
    """Compute in `dtype`, or as the weights are; whatever autocast the caller is in.

    Where a batch is edited depends on where it is first read, which must decide nothing.
    """
    if not (dtype is not None or torch.is_autocast_enabled(device.type)):
        yield
        return
    # Without the cache: what it keeps of a weight under no_grad has no gradient in training.
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False):
        yield


def input_device(model: nn.Module) -> torch.device:
    """Where a model takes its input."""
    embeddings = unwrap_layer(unwrap_model(model).get_input_embeddings(), None)
    return embeddings.weight.device
