"""ToEditCallback and attach(): the life cycle of a Trainer."""

from __future__ import annotations

import logging
import math
import time
import uuid
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import CallbackHandler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..distributed import all_reduce, barrier
from ..policy import EditPolicy
from ..prior.protocol import EditingPrior
from ..stores.journal import Journal
from ..stores.journal.files import read_valid
from .call_site import argument_of_caller, calling_instance
from .collator import DISPATCHING, ToEditCollator, text_tokenizer
from .refresh import Refresh, Refresher, check_refresh, share_run
from .stats import shares

logger = logging.getLogger("toedit_collate")

# Every number that is logged is a ratio of these sums since the last log, over all ranks.
_LOGGED_SUMS = (
    "tokens", "scored", "selected", "changed", "dropped", "sampled", "sampled_nll", "replayed",
    "seconds",
)  # fmt: skip

# What resuming needs stands under this name in trainer_state.json. Not as an `ExportableState` of
# transformers: that is read back only on demand, into a new callback, and a checkpoint without it
# could not be resumed with it.
STATE_KEY = "toedit_collate"


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
    | `toedit/replayed_share` | tokens edited from the journal / all tokens; with a journal only |
    | `toedit/generation` | number of the generation, from 1; with `refresh` or a journal only |

    With `refresh`, each swap begins a new generation: the prior takes over the trainee's weights as
    they are then (with `Prior.shared`: a frozen copy of its adapter), in place, on all ranks or on
    none. A checkpoint that can't be taken over (half-written, not finite) is logged as an error,
    and the old prior works on.

    Args:
        collator: edits the batches.
        refresh: when the prior is swapped: "epoch" at the end of each epoch and N every N steps,
            for the trainee's live weights; "save" whenever the Trainer has written a checkpoint,
            for that; None never.

    Raises:
        TypeError: `collator` is not a `ToEditCollator`.
        ValueError: `refresh` is something else. At the start of training: the prior can't be
            swapped for this trainee.
    """

    def __init__(self, collator: ToEditCollator, refresh: Refresh = None) -> None:
        if not isinstance(collator, ToEditCollator):
            raise TypeError(
                f"collator must be a ToEditCollator, got {type(collator).__name__}; write "
                "ToEditCallback(ToEditCollator(prior, policy))"
            )
        check_refresh(refresh)
        self.collator = collator
        self.refresh = refresh
        self._refresher = Refresher(collator._require_prior(), refresh)
        self._before_save = _BeforeSave(self)
        self._run: str | None = None
        self._attempt: int | None = None
        self._wrapped: ToEditCollator | None = None
        self._logged = dict.fromkeys(_LOGGED_SUMS, 0.0)
        self._step_seconds = 0.0
        self._mark = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that the prior fits the trainee, and see to it that training batches are edited.

        In a run that is resumed, bring prior and journal to where they were.
        """
        self._take_places()
        loader = kwargs["train_dataloader"]
        _refuse_dispatching(loader)
        self.collator.fit(kwargs["model"], args, kwargs.get("processing_class"))
        self._refresher.check(args, kwargs["model"])
        loader = getattr(loader, "base_dataloader", loader)
        present = _find_collator(loader.collate_fn)
        if present is None:
            self._wrapped = loader.collate_fn = self.collator.around(loader.collate_fn)
        elif present._stats is not self.collator._stats:
            raise ValueError(
                "the Trainer's data_collator is a ToEditCollator, and ToEditCallback has another "
                "one; pass the same to both, or the callback alone"
            )
        self._begin_run(args, state, kwargs["model"])
        totals = self.collator._stats.totals()
        self._logged = {name: totals[name] for name in _LOGGED_SUMS}
        self._step_seconds = 0.0
        self._mark = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add up the time of training steps (evaluation and saving do not count); swap if due."""
        now = time.perf_counter()
        self._step_seconds += now - self._mark
        if isinstance(self.refresh, int) and state.global_step % self.refresh == 0:
            self._refresher.swap_live(kwargs["model"], state.global_step)
            self._remember(state)
        self._mark = time.perf_counter()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Swap the prior if it is due."""
        if self.refresh == "epoch":
            self._refresher.swap_live(kwargs["model"], state.global_step)
            self._remember(state)
        self._mark = time.perf_counter()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the time of evaluation out."""
        self._mark = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Complete the checkpoint, and swap it in if that is due."""
        checkpoint = _checkpoint_of(args, state)
        self._refresher.link_into(checkpoint, args)
        if self.refresh == "save":
            self._refresher.swap_saved(checkpoint, kwargs["model"], state.global_step)
            self._remember(state)
        self._mark = time.perf_counter()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write what the journal and the cache have not written yet."""
        self.collator.flush()

    def before_save(self, args: Any, state: Any) -> None:
        """Bring to the disk what the checkpoint that may be written now relies on."""
        journal = self.collator.journal
        if journal is not None:
            journal.flush()
        self._refresher.store(args)
        if journal is not None:
            barrier()  # rank 0 writes the checkpoint, and all ranks write journals

    def _begin_run(self, args: Any, state: Any, model: Any) -> None:
        journal = self.collator.journal
        saved = state.stateful_callbacks.get(STATE_KEY, {}).get("attributes")
        self._refresher.begin()
        is_resumed = state.global_step > 0
        if is_resumed and saved is not None:
            _check_same_journal(saved, journal, state.global_step)
            self._refresher.restore(saved, _resumed_from(args, state), model, state)
        elif is_resumed:
            logger.warning(
                "the checkpoint at step %d was not written with ToEditCallback: the prior is taken "
                "as it is, of generation %d",
                state.global_step,
                self.collator._require_prior().generation,
            )
        self._run, self._attempt = None, None
        if journal is not None:
            run = saved["run"] if is_resumed and saved else uuid.uuid4().hex
            run, last = share_run(run, journal.last_attempt(run))
            self._run, self._attempt = run, 0 if last is None else last + 1
            journal.start_run(run, attempt=self._attempt, resumed_at=state.global_step)
        self._remember(state)

    def _remember(self, state: Any) -> None:
        """Put what resuming needs where the Trainer saves it, in trainer_state.json."""
        state.stateful_callbacks[STATE_KEY] = {
            "args": {},
            "attributes": {
                **self._refresher.state,
                "run": self._run,
                "attempt": self._attempt,
            },
        }

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
            zip((*_LOGGED_SUMS, "steps"), all_reduce([*sums, self._step_seconds]), strict=True)
        )
        self._step_seconds = 0.0
        numbers = shares(since)
        if self.collator.policy.drop_below is None:
            del numbers["dropped_share"]
        if self.collator.journal is None:
            del numbers["replayed_share"]
        if self.collator.journal is not None or self.refresh is not None:
            numbers["generation"] = self.collator._require_prior().generation + 1
        numbers["time_share"] = since["seconds"] / since["steps"] if since["steps"] else math.nan
        return {f"toedit/{name}": value for name, value in numbers.items() if value == value}

    def _take_places(self) -> None:
        # Trackers log what they are handed, in the order of the list: to add numbers to it, this
        # callback must be called before them, and a user's callbacks come last. Whether a
        # checkpoint is to be written is known only after all callbacks were asked. The list is
        # replaced, not reordered, since it is being iterated over right now.
        handler = calling_instance(CallbackHandler)
        if handler is None:
            return
        ours = (self, self._before_save)
        others = [c for c in handler.callbacks if all(c is not one for one in ours)]
        keeps_something = self.collator.journal is not None or self.refresh is not None
        last = [self._before_save] if keeps_something else []
        handler.callbacks = [self, *others, *last]


class _BeforeSave(TrainerCallback):
    """The last of all callbacks, which sees that a checkpoint is about to be written."""

    def __init__(self, owner: ToEditCallback) -> None:
        self._owner = owner

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save:
            self._owner.before_save(args, state)
            if args.should_save:
                # If it is written over an older one, it is not whole until its state is there.
                (_checkpoint_of(args, state) / TRAINER_STATE_NAME).unlink(missing_ok=True)

    on_epoch_end = on_step_end
    on_log = on_step_end

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # With save_strategy="best", only after this is it decided whether to save.
        if control.should_save or args.save_strategy == "best":
            self._owner.before_save(args, state)


def attach(
    trainer: Trainer, prior: EditingPrior, policy: EditPolicy | None = None, **kwargs: Any
) -> ToEditCollator:
    """Edit the training batches of a Trainer that exists already.

    The way in for `SFTTrainer` with packing or without padding, which refuses a collator of the
    user's: its own stays, inside ours.

    Args:
        trainer: a `Trainer`, `SFTTrainer` or another subclass, before `train()`.
        prior: scores the tokens.
        policy: which tokens are edited, and how; default: the paper's.
        kwargs: for `ToEditCollator`, and `refresh` for `ToEditCallback`.

    Raises:
        ValueError: the trainer's batches are edited already.

    Example:
        >>> trainer = SFTTrainer(model, args, train_dataset, peft_config=lora)  # doctest: +SKIP
        >>> attach(trainer, Prior.shared(trainer.model))  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """
    if isinstance(trainer.data_collator, ToEditCollator):
        raise ValueError("the trainer's data_collator is a ToEditCollator already; attach once")
    refresh = kwargs.pop("refresh", None)
    kwargs.setdefault("tokenizer", text_tokenizer(getattr(trainer, "processing_class", None)))
    kwargs.setdefault("base_collator", trainer.data_collator)
    collator = ToEditCollator(prior, policy, **kwargs)
    trainer.data_collator = collator  # type: ignore[assignment]
    trainer.add_callback(ToEditCallback(collator, refresh))
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


def _checkpoint_of(args: Any, state: Any) -> Path:
    """The folder of the checkpoint that the Trainer writes at this step."""
    trainer = calling_instance(Trainer)
    folder = args.output_dir if trainer is None else trainer._get_output_dir(trial=None)
    return Path(folder) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _resumed_from(args: Any, state: Any) -> Path:
    """The folder that the run is resumed from."""
    given = argument_of_caller("_inner_training_loop", "resume_from_checkpoint")
    return Path(given) if isinstance(given, str) else _checkpoint_of(args, state)


def _check_same_journal(saved: dict[str, Any], journal: Journal | None, step: int) -> None:
    if saved["run"] is not None and journal is None:
        raise ValueError(
            "the run that is resumed has a journal, by which its documents are edited; pass the "
            "same: ToEditCollator(..., journal=Journal(path))"
        )
    if journal is None:
        return
    if saved["run"] is None:
        raise ValueError(
            "the run that is resumed has no journal, so what it has edited is not known; leave "
            "journal out, or begin a new run"
        )
    if journal.last_attempt(saved["run"]) is None:
        held = f"holds generations {journal.generations} of another run"
        raise ValueError(
            "the run that is resumed has a journal, but the one in "
            f"{journal.path} {held if journal.generations else 'is empty'}; pass the journal that "
            "it wrote"
        )
    later = [
        frame.info["resumed_at"]
        for _, frame, _ in read_valid(journal.path)
        if frame.info["run"] == saved["run"] and frame.info["attempt"] > saved["attempt"]
    ]
    if min(later, default=step) < step:
        raise ValueError(
            f"the checkpoint of step {step} was written before the run was resumed at step "
            f"{min(later)}, when the journal took back all later edits; resume from a checkpoint "
            "that was written since, or from one of that step or before"
        )
