"""The arguments that all recipes take, beside those of TRL."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import UnusableError
from ..policy import OPTIONS, PRESETS, EditPolicy, Option
from ..prior.loading import Quantization
from ..training.refresh import check_refresh
from .policies import parse_policy

PREFIX = "edit_"


def _optional(help_text: str) -> Any:
    return field(default=None, metadata={"help": help_text})


def _field_of_policy(option: Option) -> Any:
    help_text = f"EditPolicy: {option.help}. Default: as edit_policy has it."
    # argparse formats help by %.
    return field(default=None, metadata={"help": help_text.replace("%", "%%")})


def _preset() -> Any:
    presets = "; ".join(f"{name}: {preset.help}" for name, preset in PRESETS.items())
    return field(default="paper", metadata={"help": f"{presets}; none: train without editing."})


# edit_policy, and an argument for each field of EditPolicy.
PolicyArguments: Any = dataclasses.make_dataclass(
    "PolicyArguments",
    [
        ("edit_policy", Literal[(*PRESETS, "none")], _preset()),
        *(
            (PREFIX + option.name, option.annotation, _field_of_policy(option))
            for option in OPTIONS.values()
        ),
    ],
)


@dataclass
class EditArguments(PolicyArguments):
    """How the training data is edited: the policy, the prior, and what is kept of it."""

    _argument_group_name = "token editing: policy, prior, journal and cache"

    prior: str = field(
        default="shared",
        metadata={
            "help": "Folder or hub id of the prior; shared: the frozen base of the LoRA trainee, "
            "without a second copy of its weights."
        },
    )
    prior_dtype: str = field(
        default="auto", metadata={"help": "Of the prior's weights; auto: the checkpoint's."}
    )
    prior_quantization: Quantization | None = _optional(
        "Quantize the prior: 8bit and 4bit by bitsandbytes, int8 and fp8 by torchao."
    )
    prior_adapter: str | None = _optional("A PEFT adapter to put on the prior.")
    prior_revision: str | None = _optional("Of the prior on the hub.")
    prior_compile: bool = field(
        default=False, metadata={"help": "Compile the prior by torch.compile."}
    )
    prior_aligned: bool = field(
        default=False,
        metadata={
            "help": "Let a prior with another tokenizer than the trainee's edit. Scores then are "
            "lower bounds, and tokens that begin inside one of the prior's are left alone."
        },
    )
    later_prior: Literal["swapped", "trainee"] = field(
        default="swapped",
        metadata={
            "help": "Over generations (self_edit.py), what edits from the second on. swapped: the "
            "prior with the trainee's weights; trainee: the trainee as a prior of its own, which "
            "prior_aligned needs."
        },
    )
    journal: bool = field(
        default=False,
        metadata={
            "help": "Keep what is changed, in the folder journal of the run. Generations "
            "(self_edit.py) always do."
        },
    )
    refresh: str | None = _optional(
        "When the prior takes over the trainee's weights, which begins a new generation: epoch, "
        "save, or a number of steps. Default: never."
    )
    decision_cache: str | None = _optional(
        "Decide once, draw in each epoch: true keeps the prior's decisions in memory, a folder "
        "keeps them for other runs, too."
    )

    def __post_init__(self) -> None:
        self.policy()  # a wrong value is said before anything is loaded
        when = self.refresh_when
        if isinstance(when, str) and when not in ("epoch", "save"):
            raise ValueError(f"refresh must be epoch, save or a number of steps, got {when!r}")
        check_refresh(when)

    def policy(self) -> EditPolicy | None:
        """The policy that is asked for; None: no editing.

        Raises:
            ValueError: a value is out of its range.
            TypeError: a value is of the wrong type.
        """
        if self.edit_policy == "none":
            return None
        return EditPolicy.preset(self.edit_policy, **self.changes())

    def changes(self) -> dict[str, Any]:
        """The fields of `EditPolicy` that were given."""
        named = {
            one.name.removeprefix(PREFIX): getattr(self, one.name)
            for one in dataclasses.fields(self)
            if one.name.startswith(PREFIX) and one.name != "edit_policy"
        }
        return {
            name: OPTIONS[name].read(value) for name, value in named.items() if value is not None
        }

    @property
    def refresh_when(self) -> Any:
        """`refresh` as `ToEditCallback` takes it; a number is one in YAML, and text otherwise."""
        text = str(self.refresh)
        return int(text) if text.isdecimal() else self.refresh

    @property
    def cache_path(self) -> str | bool:
        """`decision_cache`: a folder; True: in memory; False: there is none."""
        word = str(self.decision_cache).lower()
        if word in ("none", "false"):
            return False
        return True if word == "true" else str(self.decision_cache)


@dataclass(frozen=True)
class Source:
    """One of several datasets to train on.

    Attributes:
        name: as `dataset_name`.
        weight: of its share of the rows; packed rows are of one length, so of the tokens.
        edit: False: its rows are never edited.
    """

    name: str
    weight: float = 1.0
    edit: bool = True

    @classmethod
    def read(cls, given: Any) -> Source:
        """A source as YAML has it.

        Raises:
            ValueError: it has no name, an unknown field, or a value out of its range.

        Example:
            >>> Source.read({"name": "orca.jsonl", "weight": 2, "edit": False})
            Source(name='orca.jsonl', weight=2, edit=False)
        """
        known = [one.name for one in dataclasses.fields(cls)]
        if not isinstance(given, dict) or "name" not in given or set(given) - set(known):
            raise ValueError(
                f"a source in datasets must be a mapping with name, and weight and edit if you "
                f"like, got {given!r}"
            )
        source = cls(**given)
        is_number = isinstance(source.weight, (int, float)) and not isinstance(source.weight, bool)
        if not is_number or not 0 < source.weight < float("inf"):
            raise ValueError(
                f"weight of {source.name!r} must be a number above 0, got {source.weight!r}"
            )
        if not isinstance(source.edit, bool):
            raise ValueError(f"edit of {source.name!r} must be true or false, got {source.edit!r}")
        return source


@dataclass
class DataArguments:
    """What is trained and measured on. The names are those of TRL's `ScriptArguments`."""

    _argument_group_name = "data"

    dataset_name: str | None = _optional(
        "Hub id; or a local .jsonl, .parquet, .csv or .txt file (documents between blank lines), "
        "compressed or not, several by *, a part as in file:train[:90%%], or a folder."
    )
    datasets: list[Any] | str | None = _optional(
        "Several sources in place of dataset_name: [{name: A, weight: 1}, {name: B, weight: 2, "
        "edit: false}]. weight: of its share of the rows (packed: of the tokens); edit: false "
        "leaves the source as it is."
    )
    dataset_config: str | None = _optional("Name of the hub dataset's configuration.")
    dataset_train_split: str = field(
        default="train",
        metadata={"help": "Split to train on; also a part of one, as in train[:90%%]."},
    )
    dataset_streaming: bool = field(default=False, metadata={"help": "Stream the dataset."})
    dataset_format: str | None = _optional(
        "How rows of a known dataset become TRL's: see common.formats.FORMATS."
    )
    dataset_columns: dict[str, Any] | str | None = _optional(
        "Names that TRL expects -> names in the dataset, as in {text: body}."
    )
    dataset_limit: int | None = _optional("Train on the first so many rows.")
    held_out: dict[str, Any] | str | None = _optional(
        "Held-out sets whose perplexity is measured after training: name -> file, file:split, "
        "hub_id, hub_id:config or hub_id:config:split."
    )
    held_out_limit: int | None = _optional("Measure on the first so many rows of each.")

    def __post_init__(self) -> None:
        # A wrong value is reported before anything is loaded.
        _ = self.held_out_sources, self.columns, self.sources
        for name in ("dataset_limit", "held_out_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be a number of rows from 1, got {value}")

    @property
    def held_out_sources(self) -> dict[str, Any]:
        """`held_out`, read."""
        return as_mapping("held_out", self.held_out)

    @property
    def sources(self) -> list[Source]:
        """`datasets`, read; empty where `dataset_name` names all of the data.

        Raises:
            ValueError: a source has no name, an unknown field, or a value out of its range.
        """
        import yaml

        given = self.datasets
        read = yaml.safe_load(given) if isinstance(given, str) else given
        if read is None:
            return []
        if not isinstance(read, list) or not read:
            raise ValueError(
                f"datasets must be a list of sources, as in [{{name: A}}, {{name: B, edit: "
                f"false}}], got {given!r}"
            )
        if self.dataset_name is not None:
            raise ValueError("datasets and dataset_name exclude each other; name all in datasets")
        return [Source.read(one) for one in read]

    @property
    def columns(self) -> dict[str, str]:
        """`dataset_columns`, read."""
        return as_mapping("dataset_columns", self.dataset_columns)


