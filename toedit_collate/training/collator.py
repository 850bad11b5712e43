"""ToEditCollator: its training batches are edited. What it is put around, and in which loaders."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import DataLoader, get_worker_info
from transformers import DataCollatorForSeq2Seq

from ..policy import EditPolicy
from ..prior.base import BasePrior
from ..stores.cache import DecisionCache
from ..stores.journal import Journal
from ..tokens.token_batch import TokenBatch
from .batch import ToEditBatch
from .batch_keys import edit_key, take_edit_column
from .call_site import Origin, Purpose, inside_data_loader
from .editor import DISPATCHING, EDITORS, BatchEditor, OnEdit, find_editor

BaseCollator = Callable[[Any], Any]


class ToEditCollator:
    """A data collator whose training batches are token-edited by a frozen prior.

    Pass it to `Trainer` or `SFTTrainer` as `data_collator`. The base collator runs in DataLoader
    workers. The edit takes place in the main process, on the prior's device, when the batch is
    moved to its device or first read. Copied and unpickled collators share one `editor`.

    Batches that a `Trainer` or a Lightning `Trainer` trains on are edited; batches that it
    evaluates or predicts on are not. With `attach` or `ToEditCallback`, only the Trainer's training
    loader is edited. Without them, a batch that is read outside of a Trainer counts as training:
    in a loop of your own, use `collator.base_collator` for evaluation, and call
    `collator.set_epoch(n)`.

    To leave rows or tokens alone, use a dataset column `edit` with one bool for a row or one for
    each of its tokens, or a key `edit` of the base collator's batches, (B,) or (B, T) bool. False
    leaves the row or token alone; a row without a value is edited. The model does not get the key.
    Without `attach`, a `Trainer` needs `remove_unused_columns=False` to keep the column.

    Args:
        prior: scores the tokens.
        policy: which tokens are edited, and how; default: the paper's.
        base_collator: makes the batch; default: pads `input_ids` and `labels` with the tokenizer.
        tokenizer: of the trainee; default: the prior's. Both must give the same ids.
        journal: stores the changes, so that a document has one edit per generation (`redraw` has no
            effect then), and a generation edits the result of the one before. Without a journal,
            every generation edits the source.
        cache: stores the prior's decisions, so that a document needs only one forward pass. The
            draws are the same as without. A prior made by `cache.prior()` needs no model.
        on_edit: called with each collated batch and its `EditResult`. With a journal, the result
            holds all changes since the source, and marks nothing as selected.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the tokenizer is not the prior's.

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
            got = type(base_collator).__name__
            raise TypeError(f"base_collator must be a function from features to a batch, got {got}")
        if isinstance(base_collator, ToEditCollator):
            raise TypeError("base_collator is a ToEditCollator already; edit a batch once only")
        editor = BatchEditor(
            prior, policy, tokenizer=tokenizer, journal=journal, cache=cache, on_edit=on_edit
        )
        editor.protect_tokens_of([base_collator])
        self._editor: BatchEditor | None = editor
        self.key = editor.key
        self.base_collator: BaseCollator = base_collator or DefaultCollator(editor.tokenizer)
        # For workers: tokenizes documents for a prior with another tokenizer; or None.
        self.aligner: Any = prior.aligner
        self.context = editor.policy.context
        # TRAINING in a loader that is marked for training, EVALUATION where the marked loader has
        # another collator.
        self.purpose = Purpose.UNKNOWN

    def __call__(self, features: Any) -> ToEditBatch:
        """Collate features into a batch that will edit itself; raises if it has no `input_ids`."""
        if hasattr(features, "__len__") and len(features) == 0:
            raise ValueError("the batch is empty: the collator got no features")
        features, flags = take_edit_column(features)
        collated = self.base_collator(features)
        if not isinstance(collated, Mapping):
            got = type(collated).__name__
            raise TypeError(f"the base collator must return a dict of tensors, got {got}")
        if "input_ids" not in collated:
            raise ValueError(
                f"the base collator returned {sorted(collated)} without input_ids, so there are no "
                "tokens to edit"
            )
        if flags is not None:
            collated = {**collated, "edit": edit_key(collated, features, flags)}
        purpose, in_worker, prepared = self.purpose, get_worker_info() is not None, None
        if purpose is Purpose.EVALUATION:
            if not in_worker and not inside_data_loader():
                purpose = Purpose.UNKNOWN  # called by hand
        elif self.aligner is not None and in_worker:
            source = TokenBatch.collated(collated)
            eos_id = self.aligner.trainee.eos_id
            prepared = self.aligner.prepare(source.in_context(self.context, eos_id))
        origin = Origin(purpose, padding_multiple(self.base_collator, collated), prepared)
        return ToEditBatch(collated, self._editor or self.key, origin)

    @property
    def editor(self) -> BatchEditor:
        """What edits the batches; a RuntimeError in another process than that of its prior."""
        if self._editor is None:
            self._editor = find_editor(self.key)
        return self._editor

    prior = property(lambda self: self.editor.prior, doc="Scores the tokens.")
    policy = property(lambda self: self.editor.policy, doc="Which tokens are edited, and how.")
    tokenizer = property(lambda self: self.editor.tokenizer, doc="Of the trainee, or None.")
    journal = property(lambda self: self.editor.journal, doc="Stores the changes, or None.")
    cache = property(lambda self: self.editor.cache, doc="Stores decisions, or None.")

    @property
    def stats(self) -> dict[str, float]:
        """Running counts over all edited batches, and their shares.

        | key | what |
        | --- | --- |
        | `batches`, `tokens` | without padding |
        | `scored`, `selected`, `changed`, `dropped` | tokens |
        | `selected_share`, `changed_share`, `dropped_share` | of the scored tokens |
        | `prior_perplexity` | of a sample of the scored tokens |
        | `seconds`, `tokens_per_second` | of the edit pass |
        | `replayed`, `replayed_share` | tokens edited from the journal; not counted as scored |
        | `raw`, `raw_changed` | tokens with `edit=False`, and those that differ (0) |
        | `aligned_share` | tokens that a prior with another tokenizer can score |
        """
        summary = self.editor.stats.summary()
        self.editor.warn_if_lost(summary["prior_perplexity"])
        return summary

    def flush(self) -> None:
        """Write what the journal and the cache have not written yet."""
        self.editor.flush()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch for `redraw="epoch"`, in a loop of your own; a Trainer counts by itself.

        It overrides accelerate's count, which starts at 0 again in a resumed run.
        """
        self.editor.epoch = epoch

    def fit(self, model: Any, args: Any, processing_class: Any) -> None:
        """Check that the prior fits what a `Trainer` trains; see `BatchEditor.fit`."""
        base = self.base_collator
        self.editor.fit(model, args, processing_class, collators=(base,))
        if isinstance(base, DefaultCollator) and base.tokenizer is None:
            base.tokenizer = self.editor.tokenizer

    def around(
        self, base_collator: BaseCollator, purpose: Purpose = Purpose.UNKNOWN
    ) -> ToEditCollator:
        """A collator with the same editor, another base, and a purpose for all of its batches."""
        other = copy.copy(self)
        other._editor = self.editor
        other.base_collator = base_collator
        other.purpose = purpose
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_editor": None}  # the prior stays in its process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._editor = EDITORS.get(self.key)  # a copy keeps it alive


class DefaultCollator:
    """Pads tokenized rows to the longest, with transformers' own collator.

    Rows with `labels` keep them (padded with -100). In rows without, every token is a label,
    end-of-sequence tokens included, and padding is not. The tokenizer is needed at the first call,
    with a padding token if rows differ in length; packed rows are refused.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, features: list[Any]) -> Any:
        """Pad rows (dicts, or lists of ids) to a batch with `input_ids`, `labels` and a mask."""
        if self.tokenizer is None:
            raise ValueError(
                "there is no base_collator, and no tokenizer to pad with; pass base_collator=..., "
                "or tokenizer=..., or give the Prior its tokenizer"
            )
        rows = [dict(row) if isinstance(row, Mapping) else {"input_ids": row} for row in features]
        for row in rows:
            if "seq_lengths" in row:
                raise ValueError(
                    "the rows are packed (they have seq_lengths), and the default base collator "
                    "would join their documents; use attach(trainer, prior, policy) for packing"
                )
            if not hasattr(row.get("input_ids"), "__len__"):
                raise ValueError("a row has no list of input_ids; tokenize the dataset first")
            row.setdefault("labels", list(row["input_ids"]))
        can_pad = self.tokenizer.pad_token_id is not None
        if not can_pad and len({len(row["input_ids"]) for row in rows}) > 1:
            raise ValueError(
                "the tokenizer has no padding token; set tokenizer.pad_token = tokenizer.eos_token"
            )
        return DataCollatorForSeq2Seq(self.tokenizer, padding=can_pad)(rows)


