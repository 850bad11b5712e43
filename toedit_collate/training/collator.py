"""ToEditCollator: a collator whose training batches are edited; and the default base collator."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import get_worker_info

from ..policy import EditPolicy
from ..prior.base import BasePrior
from ..stores.cache import DecisionCache
from ..stores.journal import Journal
from ..tokens.token_batch import TokenBatch
from .batch import ToEditBatch
from .call_site import Origin, Purpose, inside_data_loader
from .edit_column import edit_key, take_edit_column
from .editor import BatchEditor, OnEdit, registered_editor

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

    Rows and tokens that must stay as they are: a dataset column `edit`, one bool for a row or one
    for each of its tokens, or a key `edit` of the base collator's batches, (B,) or (B, T) bool.
    False leaves the row or token alone; a row without a value is edited. The model does not get
    the key. Without `attach`, a `Trainer` needs `remove_unused_columns=False` to keep the column.

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
        purpose: of its batches: TRAINING in a loader that is marked for training, EVALUATION where
            the marked loader has another collator, UNKNOWN: the call stack decides.

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
        editor.protect_tokens_of([base_collator])
        self._editor: BatchEditor | None = editor
        self.key = editor.key
        self.base_collator: BaseCollator = base_collator or DefaultCollator(editor.tokenizer)
        self.aligner: Any = prior.aligner
        self.context = editor.policy.context
        self.purpose = Purpose.UNKNOWN

    def __call__(self, features: Any) -> ToEditBatch:
        """Collate features into a batch that will edit itself.

        Raises:
            ValueError: there are no features, or the base collator made no `input_ids`.
            TypeError: the base collator did not return a mapping.
        """
        if hasattr(features, "__len__") and len(features) == 0:
            raise ValueError("the batch is empty: the collator got no features")
        features, flags = take_edit_column(features)
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
        if flags is not None:
            collated = {**collated, "edit": edit_key(collated, features, flags)}
        purpose, in_worker = self.purpose, get_worker_info() is not None
        is_excluded = purpose is Purpose.EVALUATION
        if is_excluded and not in_worker and not inside_data_loader():
            purpose = Purpose.UNKNOWN  # called by hand
        prepared = None
        if self.aligner is not None and in_worker and not is_excluded:
            source = TokenBatch.collated(collated)
            eos_id = self.aligner.trainee.eos_id
            prepared = self.aligner.prepare(source.in_context(self.context, eos_id))
        origin = Origin(purpose, padding_multiple(self.base_collator, collated), prepared)
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
        as scored again), and `replayed_share`. With a column `edit`: `raw` (tokens that it leaves
        alone) and `raw_changed` (those of them that differ: 0). With a prior that is aligned to
        another tokenizer: `aligned_share`, of the tokens behind another one, those that can be
        scored.
        """
        summary = self.editor.stats.summary()
        self.editor.warn_if_lost(summary["prior_perplexity"])
        return summary

    def flush(self) -> None:
        """Write what the journal and the cache have not written yet."""
        self.editor.flush()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, for `redraw="epoch"`, in a loop of your own; a Trainer counts by itself.

        It overrides the count of accelerate's loader, which starts at 0 again in a resumed run.
        """
        self.editor.epoch = epoch

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
        other.purpose = Purpose.UNKNOWN
        return other

    def for_training(self) -> ToEditCollator:
        """This collator for a loader that is marked for training: all its batches are edited."""
        other = self.around(self.base_collator)
        other.purpose = Purpose.TRAINING
        return other

    def edit_marked_loaders_only(self) -> None:
        """From now on, edit in no loader but the one that has `for_training()`.

        A batch that is made by calling the collator by hand is still edited.
        """
        self.purpose = Purpose.EVALUATION

    def __getstate__(self) -> dict[str, Any]:
        # To workers: what collates, and nothing that holds the GPU.
        names = ("base_collator", "key", "purpose", "aligner", "context")
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


class DefaultCollator:
    """Pads tokenized rows to the longest, with transformers' own collator.

    Rows with `labels` keep them (padded with -100); in rows without, every token is a label,
    end-of-sequence tokens included, and padding is not.

    Args:
        tokenizer: pads; needed at the first call. It needs a padding token where rows differ in
            length.
        pad_to_multiple_of: length of the rows; None: that of the longest.

    Raises:
        ValueError: on the first call, there is no tokenizer, or it has no padding token, or the
            rows are packed.
    """

    def __init__(self, tokenizer: Any, pad_to_multiple_of: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, features: list[Any]) -> Any:
        """Pad rows (dicts, or lists of ids) to a batch with `input_ids`, `labels` and a mask."""
        from transformers import DataCollatorForSeq2Seq

        if self.tokenizer is None:
            raise ValueError(
                "there is no base_collator, and no tokenizer to pad with; pass base_collator=..., "
                "or tokenizer=..., or give the Prior its tokenizer"
            )
        rows = [dict(row) if isinstance(row, Mapping) else {"input_ids": row} for row in features]
        if any("seq_lengths" in row for row in rows):
            raise ValueError(
                "the rows are packed (they have seq_lengths), which the default base collator "
                "would not keep apart; use attach(trainer, prior, policy) for packing"
            )
        for row in rows:
            if not hasattr(row.get("input_ids"), "__len__"):
                raise ValueError(
                    f"a row has the fields {sorted(map(str, row))} and no list of input_ids; "
                    "tokenize the dataset first, or pass the base_collator that does"
                )
        can_pad = self.tokenizer.pad_token_id is not None
        lengths = {len(row["input_ids"]) for row in rows}
        if not can_pad and (len(lengths) > 1 or max(lengths) % (self.pad_to_multiple_of or 1)):
            raise ValueError(
                "the tokenizer has no padding token, but rows must be padded; set "
                "tokenizer.pad_token = tokenizer.eos_token, or pass a base_collator"
            )
        for row in rows:
            row.setdefault("labels", list(row["input_ids"]))
        multiple = self.pad_to_multiple_of if can_pad else None
        pad = DataCollatorForSeq2Seq(self.tokenizer, padding=can_pad, pad_to_multiple_of=multiple)
        return pad(rows)

    def __repr__(self) -> str:
        return "DefaultCollator()"


def padding_multiple(base_collator: Any, batch: Mapping[str, Any]) -> int | None:
    """Of what the length of a collator's rows is a multiple; None: they end with the longest.

    Args:
        base_collator: with an attribute `pad_to_multiple_of`, as the collators of transformers and
            TRL have it, or with `padding="max_length"`; or a partial function of these, or another
            collator around one.
        batch: what it made.
    """
    while base_collator is not None:
        settings = getattr(base_collator, "keywords", {})  # of functools.partial

        def setting(name: str, of: Any = base_collator, given: Any = settings) -> Any:
            return given.get(name, getattr(of, name, None))

        padding = setting("padding")
        if getattr(padding, "value", padding) == "max_length" and setting("max_length"):
            return int(batch["input_ids"].shape[-1])
        if setting("pad_to_multiple_of"):
            return int(setting("pad_to_multiple_of"))
        if isinstance(base_collator, functools.partial):
            base_collator = base_collator.func
        else:
            base_collator = getattr(base_collator, "data_collator", None)
    return None