@dataclass
class RunArguments:
    """What is done with a run beside training, and how it is compared."""

    _argument_group_name = "the run: comparison and evaluation"

    compare_baseline: bool = field(
        default=False,
        metadata={"help": "Train without editing, too, from the same seeds, and compare."},
    )
    compare_policies: list[str] | None = field(
        default=None,
        metadata={
            "help": "Compare these as well: names of presets, or a preset with fields changed, as "
            f"in paper,threshold=0.9,top_k=64. Presets: {', '.join(PRESETS)}."
        },
    )
    seeds: list[int] | None = field(
        default=None,
        metadata={
            "help": "Train once for each of these seeds, of which the policy then draws, too. "
            "Default: the one of `seed`."
        },
    )
    global_batch_size: int | None = _optional(
        "Rows of an optimizer step, over all processes. Sets gradient_accumulation_steps; "
        "per_device_train_batch_size is then the most that a process takes at once."
    )
    eval_tasks: list[str] | None = field(
        default=None, metadata={"help": "Tasks of lm-evaluation-harness to run after training."}
    )
    eval_tasks_path: str | None = _optional("Folder with tasks of your own for the harness.")
    eval_chat_template: bool = field(
        default=False, metadata={"help": "Put questions into the tokenizer's chat template."}
    )
    eval_num_fewshot: int | None = _optional("Examples in the prompt of each task.")
    eval_limit: int | None = _optional("Only the first so many questions of each task.")
    given: dict[str, Any] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.seeds is not None and len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ from each other, got {self.seeds}")
        for text in self.compare_policies or []:
            variant(text)

    def spread_batch(self, args: Any, processes: int) -> None:
        """Set batch and accumulation so that a step has `global_batch_size` rows.

        Args:
            args: the `TrainingArguments`, which are changed.
            processes: among which the rows are divided.

        Raises:
            UnusableError: they cannot be divided, or another setting has the numbers already.
        """
        total, most = self.global_batch_size, args.per_device_train_batch_size
        if total is None:
            return
        if "gradient_accumulation_steps" in self.given:
            raise UnusableError(
                "global_batch_size sets gradient_accumulation_steps; leave one of them out"
            )
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
        rows = max(n for n in range(1, min(most, share) + 1) if share % n == 0)
        args.per_device_train_batch_size, args.gradient_accumulation_steps = rows, share // rows

    @property
    def compares(self) -> bool:
        """True where there is more than one run."""
        return self.compare_baseline or bool(self.compare_policies) or len(self.seeds or []) > 1

    @property
    def has_tasks(self) -> bool:
        """True where lm-evaluation-harness is to be run."""
        return bool(self.eval_tasks or self.eval_tasks_path)

    def variants(self, edit: EditArguments) -> dict[str, EditPolicy | None]:
        """The policies to train with, by name, the baseline first; None: no editing."""
        found: dict[str, EditPolicy | None] = {}
        if self.compare_baseline:
            found["none"] = None
        own = edit.policy()
        found["none" if own is None else name_of(edit.edit_policy, edit.changes())] = own
        for text in self.compare_policies or []:
            found[",".join(text.replace(",", " ").split())] = variant(text)
        return found