def padding_multiple(base_collator: Any, batch: Mapping[str, Any]) -> int | None:
    """The number that divides the length of a collator's rows; None: they end with the longest.

    It is `pad_to_multiple_of` of a collator of transformers or TRL, or of one inside it; or the
    length of `batch` if the collator pads to `max_length`.
    """
    while base_collator is not None:
        padding = getattr(base_collator, "padding", None)
        if getattr(padding, "value", padding) == "max_length":
            return int(batch["input_ids"].shape[-1])
        if multiple := getattr(base_collator, "pad_to_multiple_of", None):
            return int(multiple)
        base_collator = getattr(base_collator, "data_collator", None)
    return None


def edit_training_loader(loader: Any, collator: ToEditCollator) -> ToEditCollator:
    """Let all batches of a loader be edited, and no batches of others with the same collator.

    Puts `collator` around the loader's `collate_fn`, unless that is a `ToEditCollator` already (or
    one inside transformers' RemoveColumnsCollator). Returns the loader's collator.

    Raises:
        ValueError: the loader has another `ToEditCollator`, or it dispatches batches from rank 0.
    """
    loader = _find_loader(loader)
    if loader is None:  # a list, say, whose batches may come from the collator
        return collator
    present = loader.collate_fn
    while present is not None and not isinstance(present, ToEditCollator):
        present = getattr(present, "data_collator", None)
    if present is None:
        loader.collate_fn = collator.around(loader.collate_fn, Purpose.TRAINING)
        return loader.collate_fn
    if present.key != collator.key:
        raise ValueError(
            "the Trainer's data_collator is a ToEditCollator, and ToEditCallback has another "
            "one; pass the same to both, or the callback alone"
        )
    if present.purpose is Purpose.TRAINING:
        return present
    marked = present.around(present.base_collator, Purpose.TRAINING)
    present.purpose = Purpose.EVALUATION
    loader.collate_fn = _replaced(loader.collate_fn, marked)
    return marked


