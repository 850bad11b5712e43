"""The trainee's tokenizer and loading options, and an early check of the prior's name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toedit_collate.config.arguments import EditArguments
from toedit_collate.config.console import shorten_ctrl_c
from toedit_collate.errors import UnusableError, first_line


def load_tokenizer(name: str | None, args: Any, revision: str | None = None) -> Any:
    """The trainee's tokenizer, with the chat template of `chat_template_path`, if that is set.

    Args:
        name: folder or hub id.
        args: the `SFTConfig`.
        revision: on the hub.

    Raises:
        UnusableError: there is no such tokenizer or template.
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
            f"the tokenizer of {name!r} can't be loaded ({first_line(error)}); name a folder or "
            "a hub id of a model with its tokenizer"
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
        # TRL would set it again and add the other model's tokens, which the prior does not have.
        args.chat_template_path = None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def model_options(model_args: Any, args: Any) -> dict[str, Any]:
    """What `from_pretrained` gets for the trainee, as in TRL's scripts.

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


def check_prior(edit: EditArguments) -> None:
    """Check that the prior exists, before any model is loaded.

    Raises:
        UnusableError: it does not.
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


def start(main: Callable[[], None]) -> None:
    """Run a recipe as a script. Errors that a user can fix, and Ctrl-C, print one line."""
    shorten_ctrl_c()
    try:
        main()
    except (UnusableError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {first_line(error)}")
