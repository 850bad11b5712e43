"""Opens the prior that a command line or a config names, and attaches it to a Trainer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ..data.demo_model import demo_model
from ..data.demo_text import DEMO_MODELS
from ..data.reading import may_be_on_hub
from ..errors import UnusableError, first_line
from ..policy import EditPolicy
from ..prior.prior import Prior
from ..stores.cache import DecisionCache
from ..stores.journal import Journal
from ..training.callback import attach
from ..training.trainee import text_tokenizer
from .arguments import EditArguments
from .policies import short_name

logger = logging.getLogger("toedit_collate")


def open_prior(
    name: str, *, compile: bool = False, needs_tokenizer: bool = True,  # noqa: A002
    label: str | None = None, aligned_to: Any = None, **options: Any,
) -> Any:  # fmt: skip
    """Load a prior, with errors of one line.

    Args:
        name: folder, hub id, or "toedit-demo".
        compile: with `torch.compile`.
        needs_tokenizer: raise if the model has no tokenizer.
        label: how messages call it; None: `--prior NAME:`.
        aligned_to: tokenizer of a trainee, or its name; see `Prior.aligned_to`.
        options: of `Prior.from_pretrained`.

    Returns:
        A `Prior`; with `aligned_to`, an `AlignedPrior`.

    Raises:
        UnusableError: it can't be loaded or aligned.
    """
    label = label or f"--prior {name}:"
    folder = folder_of(name, label)
    try:
        prior = Prior.from_pretrained(folder, **options)
    except Exception as error:  # of many types, depending on the files or the device
        raise UnusableError(
            f"{label} can't be loaded ({first_line(error)}); name a folder with a causal language "
            "model and its tokenizer, or a hub id"
        ) from None
    if needs_tokenizer and prior.tokenizer is None:
        raise UnusableError(
            f"{label} has no tokenizer, which marks its special tokens; save one with the model: "
            "tokenizer.save_pretrained(FOLDER)"
        )
    if compile:
        prior.compile()
    if aligned_to is None:
        return prior
    if isinstance(aligned_to, str):
        aligned_to = open_tokenizer(aligned_to, "the tokenizer")
    try:
        return prior.aligned_to(aligned_to)
    except ValueError as error:
        raise UnusableError(f"{label} {error}") from None


def open_tokenizer(name: str, option: str) -> Any:
    """Load a tokenizer.

    Args:
        name: folder, hub id, "toedit-demo", or path of a tokenizer.json.
        option: that named it, for messages.

    Raises:
        UnusableError: it can't be loaded.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    is_file = name.endswith(".json")
    folder = name if is_file else folder_of(name, f"{option} {name}:")
    try:
        if is_file:
            return PreTrainedTokenizerFast(tokenizer_file=name)
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # of many types
        raise UnusableError(
            f"{option} {name}: can't be loaded ({first_line(error)}); name a folder or a hub id "
            "with a tokenizer, or a tokenizer.json"
        ) from None


def folder_of(name: str, label: str) -> str:
    """`name`, or the folder of a demo model, which is trained if need be.

    Raises:
        UnusableError: it is a file, or looks like a path but does not exist.
    """
    if Path(name or "?").is_dir():
        return name
    if name in DEMO_MODELS:
        return str(demo_model(name))
    if Path(name).exists() or not may_be_on_hub(name):
        raise UnusableError(
            f"{label} can't be loaded (there is no such folder); name a folder or a hub id"
        )
    return name


def check_shared(
    edit: EditArguments, has_adapters: bool, *, setting: str = "use_peft: true"
) -> None:
    """Check that the weights of a shared prior stay frozen, because adapters are trained.

    `setting` says how to ask for adapters.

    Raises:
        UnusableError: all weights of the trainee are trained.
    """
    if edit.policy() is not None and edit.prior == "shared" and not has_adapters:
        raise UnusableError(
            "prior is 'shared', the frozen base of a LoRA trainee, but this run trains all "
            "weights; name a prior by its folder or hub id (prior: NAME), or set " + setting
        )


def load_prior(edit: EditArguments, trainer: Any) -> Any:
    """The prior that edits the batches of a Trainer. A shared one is the Trainer's own model.

    Raises:
        UnusableError: the prior is shared and all weights of the trainee are trained; or it cannot
            be loaded, or aligned to the trainee's tokenizer.
    """
    if edit.prior == "shared":
        check_shared(edit, bool(getattr(trainer.model, "peft_config", None)))
        return Prior.shared(trainer.model)
    return open_prior(
        edit.prior,
        dtype=edit.prior_dtype,
        device=trainer.args.device,
        quantization=edit.prior_quantization,
        adapter=edit.prior_adapter,
        revision=edit.prior_revision,
        compile=edit.prior_compile,
        needs_tokenizer=edit.prior_aligned,
        label=f"prior {edit.prior!r}",
        aligned_to=text_tokenizer(trainer.processing_class) if edit.prior_aligned else None,
    )


def attach_edit(trainer: Any, edit: EditArguments, policy: EditPolicy | None) -> None:
    """Edit the training batches of a Trainer.

    Args:
        trainer: its data collator is wrapped.
        edit: the prior, and what the run stores.
        policy: None: nothing is edited.

    Raises:
        ValueError: the prior does not fit the trainee.
        UnusableError: the prior can't be loaded.
    """
    if policy is None:
        return
    cache = edit.cache_path
    attach(
        trainer,
        load_prior(edit, trainer),
        policy,
        refresh=edit.refresh_when,
        journal=Journal(Path(trainer.args.output_dir or ".") / "journal") if edit.journal else None,
        cache=DecisionCache(None if cache is True else cache) if cache else None,
    )
    logger.warning(
        "toedit: training batches are edited (%s, prior: %s)", short_name(policy), edit.prior
    )
