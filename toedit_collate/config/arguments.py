"""`EditArguments`: the fields of recipes and `toedit sft` that say how data is edited."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import UnusableError
from ..policy import OPTIONS, PRESETS, EditPolicy, Option
from ..prior.loading import Quantization
from ..training.refresh import check_refresh

PREFIX = "edit_"


def optional(help_text: str) -> Any:
    """A dataclass field that may be left out, with its help text."""
    return field(default=None, metadata={"help": help_text})


def _preset() -> Any:
    presets = "; ".join(f"{name}: {preset.help}" for name, preset in PRESETS.items())
    return field(default="paper", metadata={"help": f"{presets}; none: train without editing."})


def _field_of_policy(option: Option) -> tuple[str, Any, Any]:
    help_text = f"{option.help}.".replace("%", "%%")  # argparse formats help with %
    return PREFIX + option.name, option.annotation, optional(help_text)


# edit_policy, and an argument for each field of EditPolicy.
PolicyArguments: Any = dataclasses.make_dataclass(
    "PolicyArguments",
    [
        ("edit_policy", Literal[(*PRESETS, "none")], _preset()),
        *map(_field_of_policy, OPTIONS.values()),
    ],
)


@dataclass
class EditArguments(PolicyArguments):
    """How the training data is edited: the policy, the prior, and what a run stores."""

    _argument_group_name = "token editing"

    prior: str = field(
        default="shared",
        metadata={
            "help": "Folder or hub id of the prior; shared: the frozen base of the LoRA trainee, "
            "without a second copy of its weights."
        },
    )
    prior_dtype: str = field(
        default="auto", metadata={"help": "dtype of its weights; auto: the checkpoint's."}
    )
    prior_quantization: Quantization | None = optional(
        "Quantize the prior: 8bit and 4bit by bitsandbytes, int8 and fp8 by torchao."
    )
    prior_adapter: str | None = optional("A PEFT adapter to put on the prior.")
    prior_revision: str | None = optional("Revision of the prior on the hub.")
    prior_compile: bool = field(
        default=False, metadata={"help": "Compile the prior with torch.compile."}
    )
    prior_aligned: bool = field(
        default=False,
        metadata={
            "help": "The prior has another tokenizer than the trainee. Scores then are lower "
            "bounds, and tokens that begin inside one of the prior's tokens are not edited."
        },
    )
    journal: bool = field(
        default=False,
        metadata={
            "help": "Store all changes in the folder `journal` of the run. Generations "
            "(self_edit.py) always do."
        },
    )
    refresh: str | None = optional(
        "When the prior takes over the trainee's weights, which begins a new generation: epoch, "
        "save, or a number of steps. Default: never."
    )
    decision_cache: str | None = optional(
        "Score each document once, draw in each epoch. true: keep the prior's decisions in memory; "
        "a folder: keep them for other runs, too."
    )

    def __post_init__(self) -> None:
        self.policy()  # report a wrong value before anything is loaded
        check_refresh(self.refresh_when)

    def policy(self) -> EditPolicy | None:
        """The policy; None: no editing.

        Raises:
            ValueError: a value is out of range.
            TypeError: a value has the wrong type.
        """
        if self.edit_policy == "none":
            return None
        return EditPolicy.preset(self.edit_policy, **self.changes())

    def changes(self) -> dict[str, Any]:
        """The fields of `EditPolicy` that were given."""
        given = {name: getattr(self, PREFIX + name) for name in OPTIONS}
        return {name: OPTIONS[name].read(one) for name, one in given.items() if one is not None}

    @property
    def policy_name(self) -> str:
        """The policy in one word, as in "paper,top_k=64"."""
        return ",".join([self.edit_policy, *(f"{k}={v}" for k, v in self.changes().items())])

    @property
    def refresh_when(self) -> Any:
        """`refresh` as `ToEditCallback` takes it: a number of steps is an int."""
        text = str(self.refresh)
        return int(text) if text.isdecimal() else self.refresh

    @property
    def cache_path(self) -> str | bool:
        """The folder of `decision_cache`; True: in memory; False: no cache."""
        word = str(self.decision_cache).lower()
        if word in ("none", "false"):
            return False
        return True if word == "true" else str(self.decision_cache)


def spread_batch(args: Any, total: int | None, processes: int) -> None:
    """Set batch size and accumulation so that a step of all processes has `total` rows.

    Args:
        args: the `TrainingArguments`, which are changed.
        total: None: change nothing.
        processes: that share the rows.

    Raises:
        UnusableError: the rows cannot be divided, or a DeepSpeed file sets the numbers.
    """
    if total is None:
        return
    share, rest = divmod(total, processes)
    if rest or share < 1:
        raise UnusableError(
            f"global_batch_size must be a multiple of the {processes} processes, got {total}; "
            "use another number of processes, or set gradient_accumulation_steps instead"
        )
    if args.deepspeed:
        raise UnusableError(
            "global_batch_size works with DeepSpeed as accelerate's config sets it up; with a "
            "file in `deepspeed`, set gradient_accumulation_steps instead"
        )
    most = min(args.per_device_train_batch_size, share)
    rows = max(n for n in range(1, most + 1) if share % n == 0)
    args.per_device_train_batch_size, args.gradient_accumulation_steps = rows, share // rows
