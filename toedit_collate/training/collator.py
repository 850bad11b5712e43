"""ToEditCollator: any collator, with its training batches edited by a prior."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import get_worker_info

from ..policy import EditPolicy
from ..prior.base import BasePrior
from ..stores.cache import DecisionCache
from ..stores.journal import Journal
from .batch_layout import read_layout
from .call_site import inside_data_loader
from .default_collator import DefaultCollator
from .editor import BatchEditor, OnEdit
from .lazy_batch import Origin, ToEditBatch, registered_editor
from .widths import padding_multiple

BaseCollator = Callable[[Any], Any]


class ToEditCollator:
    """A data collator whose training batches are token-edited by a frozen prior.

    Pass it to `Trainer` or `SFTTrainer` as `data_collator`. The base collator runs wherever the
    DataLoader calls it, in workers too; the edit takes place in the main process, on the prior's
    device, when the batch is moved to its device or first read.

    What is edited: batches that a `Trainer` or a Lightning `Trainer` trains on, never those that it
    evaluates or predicts on. With `attach` or `ToEditCallback`, the Trainer's training loader is
    known, and no other loader's batches are edited, whoever reads them; without, a batch that is
    read outside of a Trainer is taken for training. So in a loop of your own, use
    `collator.base_collator` for evaluation, and call `collator.set_epoch(n)`.

    A copy of a collator, or one that was pickled and comes back, edits by the same `editor`: same
    prior, journal, cache and counts. In another process it collates only, and its batches are
    edited in the process where its editor lives.

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

    Attributes:
        base_collator: makes the batches.
        key: names the editor in all processes.
        aligner: tokenizes documents in workers for a prior with another tokenizer, or None.
        trains: what its batches are for, as `Origin` has it: True in a loader that is known to
            train, False where such a loader has another collator, None: not known.

    Raises:
        TypeError: `prior`, `policy`, `base_collator`, `journal`, `cache` or `on_edit` is something
            else.
        ValueError: another tokenizer than the prior's.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from toedit_collate import EditPolicy, Prior
        >>> config = LlamaConfig(
        ...     vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        ...     num_attention_heads=2,
        ... )
        >>> prior = Prior(LlamaForCausalLM(config))
        >>> base = lambda rows: {"input_ids": torch.tensor(rows)}
        >>> collator = ToEditCollator(prior, EditPolicy(threshold=0.01), base_collator=base)
        >>> collator([[7, 8, 9], [5, 6, 7]])["input_ids"].shape
        torch.Size([2, 3])
        >>> collator.stats["scored"]
        4
    """

    def __init__(
        self,
        prior: BasePrior,
        policy: EditPolicy | None = None,
        *,
        base_collator: BaseCollator | None = None,
        tokenizer: Any = None,
        journal: Journal | None = None,
        cache: DecisionCache | None = None,
        on_edit: OnEdit | None = None,
    ) -> None:
        if base_collator is not None and not callable(base_collator):
            raise TypeError(
                f"base_collator must be a function from features to a batch, got "
                f"{type(base_collator).__name__}"
            )
        if isinstance(base_collator, ToEditCollator):
            raise TypeError("base_collator is a ToEditCollator already; edit a batch once only")
        editor = BatchEditor(
            prior, policy, tokenizer=tokenizer, journal=journal, cache=cache, on_edit=on_edit
        )
        self._editor: BatchEditor | None = editor
        self.key = editor.key
        self.base_collator: BaseCollator = base_collator or DefaultCollator(editor.tokenizer)
        self.aligner: Any = prior.aligner
        self.trains: bool | None = None

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
        trains = self.trains
        if trains is False and get_worker_info() is None and not inside_data_loader():
            trains = None  # called by hand
        prepared = None
        if self.aligner is not None and trains is not False and get_worker_info() is not None:
            layout = read_layout(collated)
            prepared = self.aligner.prepare_batch(
                collated["input_ids"], layout.attention_mask, layout.position_ids
            )
        origin = Origin(trains, padding_multiple(self.base_collator, collated), prepared)
        return ToEditBatch(collated, self._editor or self.key, origin)

    @property
    def editor(self) -> BatchEditor:
        """What edits the batches: prior, policy, journal, cache and counts.

        Raises:
            RuntimeError: it lives in another process, or is gone.
        """
        if self._editor is None:
            self._editor = registered_editor(self.key)
        if self._editor is None:
            raise RuntimeError(
                "this ToEditCollator was sent to another process, and its prior was not: batches "
                "can be collated here, and are edited when they are read in the process that made "
                "it"
            )
        return self._editor

    prior = property(lambda self: self.editor.prior, doc="Scores the tokens.")
    policy = property(lambda self: self.editor.policy, doc="Which tokens are edited, and how.")
    tokenizer = property(lambda self: self.editor.tokenizer, doc="Of the trainee, or None.")
    journal = property(lambda self: self.editor.journal, doc="Keeps what is changed, or None.")
    cache = property(lambda self: self.editor.cache, doc="Keeps decisions, or None.")

    @property
    def on_edit(self) -> OnEdit | None:
        """Called with each batch and its edit."""
        return self.editor.on_edit

    @on_edit.setter
    def on_edit(self, function: OnEdit | None) -> None:
        self.editor.on_edit = function

    @property
    def stats(self) -> dict[str, float]:
        """Running counts over all edited batches, and their shares.

        `batches`, `tokens` (without padding), `scored` (those the policy was applied to),
        `selected`, `changed`, `dropped`; `selected_share`, `changed_share` and `dropped_share` of
        the scored tokens; `prior_perplexity` (of a sample of them); `seconds` of the edit pass and
        `tokens_per_second`; `replayed` tokens, whose edit the journal knew (they are not counted
        as scored again), and `replayed_share`. With a prior that is aligned to another tokenizer,
        also `aligned_share`: of the tokens behind another one, those that can be scored.
        """
        summary = self.editor.stats.summary()
        self.editor.say_if_lost(summary["prior_perplexity"])
        return summary

    def flush(self) -> None:
        """Write what the journal and the cache have not written yet."""
        self.editor.flush()

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch this is, for `redraw="epoch"`, in a loop of your own.

        Inside a Trainer, its own count holds. Outside, this goes before what accelerate's loader
        counts, which begins at 0 again in a run that is resumed.
        """
        self.editor.set_epoch(epoch)

    def fit(self, model: Any, args: Any, processing_class: Any) -> None:
        """Check that the prior fits what a `Trainer` trains; see `BatchEditor.fit`."""
        base = self.base_collator
        self.editor.fit(model, args, processing_class, collators=(base,))
        if isinstance(base, DefaultCollator) and base.tokenizer is None:
            base.tokenizer = self.editor.tokenizer

    def around(self, base_collator: BaseCollator) -> ToEditCollator:
        """This collator around another base: same editor."""
        other = copy.copy(self)
        other._editor = self.editor
        other.base_collator = base_collator
        other.trains = None
        return other

    def for_training(self) -> ToEditCollator:
        """This collator for a loader that is known to train: all its batches are edited."""
        other = self.around(self.base_collator)
        other.trains = True
        return other

    def leave_other_loaders(self) -> None:
        """From now on, edit in no loader, since the one that trains has `for_training()`.

        A batch that is made by calling the collator by hand is still edited.
        """
        self.trains = False

    def __getstate__(self) -> dict[str, Any]:
        # To workers: what collates, and nothing that holds the GPU.
        names = ("base_collator", "key", "trains", "aligner")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._editor = registered_editor(self.key)

    def __repr__(self) -> str:
        editor = self._editor
        by = (
            "an editor in another process" if editor is None else f"{editor.prior}, {editor.policy}"
        )
        return f"ToEditCollator({by}, around {self.base_collator})"