def as_mapping(name: str, value: dict[str, Any] | str | None) -> dict[str, Any]:
    """A mapping, which on a command line is JSON.

    Raises:
        ValueError: it is none; `name` names it.

    Example:
        >>> as_mapping("dataset_columns", '{"text": "body"}')
        {'text': 'body'}
    """
    import yaml

    read = yaml.safe_load(value) if isinstance(value, str) else value
    if read is None:
        return {}
    if not isinstance(read, dict):
        raise ValueError(
            f"{name} must be a mapping, got {value!r}; on the command line write it as JSON, in "
            'quotes: \'{"name": "value"}\''
        )
    return read


def as_arguments(policy: EditPolicy | None, preset: str = "paper") -> dict[str, Any]:
    """A policy as the fields of `EditArguments` that ask for it, where there are any.

    Args:
        policy: None: no editing.
        preset: that it was made from.

    Example:
        >>> as_arguments(EditPolicy(top_k=64))
        {'edit_policy': 'paper', 'edit_top_k': 64}
    """
    if policy is None:
        return {"edit_policy": "none"}
    default = EditPolicy.preset(preset).record()
    changed = {name: value for name, value in policy.record().items() if value != default[name]}
    if callable(policy.protect):  # can't be written down
        del changed["protect"]
    return {"edit_policy": preset, **{PREFIX + name: value for name, value in changed.items()}}


def name_of(preset: str, changes: dict[str, Any]) -> str:
    """A policy in one word, as `compare_policies` takes it."""
    return ",".join([preset, *(f"{name}={value}" for name, value in changes.items())])


def variant(text: str) -> EditPolicy | None:
    """What `compare_policies` names; "none": no editing.

    Raises:
        ValueError: it can't be read, or a value is out of its range.

    Example:
        >>> variant("reference_code,threshold=0.9").top_k, variant("none")
        (8, None)
    """
    if text.strip() == "none":
        return None
    try:
        return parse_policy(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"compare_policies has {text!r}: {error}") from None
