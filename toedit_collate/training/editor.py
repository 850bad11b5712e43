"""BatchEditor: edits collated batches in the process that has the prior."""

from __future__ import annotations

import contextlib
import logging
import uuid
import weakref
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from ..distributed import barrier, world_size
from ..editing.edit import check_types, edit_batch
from ..editing.with_journal import BatchEdit, edit_with_journal
from ..head.soft_labels import KEY as DRAWS
from ..policy import EditPolicy
from ..prior.base import BasePrior
from ..stores.cache import DecisionCache, Identity
from ..stores.journal import Journal
from ..tokens.checks import check_same_tokenizer
from ..tokens.protection import Protection
from ..tokens.removal import shrink_other_keys
from ..tokens.result import EditResult
from ..tokens.token_batch import TokenBatch
from ..transfer import send
from .batch_keys import check_keys
from .call_site import CallSite, Origin, Purpose
from .drawn_loss import check_uses_drawn_labels
from .stats import EditStats
from .trainee import (
    check_needs_no_labels,
    check_trainee,
    check_trainer,
    find_tokenizer,
    text_tokenizer,
    tokenizers_in,
)

logger = logging.getLogger("toedit_collate")

OnEdit = Callable[[dict[str, Any], EditResult], None]

# The prior's perplexity is measured on at most so many tokens of a batch.
NUM_SAMPLED = 32

DISPATCHING = (
    "accelerate's dispatching loader (its default for an IterableDataset) collates and edits every "
    "batch on rank 0 while the other ranks wait; pass "
    'accelerator_config={"dispatch_batches": False} to the TrainingArguments, so that each rank '
    "edits its own"
)


