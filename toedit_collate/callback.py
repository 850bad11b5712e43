"""ToEditCallback and attach(): the life cycle of a Trainer."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import CallbackHandler

from .collator import DISPATCHING, ToEditCollator, text_tokenizer
from .policy import EditPolicy
from .prior import Prior
from .stats import shares
from .surroundings import calling_instance

# Every number that is logged is a ratio of these sums since the last log, over all ranks.
_LOGGED_SUMS = (
    "tokens", "scored", "selected", "changed", "dropped", "sampled", "sampled_nll", "seconds",
)  # fmt: skip


class ToEditCallback(TrainerCallback):
    """Puts a collator's edit into a Trainer, for training batches only, and logs what it does.

    In a Trainer whose `data_collator` is another one, it puts `collator` around that for training
    batches: so `callbacks=[ToEditCallback(ToEditCollator(prior))]` is enough in any framework that
    takes callbacks of transformers.

    The Trainer's logs (and so its trackers) get, since the last log and over all ranks:

    | key | what |
    | --- | --- |
    | `toedit/selected_share` | selected tokens / scored tokens |
    | `toedit/changed_share` | changed tokens / scored tokens |
    | `toedit/dropped_share` | removed tokens / scored tokens; with `drop_below` only |
    | `toedit/prior_perplexity` | of the prior, exact, on a sample of the scored tokens |
    | `toedit/tokens_per_second` | tokens of training batches / seconds of the edit pass, per rank |
    | `toedit/time_share` | seconds of the edit pass / seconds of the training steps |

    Args:
        collator: edits the batches.

    Raises:
        TypeError: `collator` is not a `ToEditCollator`.
    """

    def __init__(self, collator: ToEditCollator) -> None:
        if not isinstance(collator, ToEditCollator):
            raise TypeError(
                f"collator must be a ToEditCollator, got {type(collator).__name__}; write "
                "ToEditCallback(ToEditCollator(prior, policy))"
            )
        self.collator = collator
        self._wrapped: ToEditCollator | None = None
        self._logged = dict.fromkeys(_LOGGED_SUMS, 0.0)
        self._step_seconds = 0.0
        self._mark = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that the prior fits the trainee, and see to it that training batches are edited."""
        self._come_first()
        loader = kwargs["train_dataloader"]
        _refuse_dispatching(loader)
        self.collator.fit(kwargs["model"], args, kwargs.get("processing_class"))
        loader = getattr(loader, "base_dataloader", loader)
        present = _find_collator(loader.collate_fn)
        if present is None:
            self._wrapped = loader.collate_fn = self.collator.around(loader.collate_fn)
        elif present._stats is not self.collator._stats:
            raise ValueError(
                "the Trainer's data_collator is a ToEditCollator, and ToEditCallback has another "
                "one; pass the same to both, or the callback alone"
            )
        totals = self.collator._stats.totals()
        self._logged = {name: totals[name] for name in _LOGGED_SUMS}
        self._step_seconds = 0.0
        self._mark = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add up the time of training steps; evaluation and saving do not count."""
        now = time.perf_counter()
        self._step_seconds += now - self._mark
        self._mark = now

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the time of evaluation out."""
        self._mark = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the time of saving out."""
        self._mark = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the edit's numbers to what the Trainer logs of its training."""
        logs = kwargs.get("logs")
        if logs is None or "loss" not in logs:
            return
        metrics = self._metrics(args)
        logs.update(metrics)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(metrics)

    def _metrics(self, args: Any) -> dict[str, float]:
        totals = self.collator._stats.totals()
        sums = [totals[name] - self._logged[name] for name in _LOGGED_SUMS]
        self._logged = {name: totals[name] for name in _LOGGED_SUMS}
        since = dict(
            zip((*_LOGGED_SUMS, "steps"), _over_ranks([*sums, self._step_seconds]), strict=True)
        )
        self._step_seconds = 0.0
        numbers = shares(since)
        if self.collator.policy.drop_below is None:
            del numbers["dropped_share"]
        numbers["time_share"] = since["seconds"] / since["steps"] if since["steps"] else math.nan
        return {f"toedit/{name}": value for name, value in numbers.items() if value == value}

    def _come_first(self) -> None:
        # Trackers log what they are handed, in the order of the list: to add numbers to it, this
        # callback must be called before them, and a user's callbacks come last. The list is
        # replaced, not reordered, since it is being iterated over right now.
        handler = calling_instance(CallbackHandler)
        if handler is not None and handler.callbacks[:1] != [self]:
            handler.callbacks = [self, *(c for c in handler.callbacks if c is not self)]


def attach(
    trainer: Trainer, prior: Prior, policy: EditPolicy | None = None, **kwargs: Any
) -> ToEditCollator:
    """Edit the training batches of a Trainer that exists already.

    The way in for `SFTTrainer` with packing or without padding, which refuses a collator of the
    user's: its own stays, inside ours.

    Args:
        trainer: a `Trainer`, `SFTTrainer` or another subclass, before `train()`.
        prior: scores the tokens.
        policy: which tokens are edited, and how; default: the paper's.
        kwargs: for `ToEditCollator`.

    Raises:
        ValueError: the trainer's batches are edited already.

    Example:
        >>> trainer = SFTTrainer(model, args, train_dataset, peft_config=lora)  # doctest: +SKIP
        >>> attach(trainer, Prior.shared(trainer.model))  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """
    if isinstance(trainer.data_collator, ToEditCollator):
        raise ValueError("the trainer's data_collator is a ToEditCollator already; attach once")
    kwargs.setdefault("tokenizer", text_tokenizer(getattr(trainer, "processing_class", None)))
    kwargs.setdefault("base_collator", trainer.data_collator)
    collator = ToEditCollator(prior, policy, **kwargs)
    trainer.data_collator = collator  # type: ignore[assignment]
    trainer.add_callback(ToEditCallback(collator))
    return collator


def _find_collator(collate_fn: Any) -> ToEditCollator | None:
    """The ToEditCollator that a loader uses, inside transformers' RemoveColumnsCollator too."""
    while collate_fn is not None:
        if isinstance(collate_fn, ToEditCollator):
            return collate_fn
        collate_fn = getattr(collate_fn, "data_collator", None)
    return None


def _refuse_dispatching(loader: Any) -> None:
    from accelerate.data_loader import DataLoaderDispatcher

    if isinstance(loader, DataLoaderDispatcher) and loader.state.num_processes > 1:
        raise ValueError(DISPATCHING)


def _over_ranks(sums: list[float]) -> list[float]:
    """Add up numbers over all ranks; every rank logs at the same steps."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return sums
    from accelerate import PartialState

    tensor = torch.tensor(sums, dtype=torch.float64, device=PartialState().device)
    torch.distributed.all_reduce(tensor)
    return tensor.tolist()
