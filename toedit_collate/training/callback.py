"""attach() and ToEditCallback: the edit in the life cycle of a Trainer."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..distributed import all_reduce, barrier
from ..policy import EditPolicy
from ..prior.base import BasePrior
from .call_site import argument_of_caller, calling_instance
from .checkpoints import (
    STATE_KEY,
    check_same_journal,
    reload_adapter,
    saved_attributes,
    start_journal_run,
)
from .collator import ToEditCollator, edit_training_loader, edit_training_loaders_of
from .drawn_loss import install_drawn_loss
from .refresh import Refresh, Refresher, check_refresh
from .snapshot import unwrap_wrappers
from .stats import shares
from .trainee import check_trainee, check_trainer, text_tokenizer

logger = logging.getLogger("toedit_collate")

MakeCollator = Callable[[Any], ToEditCollator]

NOT_EDITED = (
    "no batch of the first training step came from a ToEditCollator, so nothing was edited: the "
    "Trainer's training loader has no collate_fn that ToEditCallback could use; let "
    "get_train_dataloader return a DataLoader (of PyTorch or accelerate), or make its batches with "
    "trainer.data_collator after attach(trainer, prior, policy)"
)


def attach(
    trainer: Trainer, prior: BasePrior, policy: EditPolicy | None = None, **kwargs: Any
) -> ToEditCollator:
    """Edit the training batches of a Trainer that exists already.

    This is the way in for `SFTTrainer` with packing or padding-free batches, which accepts no other
    collator: its own stays, inside ours. Only the Trainer's training loader is edited; any other
    loader that uses `trainer.data_collator` is not.

    Args:
        trainer: a `Trainer`, `SFTTrainer` or another subclass, before `train()`.
        prior: scores the tokens.
        policy: which tokens are edited, and how; default: the paper's.
        kwargs: for `ToEditCollator`, and `refresh` for `ToEditCallback`.

    Returns:
        The collator, which is now `trainer.data_collator`. Make another one for a loop of your own.

    Raises:
        ValueError: the trainer's batches are edited already; it learns from preferences, rewards
            or a teacher; or the prior does not fit its model.
    """
    check_trainer(trainer)
    if isinstance(trainer.data_collator, ToEditCollator):
        raise ValueError("the trainer's data_collator is a ToEditCollator already; attach once")
    refresh = kwargs.pop("refresh", None)
    kwargs.setdefault("tokenizer", text_tokenizer(getattr(trainer, "processing_class", None)))
    kwargs.setdefault("base_collator", trainer.data_collator)
    collator = ToEditCollator(prior, policy, **kwargs)
    if trainer.model is not None:
        check_trainee(trainer.model, prior)
        if collator.policy.num_draws > 1:
            install_drawn_loss(trainer, trainer.model)
    callback = ToEditCallback(collator, refresh)
    trainer.data_collator = collator  # type: ignore[assignment]
    edit_training_loaders_of(trainer, collator)
    # Otherwise the Trainer drops the column `edit`, and rows with edit=False would be edited.
    columns: Any = trainer
    columns._set_signature_columns_if_needed()
    columns._signature_columns = [*columns._signature_columns, "edit"]
    trainer.add_callback(callback)
    return collator


class ToEditCallback(TrainerCallback):
    """Puts a collator's edit into a Trainer, for training batches only, and logs what it does.

    In a Trainer whose `data_collator` is another one, it puts `collator` around that for training
    batches: so `callbacks=[ToEditCallback(ToEditCollator(prior))]` is enough in any framework that
    takes callbacks of transformers.

    The Trainer's logs (and so its trackers) get the shares of selected and changed tokens, the
    prior's perplexity and the speed, since the last log and over all ranks, as `toedit/...`. The
    guide lists them.

    With `refresh`, each swap starts a new generation: the prior takes over the trainee's current
    weights (with `Prior.shared`: a frozen copy of its adapter), in place, on all ranks or on none.
    If a checkpoint can't be used (half-written, not finite), the callback logs an error and the
    old prior stays.

    Args:
        collator: edits the batches; or a function that makes it from the trainee when training
            begins: for `Prior.shared` in a framework that takes callbacks before there is a model.
        refresh: when the prior is swapped. "epoch": at the end of each epoch, and N: every N steps,
            for the trainee's live weights; "save": for each checkpoint that the Trainer writes;
            None: never.

    Raises:
        TypeError: `collator` is neither a `ToEditCollator` nor a function.
        ValueError: `refresh` has another value. At the start of training: the trainer learns from
            preferences or rewards, or the prior does not fit the trainee, or can't be swapped.
    """

    def __init__(self, collator: ToEditCollator | MakeCollator, refresh: Refresh = None) -> None:
        check_refresh(refresh)
        self.refresh = refresh
        self._make: MakeCollator | None = None
        self._made_for: Any = None
        self._collator: ToEditCollator | None = None
        if callable(collator) and not isinstance(collator, ToEditCollator):
            self._make = collator
        else:
            self._use(collator)
        self._before_save = _BeforeSave(self)
        self._run: dict[str, Any] = {}  # name and attempt, for the journal
        # Batch size per device and the counts when training began; None: it has ended.
        self._begun: tuple[int, dict[str, float]] | None = None
        self._logged: dict[str, float] = {}  # sums at the last log
        self._step_seconds = self._mark = 0.0

    @property
    def collator(self) -> ToEditCollator:
        """What edits the batches; a RuntimeError before training if a function makes it."""
        if self._collator is None:
            raise RuntimeError(
                "the collator of this ToEditCallback is made when training begins; read it then"
            )
        return self._collator

    def _use(self, collator: Any) -> None:
        if not isinstance(collator, ToEditCollator):
            raise TypeError(
                "collator must be a ToEditCollator, or a function that makes one from the model, "
                f"got {type(collator).__name__}; write "
                "ToEditCallback(lambda model: ToEditCollator(Prior.shared(model), policy))"
            )
        self._collator = collator
        self._refresher = Refresher(collator.prior, self.refresh)

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the training loaders that the Trainer makes, also outside of `train()`."""
        if (trainer := calling_instance(Trainer)) is not None:
            check_trainer(trainer)
            if self._collator is not None and self._make is None:
                edit_training_loaders_of(trainer, self._collator)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that the prior fits the trainee, and edit the training loader.

        In a resumed run, restore the prior and the journal.
        """
        trainer, model = calling_instance(Trainer), kwargs["model"]
        if trainer is not None:
            check_trainer(trainer)
        if self._make is not None and self._made_for is not model:
            self._use(self._make(model))
            self._made_for = model
        self._order_callbacks()
        if self.collator.policy.num_draws > 1:
            install_drawn_loss(trainer, model)
        stats, batch_size = self.collator.editor.stats, getattr(trainer, "_train_batch_size", 0)
        # After running out of memory, a Trainer starts again with smaller batches
        # (auto_find_batch_size).
        is_retry = self._begun is not None and batch_size < self._begun[0]
        if self._begun is not None and is_retry:
            self._refresher.restart()
            stats.reset(self._begun[1])
        marked = edit_training_loader(kwargs["train_dataloader"], self.collator)
        marked.fit(model, args, kwargs.get("processing_class"))
        self._refresher.check(args, model)
        self._begin_run(args, state, model, kwargs.get("optimizer"), is_retry)
        self.collator.editor.run_state = state
        self._logged = stats.totals()
        self._begun = (batch_size, self._logged)
        self._step_seconds = 0.0
        self._mark = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add up the time of training steps (evaluation and saving do not count); swap if due."""
        self._step_seconds += time.perf_counter() - self._mark
        if isinstance(self.refresh, int) and state.global_step % self.refresh == 0:
            self._swap_live(kwargs["model"], state)
        self._mark = time.perf_counter()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Swap the prior if it is due."""
        if self.refresh == "epoch":
            self._swap_live(kwargs["model"], state)
        self._mark = time.perf_counter()

    def _swap_live(self, model: Any, state: Any) -> None:
        self._refresher.swap_live(model, state.global_step)
        self._remember(state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Do not count the time of evaluation."""
        self._mark = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the prior to the checkpoint, and swap the checkpoint in if it is due."""
        checkpoint = _checkpoint_of(args, state)
        self._refresher.link_into(checkpoint, args)
        if self.refresh == "save":
            self._refresher.swap_saved(checkpoint, kwargs["model"], state.global_step)
            self._remember(state)
        self._mark = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what the journal and the cache have not written yet."""
        self.collator.flush()
        self._refresher.end(args)
        self._begun = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise before the first update if the training batches are not edited."""
        begun = self._begun
        if begun is not None and self.collator.editor.stats.batches == begun[1]["batches"]:
            raise ValueError(NOT_EDITED)

    def before_save(self, args: Any, state: Any) -> None:
        """Write what the checkpoint needs that may be written next."""
        journal = self.collator.journal
        if journal is not None:
            journal.flush()
        self._refresher.store(args)
        if journal is not None:
            barrier()  # rank 0 writes the checkpoint, and all ranks write journals

    def _begin_run(self, args: Any, state: Any, model: Any, optimizer: Any, is_retry: bool) -> None:
        journal, step = self.collator.journal, state.global_step
        saved = saved_attributes(state.stateful_callbacks) if step > 0 else None
        self._refresher.begin(args)
        if step > 0:
            checkpoint = _resumed_from(args, state)
            reload_adapter(unwrap_wrappers(model), checkpoint, optimizer)
            if saved is not None:
                check_same_journal(saved, journal, step)
                self._refresher.restore(saved, checkpoint, model, state)
            else:
                logger.warning(
                    f"the checkpoint at step {step} was not written with ToEditCallback: the prior "
                    f"stays as it is, at generation {self.collator.prior.generation}"
                )
        run = saved["run"] if saved else self._run.get("run") if is_retry else None
        self._run = start_journal_run(journal, run, step)
        self._remember(state)

    def _remember(self, state: Any) -> None:
        """Put what resuming needs into trainer_state.json."""
        attributes = {**self._refresher.state, **self._run}
        state.stateful_callbacks[STATE_KEY] = {"args": {}, "attributes": attributes}

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
        editor, totals = self.collator.editor, self.collator.editor.stats.totals()
        sums = [totals[name] - before for name, before in self._logged.items()]
        names = (*self._logged, "steps")
        since = dict(zip(names, all_reduce([*sums, self._step_seconds]), strict=True))
        self._logged, self._step_seconds = totals, 0.0
        numbers = shares(since)
        editor.warn_if_lost(numbers["prior_perplexity"])
        if since["tokens"] > since["replayed"] and not since["scored"] and editor.policy.decides:
            editor.warn_once(
                "nothing",
                f"none of {since['tokens']:,.0f} tokens could be edited: all are without a label "
                "(-100; the prompts may fill the rows up to max_length), special or protected",
            )
        if not self.collator.policy.drops_tokens:
            del numbers["dropped_share"]
        if self.collator.journal is None:
            del numbers["replayed_share"]
        if self.collator.journal is not None or self.refresh is not None:
            numbers["generation"] = self.collator.prior.generation + 1
        numbers["time_share"] = since["seconds"] / since["steps"] if since["steps"] else math.nan
        return {f"toedit/{name}": value for name, value in numbers.items() if value == value}

    def _order_callbacks(self) -> None:
        # This callback must come before the trackers, which log the numbers they are given, and the
        # user's callbacks come last. `_BeforeSave` must come after all callbacks, since each may
        # ask for a checkpoint. The list is replaced because it is being iterated over.
        if (handler := calling_instance(CallbackHandler)) is not None:
            others = [c for c in handler.callbacks if c is not self and c is not self._before_save]
            stores_state = self.collator.journal is not None or self.refresh is not None
            last = [self._before_save] if stores_state else []
            handler.callbacks = [self, *others, *last]


class _BeforeSave(TrainerCallback):
    """Runs after all other callbacks, when it is known whether a checkpoint is to be written."""

    def __init__(self, owner: ToEditCallback) -> None:
        self._owner = owner

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save:
            self._owner.before_save(args, state)
            if args.should_save:
                # A checkpoint without its state counts as unfinished, while an older one of this
                # step is overwritten.
                (_checkpoint_of(args, state) / TRAINER_STATE_NAME).unlink(missing_ok=True)

    on_epoch_end = on_step_end
    on_log = on_step_end

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # With save_strategy="best", the Trainer decides after this whether to save.
        if control.should_save or args.save_strategy == "best":
            self._owner.before_save(args, state)


def _checkpoint_of(args: Any, state: Any) -> Path:
    """The folder of the checkpoint that the Trainer writes at this step."""
    trainer = calling_instance(Trainer)
    folder = args.output_dir if trainer is None else trainer._get_output_dir(trial=None)
    return Path(folder) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _resumed_from(args: Any, state: Any) -> Path:
    given = argument_of_caller("_inner_training_loop", "resume_from_checkpoint")
    return Path(given) if isinstance(given, str) else _checkpoint_of(args, state)