def edit_training_loaders_of(trainer: Any, collator: ToEditCollator) -> None:
    """Let each training loader that a Trainer makes from now on be edited, and no other loader."""
    if isinstance(trainer.data_collator, ToEditCollator):
        if trainer.data_collator.key != collator.key:
            return  # an error when training begins
        trainer.data_collator.purpose = Purpose.EVALUATION
    make = trainer.get_train_dataloader

    def get_train_dataloader(*args: Any, **kwargs: Any) -> Any:
        loader = make(*args, **kwargs)
        edit_training_loader(loader, collator)
        return loader

    trainer.get_train_dataloader = get_train_dataloader


def _replaced(collate_fn: Any, marked: ToEditCollator) -> Any:
    """A collate_fn with another ToEditCollator inside; the collators around it are copied."""
    if isinstance(collate_fn, ToEditCollator):
        return marked
    outer = copy.copy(collate_fn)
    outer.data_collator = _replaced(collate_fn.data_collator, marked)
    return outer


def _find_loader(loader: Any) -> Any:
    """The loader that has the `collate_fn`, inside accelerate's and users' wrappers; or None."""
    from accelerate.data_loader import DataLoaderDispatcher

    if isinstance(loader, DataLoaderDispatcher) and loader.state.num_processes > 1:
        raise ValueError(DISPATCHING)
    attributes = getattr(loader, "__dict__", {})
    if "collate_fn" in attributes:
        return loader
    inside = [one for one in attributes.values() if isinstance(one, DataLoader)]
    return _find_loader(inside[0]) if len(inside) == 1 else None
