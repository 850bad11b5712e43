"""The trainee's tokenizer and loading options, and the prior, as the arguments name them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ..errors import UnusableError, first_line
from ..prior.prior import Prior
from ..stores.cache import DecisionCache
from ..stores.journal import Journal
from ..training.attach import attach
from ..training.trainee import text_tokenizer
from .arguments import EditArguments, name_of
from .priors import open_prior

logger = logging.getLogger("toedit_collate")


def load_tokenizer(name: str | None, args: Any, revision: str | None = None) -> Any:
    """The trainee's tokenizer, with the chat template of `chat_template_path` if there is one.

    Args:
        name: folder or hub id.
        args: the `SFTConfig`.
        revision: on the hub.

    Raises:
        UnusableError: there is none.
    """
    from transformers import AutoTokenizer

    if name is None:
        raise UnusableError("model_name_or_path is missing; name a folder or a hub id of a model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=revision or "main", trust_remote_code=args.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise UnusableError(
            f"the tokenizer of {name!r} can't be loaded ({first_line(error)}); name a "
            "folder or a hub id of a model with its tokenizer"
        ) from None
    path = getattr(args, "chat_template_path", None)
    if path is not None:
        if Path(path).is_file():
            tokenizer.chat_template = Path(path).read_text()
        else:
            template = AutoTokenizer.from_pretrained(path).chat_template
            if not template:
                raise UnusableError(f"chat_template_path {path!r} has no chat template")
            tokenizer.chat_template = template
        # It is set: TRL would add the other model's tokens, and the prior has the trainee's.
        args.chat_template_path = None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def model_options(model_args: Any, args: Any) -> dict[str, Any]:
    """What `from_pretrained` gets for the trainee, as TRL's own scripts have it.

    Args:
        model_args: TRL's `ModelConfig`.
        args: the `SFTConfig`.
    """
    options = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        "trust_remote_code": args.trust_remote_code,
    }
    return {**options, **(args.model_init_kwargs or {})}


def check_shared(
    edit: EditArguments, has_adapters: bool, *, setting: str = "use_peft: true"
) -> None:
    """See that a prior that is to be shared has weights that stay frozen.

    Args:
        edit: names the prior.
        has_adapters: whether adapters are trained.
        setting: that asks for adapters.

    Raises:
        UnusableError: all weights of the trainee are trained.
    """
    if edit.policy() is not None and edit.prior == "shared" and not has_adapters:
        raise UnusableError(
            "prior is 'shared', the frozen base of a LoRA trainee, and this run trains all "
            "weights; name a prior by its folder or hub id (prior: NAME), or set " + setting
        )


def check_prior(edit: EditArguments) -> None:
    """See that there is a prior of that name, before any model is loaded.

    Raises:
        UnusableError: there is none.
    """
    if edit.policy() is None or edit.prior == "shared":
        return
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(edit.prior, revision=edit.prior_revision)
    except (OSError, ValueError) as error:
        raise UnusableError(
            f"prior {edit.prior!r} can't be loaded ({first_line(error)}); name a folder or a hub "
            "id of a causal language model with the trainee's tokenizer"
        ) from None


def load_prior(edit: EditArguments, trainer: Any) -> Any:
    """The prior that edits the batches of a Trainer.

    Args:
        edit: names it.
        trainer: its model is the prior where that is shared.

    Raises:
        UnusableError: the prior is to be shared, and all weights of the trainee are trained; or it
            can't be loaded, or not be aligned to the trainee's tokenizer.
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
        said=f"prior {edit.prior!r}",
        aligned_to=text_tokenizer(trainer.processing_class) if edit.prior_aligned else None,
    )


def attach_edit(trainer: Any, edit: EditArguments) -> None:
    """Edit the training batches of a trainer that another framework made; the log says so.

    Raises:
        ValueError: the prior does not fit the trainee.
        UnusableError: the prior can't be loaded.
    """
    policy = edit.policy()
    if policy is not None:
        settings = attach_settings(edit, trainer.args.output_dir)
        attach(trainer, load_prior(edit, trainer), policy, **settings)
        name = name_of(edit.edit_policy, edit.changes())
        logger.warning("toedit: training batches are edited (%s, prior: %s)", name, edit.prior)


def attach_settings(edit: EditArguments, output_dir: str | None) -> dict[str, Any]:
    """What `attach` takes beside trainer, prior and policy: refresh, journal and cache."""
    settings: dict[str, Any] = {"refresh": edit.refresh_when}
    if edit.journal:
        settings["journal"] = Journal(Path(output_dir or ".") / "journal")
    where = edit.cache_path
    if where:
        settings["cache"] = DecisionCache(None if where is True else where)
    return settings
