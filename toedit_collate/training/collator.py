"""ToEditCollator: any collator, with its training batches edited by a prior."""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..distributed import barrier, world_size
from ..editing.edit import edit_batch
from ..editing.with_journal import edit_with_journal
from ..policy import EditPolicy
from ..prior.protocol import EditingPrior, is_prior
from ..stores.cache import DecisionCache, Identity
from ..stores.journal import Journal
from ..tokens.checks import check_same_tokenizer
from ..tokens.result import EditResult
from ..tokens.token_batch import TokenBatch
from .call_site import Surroundings
from .columns import document_positions, with_new_lengths
from .default_collator import DefaultCollator
from .lazy_batch import ToEditBatch, register_editor
from .stats import EditStats

BaseCollator = Callable[[Any], Any]
OnEdit = Callable[[dict[str, Any], EditResult], None]

# Where the prior perplexity is measured: at most so many tokens of a batch.
NUM_SAMPLED = 32


class ToEditCollator:
    """A data collator whose training batches are token-edited by a frozen prior.

    Pass it to `Trainer` or `SFTTrainer` as `data_collator`. The base collator runs wherever the
    DataLoader calls it, in workers too; the edit takes place in the main process, on the prior's
    device, when the batch is moved to its device or first read. Evaluation and prediction of a
    `Trainer` get their batches unedited. In a loop of your own, use `collator.base_collator` for
    evaluation, and call `collator.set_epoch(n)` if your DataLoader is not accelerate's.

    Args:
        prior: scores the tokens.
        policy: which tokens are edited, and how; default: the paper's.
        base_collator: makes the batch; default: pads `input_ids` and `labels` with the tokenizer.
        tokenizer: of the trainee; default: the prior's. It must be the prior's: same ids for the
            same tokens.
        journal: keeps what is changed, so that a document has one edit per generation (`redraw`
            then makes no fresh draws) and a generation edits what the one before it made; without
            one, every generation edits the source.
        cache: keeps what the prior decides, so that a document needs a forward pass only the first
            time; draws are as without it. With `cache.prior()` for the prior, none is needed.
        on_edit: called with each batch, as it was collated, and what the edit did to it; with a
            journal that is what was changed since the source, and nothing is marked as selected.

    Raises:
        TypeError: `prior`, `policy`, `base_collator`, `journal`, `cache` or `on_edit` is something
            else.
        ValueError: another tokenizer than the prior's.

    Example:
        >>> collator = ToEditCollator(Prior.from_pretrained("gpt2"))  # doctest: +SKIP
        >>> Trainer(model, args, collator, train_dataset, eval_dataset)  # doctest: +SKIP
    """

    def __init__(
        self,
        prior: EditingPrior,
        policy: EditPolicy | None = None,
        *,
        base_collator: BaseCollator | None = None,
        tokenizer: Any = None,
        journal: Journal | None = None,
        cache: DecisionCache | None = None,
        on_edit: OnEdit | None = None,
    ) -> None:
        if not is_prior(prior):
            raise TypeError(
                f"prior must be a Prior, got {type(prior).__name__}; write Prior(model, tokenizer)"
            )
        if policy is not None and not isinstance(policy, EditPolicy):
            raise TypeError(f"policy must be an EditPolicy, got {type(policy).__name__}")
        if base_collator is not None and not callable(base_collator):
            raise TypeError(
                f"base_collator must be a function from features to a batch, got "
                f"{type(base_collator).__name__}"
            )
        if isinstance(base_collator, ToEditCollator):
            raise TypeError("base_collator is a ToEditCollator already; edit a batch once only")
        if journal is not None and not isinstance(journal, Journal):
            raise TypeError(
                f"journal must be a Journal, got {type(journal).__name__}; write Journal(path)"
            )
        if cache is not None and not isinstance(cache, DecisionCache):
            raise TypeError(
                f"cache must be a DecisionCache, got {type(cache).__name__}; write "
                "DecisionCache(path), or DecisionCache() to keep it in memory"
            )
        if on_edit is not None and not callable(on_edit):
            raise TypeError(
                f"on_edit must be a function (batch, EditResult) -> None, got "
                f"{type(on_edit).__name__}"
            )
        self.prior: EditingPrior | None = prior
        self.policy = EditPolicy() if policy is None else policy
        self.tokenizer = tokenizer if tokenizer is not None else prior.tokenizer
        self.base_collator: BaseCollator = base_collator or DefaultCollator(self.tokenizer)
        self.adopt_tokenizer(tokenizer)
        self.journal = journal
        self.cache = cache
        self.epoch = 0
        self._step = 0
        self._is_at: tuple[int, int] | None = None  # generation and epoch
        self._stats = EditStats()
        self._fitted: Callable[[], Any] = _no_model
        self.on_edit = on_edit
        self.key = uuid.uuid4().hex
        register_editor(self)

    def __call__(self, features: Any) -> ToEditBatch:
        """Collate features into a batch that will edit itself.

        Raises:
            ValueError: there are no features, or the base collator made no `input_ids`.
            TypeError: the base collator did not return a mapping.
        """
        if hasattr(features, "__len__") and len(features) == 0:
            raise ValueError("the batch is empty: the collator got no features")
        collated = self.base_collator(features)
        if not isinstance(collated, Mapping):
            raise TypeError(
                f"the base collator must return a dict of tensors, got {type(collated).__name__}"
            )
        if "input_ids" not in collated:
            raise ValueError(
                f"the base collator returned {sorted(collated)} without input_ids, so there are no "
                "tokens to edit"
            )
        return ToEditBatch(collated, self)

    @property
    def stats(self) -> dict[str, float]:
        """Running counts over all edited batches, and their shares.

        `batches`, `tokens` (without padding), `scored` (those the policy was applied to),
        `selected`, `changed`, `dropped`; `selected_share`, `changed_share` and `dropped_share` of
        the scored tokens; `prior_perplexity` (of a sample of them); `seconds` of the edit pass and
        `tokens_per_second`; `replayed` tokens, whose edit the journal knew (they are not counted
        as scored again), and `replayed_share`.
        """
        return self._stats.summary()

    def flush(self) -> None:
        """Write what the journal and the cache have not written yet."""
        for store in self._stores:
            store.flush()

    @property
    def _stores(self) -> list[Journal | DecisionCache]:
        return [store for store in (self.journal, self.cache) if store is not None]

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch this is, for `redraw="epoch"`; not needed with accelerate's loaders."""
        self.epoch = epoch

    def around(self, base_collator: BaseCollator) -> ToEditCollator:
        """This collator around another base: same prior, policy and counts."""
        other = ToEditCollator(
            self._require_prior(), self.policy, base_collator=base_collator,
            tokenizer=self.tokenizer, journal=self.journal, cache=self.cache, on_edit=self.on_edit,
        )  # fmt: skip
        other._stats = self._stats
        return other

    def adopt_tokenizer(self, tokenizer: Any) -> None:
        """Compare the trainee's tokenizer with the prior's, or give it to a prior without one."""
        prior = self._require_prior()
        if tokenizer is None:
            return
        if prior.tokenizer is None:
            prior.set_tokenizer(tokenizer)
        if self.tokenizer is None:
            self.tokenizer = tokenizer
        check_same_tokenizer(tokenizer, prior.tokenizer, prior.vocab_size)
        base = self.base_collator
        if isinstance(base, DefaultCollator) and base.tokenizer is None:
            base.tokenizer = tokenizer

    def fit(self, model: Any, args: Any, processing_class: Any) -> None:
        """Check that the prior fits what a `Trainer` trains, and compute as it does.

        Args:
            model: the trainee.
            args: the `TrainingArguments`.
            processing_class: the tokenizer or processor of the `Trainer`, or None.

        Raises:
            ValueError: the prior is the model in training, the trainee has another tokenizer, or a
                shared prior can't score with a trainee that is spread over ranks so.
        """
        prior = self._require_prior()
        prior.fit(model, torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None)
        self.adopt_tokenizer(text_tokenizer(processing_class))
        self._fitted = weakref.ref(model)

    def edit_collated(
        self, batch: dict[str, Any], where: Surroundings, device: torch.device | None = None
    ) -> dict[str, Any]:
        """Edit what the base collator made, unless it is read for evaluation.

        Args:
            batch: of tensors.
            where: it is read.
            device: where it goes next; what was edited goes there at once. None: nowhere.

        Raises:
            RuntimeError: in a DataLoader worker; or under accelerate's dispatching loader with
                several processes.
        """
        if where.evaluating:
            return batch
        if where.dispatching and world_size() > 1:
            raise RuntimeError(DISPATCHING)
        prior = self._require_prior()
        trainer = where.trainer
        if trainer is not None and self._fitted() is not trainer.model:
            self.fit(trainer.model, trainer.args, getattr(trainer, "processing_class", None))
        _check_keys(batch)
        tensors: dict[str, Any] = {
            "attention_mask": batch.get("attention_mask"),
            "position_ids": document_positions(batch),
            "labels": batch.get("labels"),
        }
        epoch = self.epoch if where.epoch is None else where.epoch
        step = self._step if trainer is None else trainer.state.global_step
        if step and self._is_at is None and self.journal and not self.journal.run_started:
            raise ValueError(
                "the Trainer resumes a run with a journal, of which a part may have to be taken "
                "back; pass callbacks=[ToEditCallback(collator)], which does it"
            )
        self._learn_from_other_ranks(epoch)
        self._step += 1
        # Rows that may shrink meet the batch's other tensors where those are, before all move.
        home = device if self.policy.drop_below is None else None
        with self._stats.timing(prior.device):
            if self.journal is None:
                edited: EditResult | None = edit_batch(
                    prior, self.policy, TokenBatch.of(batch["input_ids"], **tensors, home=home),
                    epoch=epoch, generation=prior.generation, num_sampled=NUM_SAMPLED,
                    cache=self.cache,
                )  # fmt: skip
                assert edited is not None
                final, num_replayed = edited, 0
            else:
                both = edit_with_journal(
                    prior, self.journal, batch["input_ids"], **tensors, policy=self.policy,
                    step=step, num_sampled=NUM_SAMPLED, cache=self.cache,
                )  # fmt: skip
                final, edited, num_replayed = both.final, both.edited, both.num_replayed
        mask = batch.get("attention_mask")
        num_tokens = batch["input_ids"].numel() if mask is None else mask.sum()
        self._stats.add(edited, num_tokens, num_replayed)
        if self.on_edit is not None:
            self.on_edit(batch, final)
        return _with_edit(batch, final)

    def _learn_from_other_ranks(self, epoch: int) -> None:
        """At the first batch of an epoch or generation: read what the ranks wrote; collective.

        Each rank gets other documents in each epoch, which may have been edited on another.
        """
        prior = self._require_prior()
        if (prior.generation, epoch) == self._is_at:
            return
        self._is_at = (prior.generation, epoch)
        if world_size() > 1 and self._stores:
            if self.cache is not None:
                self.cache.open(Identity.of(prior, self.policy))
            self.flush()
            barrier()
            for store in self._stores:
                store.refresh()

    def _require_prior(self) -> EditingPrior:
        if self.prior is None:
            raise RuntimeError(
                "this ToEditCollator was sent to another process without its prior: batches can "
                "be collated here, and are edited when they are read in the process that made it"
            )
        return self.prior

    def __getstate__(self) -> dict[str, Any]:
        # To workers: what collates, and nothing that holds the GPU.
        return {
            "base_collator": self.base_collator,
            "tokenizer": self.tokenizer,
            "epoch": self.epoch,
            "key": self.key,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.prior = None
        self.policy = EditPolicy()
        self.journal = None
        self.cache = None
        self.on_edit = None
        self._stats = EditStats()
        self._fitted = _no_model

    def __repr__(self) -> str:
        return f"ToEditCollator({self.prior}, {self.policy}, around {self.base_collator})"


DISPATCHING = (
    "accelerate's dispatching loader (its default for an IterableDataset) collates and edits every "
    "batch on rank 0 while the other ranks wait; pass "
    'accelerator_config={"dispatch_batches": False} to the TrainingArguments, so that each rank '
    "edits its own"
)


def _with_edit(batch: dict[str, Any], result: EditResult) -> dict[str, Any]:
    """The collated batch with the edit put in; other keys as they came."""
    edited = dict(batch)
    new = {
        "input_ids": result.input_ids,
        "labels": result.labels,
        "attention_mask": result.attention_mask,
    }
    edited.update({key: value for key, value in new.items() if value is not None})
    if result.source is not None:
        edited = with_new_lengths(batch, edited, result)
    return edited


def _check_keys(batch: dict[str, Any]) -> None:
    if "shift_labels" in batch:
        raise ValueError(
            "the batch has shift_labels, which would keep the tokens from before the edit; let the "
            "model shift labels, and remove shift_labels from the base collator's output"
        )
    if "inputs_embeds" in batch:
        raise ValueError("the batch has inputs_embeds: only token ids can be edited")


def text_tokenizer(processing_class: Any) -> Any:
    """The tokenizer itself, where a Trainer has a processor for several modalities."""
    tokenizer = getattr(processing_class, "tokenizer", None)
    return tokenizer if tokenizer is not None else processing_class


def _no_model() -> None:
    return None