class BatchEditor:
    """Edits batches: holds the prior, the policy, the stores and the counts. Stays in its process.

    `ToEditCollator` makes one, with its own arguments. The collator travels to DataLoader workers;
    a batch that comes back finds its editor by `key`.
    """

    def __init__(
        self,
        prior: BasePrior,
        policy: EditPolicy | None = None,
        *,
        tokenizer: Any = None,
        journal: Journal | None = None,
        cache: DecisionCache | None = None,
        on_edit: OnEdit | None = None,
    ) -> None:
        check_types(prior, policy, journal, cache)
        self.prior = prior
        self.policy = EditPolicy() if policy is None else policy
        if self.policy.num_draws > 1 and journal is not None:
            raise ValueError(
                f"num_draws={self.policy.num_draws} can't be combined with a journal, which stores "
                "one token for each place; use a DecisionCache, which stores the draws"
            )
        self.journal = journal
        self.cache = cache
        self.on_edit = on_edit
        self.stats = EditStats()
        self.epoch: int | None = None  # of `ToEditCollator.set_epoch`
        self.run_state: Any = None  # the `TrainerState` of the run that trains on its batches
        self.key = uuid.uuid4().hex
        self._num_batches = 0
        self._is_at: tuple[int, int] | None = None  # generation and epoch
        self._fitted: Callable[[], Any] = lambda: None
        self._warned_about: set[str] = set()
        self._protection = Protection()  # by the trainee's tokenizers
        self.tokenizer = prior.tokenizer if tokenizer is None else tokenizer
        self.adopt_tokenizer(tokenizer)
        EDITORS[self.key] = self

    @property
    def stores(self) -> list[Journal | DecisionCache]:
        """The journal and the cache, if there are any."""
        return [store for store in (self.journal, self.cache) if store is not None]

    def flush(self) -> None:
        """Write what the journal and the cache have not written yet."""
        for store in self.stores:
            store.flush()

    def adopt_tokenizer(self, tokenizer: Any) -> None:
        """Compare the trainee's tokenizer with the prior's, or give it to a prior without one."""
        if tokenizer is None:
            return
        if self.prior.tokenizer is None:
            self.prior.set_tokenizer(tokenizer)
        if self.tokenizer is None:
            self.tokenizer = tokenizer
        check_same_tokenizer(tokenizer, self.prior.tokenizer, self.prior.vocab_size)
        self._protection |= Protection.of(tokenizer)

    def protect_tokens_of(self, collators: Iterable[Any]) -> None:
        """Protect the special tokens and templates of collators' tokenizers with our ids, too."""
        for tokenizer in chain.from_iterable(map(tokenizers_in, collators)):
            with contextlib.suppress(ValueError):
                if self.prior.tokenizer is not None:
                    check_same_tokenizer(tokenizer, self.prior.tokenizer, self.prior.vocab_size)
                self._protection |= Protection.of(tokenizer)

    def fit(
        self, model: Any, args: Any, processing_class: Any, collators: Iterable[Any] = ()
    ) -> None:
        """Check that the prior fits the model of a `Trainer`, and use its mixed precision.

        `collators` are searched for the trainee's tokenizer if the `Trainer` has none.
        """
        mixed_precision = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        self.prior.prepare_for(model, mixed_precision)
        tokenizer = text_tokenizer(processing_class)
        if tokenizer is None:
            tokenizer = find_tokenizer(model, collators)
        self.adopt_tokenizer(tokenizer)
        self.protect_tokens_of(collators)
        check_trainee(model, self.prior)
        self._fitted = weakref.ref(model)

    def edit(
        self,
        batch: dict[str, Any],
        origin: Origin,
        site: CallSite,
        device: torch.device | None = None,
    ) -> dict[str, Any]:
        """Edit the batch of a base collator; raises a ValueError if that is not possible.

        Edited tensors go to `device` at once; None: they stay on the batch's device.
        """
        self._check(batch, site)
        with self.prior.protecting(self._protection):
            epoch, step = self._progress(origin, site)
            with self.stats.timing(self.prior.device):
                source = self._read(batch, origin, device)
                edit = self._edit(source, epoch, step)
        self._count(source, edit)
        if self.on_edit is not None:
            self.on_edit(batch, edit.final)
        edited = _with_edit(batch, edit.final)
        if self.journal is not None:  # it edits on the host
            at = batch["input_ids"].device
            return {k: send(v, at) if isinstance(v, Tensor) else v for k, v in edited.items()}
        return edited

    def _check(self, batch: dict[str, Any], site: CallSite) -> None:
        """Step 1: refuse what can't be edited."""
        if site.dispatching and world_size() > 1:
            # A ValueError: accelerate swallows a RuntimeError here, and raises one of its own.
            raise ValueError(DISPATCHING)
        trainer = site.trainer
        if trainer is not None and self._fitted() is not trainer.model:
            check_trainer(trainer)
            processing_class = getattr(trainer, "processing_class", None)
            self.fit(trainer.model, trainer.args, processing_class, [trainer.data_collator])
        if trainer is not None and self.policy.num_draws > 1:
            check_uses_drawn_labels(trainer.model)
        check_keys(batch)
        columns = getattr(getattr(trainer, "train_dataset", None), "column_names", None)
        if "edit" not in batch and "edit" in (columns or ()):
            raise ValueError(
                "the training data has a column 'edit', and the Trainer dropped it, so that rows "
                "with edit=False would be edited; use attach(trainer, prior, policy), or set "
                "remove_unused_columns=False"
            )
        if trainer is not None and batch.get("labels") is None:
            check_needs_no_labels(trainer, batch)

    def _progress(self, origin: Origin, site: CallSite) -> tuple[int, int]:
        """Step 2: the epoch, and the number of updates of the trainee before this batch.

        In a Trainer, both are its own counts. Elsewhere, the epoch is that of `set_epoch`, or else
        the loader's, and each batch counts as an update.
        """
        in_trainer = site.trainer is not None or origin.purpose is Purpose.TRAINING
        epoch, step, state = site.epoch or 0, self._num_batches, None
        if in_trainer:
            # A thread may read a batch of a marked loader; then no Trainer is on its stack.
            state = self.run_state if site.trainer is None else site.trainer.state
        elif self.epoch is not None:
            epoch = self.epoch
        if state is not None:
            step = state.global_step
            # The state alone is late if the length of an epoch is not known.
            epoch = max(epoch, int(state.epoch or 0))
        if step and self._is_at is None and self.journal and not self.journal.run_started:
            raise ValueError(
                "the Trainer resumes a run that has a journal, and edits after the checkpoint must "
                "be discarded first; pass callbacks=[ToEditCallback(collator)], which does it"
            )
        self._num_batches += 1
        self._share_stores(epoch)
        return epoch, step

    def _read(
        self, batch: dict[str, Any], origin: Origin, device: torch.device | None
    ) -> TokenBatch:
        """Step 3: find the documents of the batch."""
        self.prior.take_prepared(origin.prepared or {})
        # If rows may shrink, the other tensors of the batch shrink before the batch moves. And a
        # journal reads the edited tokens on the host.
        output_device = None if self.policy.drops_tokens else device
        if self.journal is not None:
            output_device = torch.device("cpu")
        return TokenBatch.collated(
            batch,
            tokenizer=self.tokenizer or self.prior.tokenizer,
            output_device=output_device,
            pad_to_multiple_of=origin.pad_to_multiple_of,
        )

    def _edit(self, source: TokenBatch, epoch: int, step: int) -> BatchEdit:
        """Step 4: Algorithm 1."""
        settings: dict[str, Any] = {"num_sampled": NUM_SAMPLED, "cache": self.cache}
        if self.journal is not None:
            return edit_with_journal(
                self.prior, self.journal, source, policy=self.policy, step=step, **settings
            )
        settings |= {"epoch": epoch, "generation": self.prior.generation}
        edited = edit_batch(self.prior, self.policy, source, **settings)
        return BatchEdit(edited, edited)

    def _count(self, source: TokenBatch, edit: BatchEdit) -> None:
        """Step 5: count the edits, and warn of rows that may end with padding."""
        self.stats.add(edit.edited, source.documents.num_tokens, edit.num_replayed)
        if source.edit is not None:
            self.stats.add_raw(edit.final, source)
        self.stats.add_alignment(self.prior.take_counts())
        if (token := source.unknown_padding) is not None:
            self.warn_once(
                "padding",
                f"rows end with several tokens {token} without a label, and there is no "
                "attention_mask. If they are padding, edits depend on the width of the batch; let "
                "the base collator return an attention_mask, or pad with the tokenizer's pad_token",
            )

    def warn_if_lost(self, perplexity: float) -> None:
        """Warn once if the prior's perplexity is worse than that of guessing."""
        if perplexity > self.prior.vocab_size:
            self.warn_once(
                "perplexity",
                f"the prior's perplexity on the training data is {perplexity:.4g}, worse than "
                f"guessing among its {self.prior.vocab_size:,} ids; check that it is trained, and "
                "that its tokenizer is the trainee's",
            )

    def warn_once(self, topic: str, message: str) -> None:
        """Log a warning, unless one on the same topic was logged before."""
        if topic not in self._warned_about:
            self._warned_about.add(topic)
            logger.warning(message)

    def _share_stores(self, epoch: int) -> None:
        """At the first batch of an epoch or generation: read what the ranks wrote; collective.

        In each epoch, a rank gets other documents, which another rank may have edited before.
        """
        if (self.prior.generation, epoch) == self._is_at:
            return
        self._is_at = (self.prior.generation, epoch)
        if world_size() > 1 and self.stores:
            if self.cache is not None:
                with self.prior.protecting(self._protection):
                    self.cache.open(Identity.of(self.prior, self.policy))
            self.flush()
            barrier()
            for store in self.stores:
                store.refresh()


# The editors of this process by key: batches and collators come back from other processes with it.
# Weak references: an editor that nobody uses must not keep its prior on the GPU.
EDITORS: weakref.WeakValueDictionary[str, BatchEditor] = weakref.WeakValueDictionary()


def find_editor(key: str) -> BatchEditor:
    """The editor of this process with a key; a RuntimeError if there is none."""
    editor = EDITORS.get(key)
    if editor is None:
        raise RuntimeError(
            "the ToEditCollator is gone, or lives in another process: workers collate batches "
            "without the prior, and the process that has it edits them when they are read; keep a "
            "reference to the collator while its batches are in use"
        )
    return editor


def _with_edit(batch: dict[str, Any], result: EditResult) -> dict[str, Any]:
    """A collated batch with its edit; other keys stay the same unless tokens were removed."""
    batch = {name: value for name, value in batch.items() if name != "edit"}
    edited = {**batch, "input_ids": result.input_ids}
    if "labels" in batch:
        edited["labels"] = result.labels
    if result.draws is not None:
        edited[DRAWS] = result.draws
    if result.source is not None:
        edited |= shrink_other_keys(batch, result)
    return edited
