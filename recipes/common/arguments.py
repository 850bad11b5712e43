"""The arguments of the recipes that TRL does not have: data, comparison and evaluation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from toedit_collate.config.arguments import PREFIX, EditArguments, optional, spread_batch
from toedit_collate.config.policies import parse_policy
from toedit_collate.errors import UnusableError
from toedit_collate.policy import PRESETS, EditPolicy


@dataclass(frozen=True)
class Source:
    """One of several datasets to train on.

    Attributes:
        name: as `dataset_name`.
        weight: relative share of the rows. Packed rows have equal lengths: share of the tokens.
        edit: False: its rows are never edited.
    """

    name: str
    weight: float = 1.0
    edit: bool = True

    @classmethod
    def read(cls, given: Any) -> Source:
        """A source as YAML has it.

        Raises:
            ValueError: the name is missing, a field is unknown, or a value is out of range.

        Example:
            >>> Source.read({"name": "orca.jsonl", "weight": 2, "edit": False})
            Source(name='orca.jsonl', weight=2, edit=False)
        """
        known = {one.name for one in dataclasses.fields(cls)}
        if not isinstance(given, dict) or "name" not in given or set(given) - known:
            raise ValueError(
                "a source in datasets must be a mapping with name and, optionally, weight and "
                f"edit, got {given!r}"
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
    """Training data and held-out data. Names are those of TRL's `ScriptArguments`."""

    _argument_group_name = "data"

    dataset_name: str | None = optional(
        "Hub id; or a local .jsonl, .parquet, .csv or .txt file (documents between blank lines), "
        "compressed or not, several by *, a part as in file:train[:90%%], or a folder."
    )
    datasets: list[Any] | str | None = optional(
        "Several sources instead of dataset_name: [{name: A, weight: 1}, {name: B, weight: 2, "
        "edit: false}]. weight: relative share of the rows (packed: of the tokens); edit: false "
        "leaves the source unedited."
    )
    dataset_config: str | None = optional("Name of the hub dataset's configuration.")
    dataset_train_split: str = field(
        default="train",
        metadata={"help": "Split to train on; also a part of one, as in train[:90%%]."},
    )
    dataset_streaming: bool = field(default=False, metadata={"help": "Stream the dataset."})
    dataset_format: str | None = optional(
        "How rows of a known dataset become TRL's: see common.formats.FORMATS."
    )
    dataset_columns: dict[str, Any] | str | None = optional(
        "Names that TRL expects -> names in the dataset, as in {text: body}."
    )
    dataset_limit: int | None = optional("Train on the first N rows only.")
    held_out: dict[str, Any] | str | None = optional(
        "Held-out sets whose perplexity is measured after training: name -> file, file:split, "
        "hub_id, hub_id:config or hub_id:config:split."
    )
    held_out_limit: int | None = optional("Measure on the first N rows of each only.")

    def __post_init__(self) -> None:
        # Report a wrong value before anything is loaded.
        _ = self.held_out_sources, self.columns, self.sources
        for name in ("dataset_limit", "held_out_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be a number of rows from 1, got {value}")

    @property
    def held_out_sources(self) -> dict[str, Any]:
        """`held_out` as a mapping."""
        return as_mapping("held_out", self.held_out)

    @property
    def sources(self) -> list[Source]:
        """`datasets` as sources; empty if `dataset_name` names all of the data.

        Raises:
            ValueError: see `Source.read`.
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
        """`dataset_columns` as a mapping."""
        return as_mapping("dataset_columns", self.dataset_columns)


@dataclass
class RunArguments:
    """Comparison of several runs, and evaluation after training."""

    _argument_group_name = "the run: comparison and evaluation"

    compare_baseline: bool = field(
        default=False,
        metadata={"help": "Train without editing, too, from the same seeds, and compare."},
    )
    compare_policies: list[str] | None = optional(
        "Compare these as well: names of presets, or a preset with fields changed, as in "
        f"paper,threshold=0.9,top_k=64. Presets: {', '.join(PRESETS)}."
    )
    seeds: list[int] | None = optional(
        "Train once for each of these seeds. The policy draws by the same seed. Default: `seed`."
    )
    global_batch_size: int | None = optional(
        "Rows of an optimizer step, over all processes. Sets gradient_accumulation_steps; "
        "per_device_train_batch_size is then the most that a process takes at once."
    )
    eval_tasks: list[str] | None = optional("Tasks of lm-evaluation-harness to run after training.")
    eval_tasks_path: str | None = optional("Folder with your own tasks for the harness.")
    eval_chat_template: bool = field(
        default=False, metadata={"help": "Put questions into the tokenizer's chat template."}
    )
    eval_num_fewshot: int | None = optional("Examples in the prompt of each task.")
    eval_limit: int | None = optional("Only the first N questions of each task.")
    given: dict[str, Any] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.seeds is not None and len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ from each other, got {self.seeds}")
        for text in self.compare_policies or []:
            variant(text)

    def spread_batch(self, args: Any, processes: int) -> None:
        """Apply `global_batch_size`; see `toedit_collate.config.arguments.spread_batch`.

        Raises:
            UnusableError: the rows cannot be divided, or another setting has the numbers already.
        """
        if self.global_batch_size is not None and "gradient_accumulation_steps" in self.given:
            raise UnusableError(
                "global_batch_size sets gradient_accumulation_steps; leave one of them out"
            )
        spread_batch(args, self.global_batch_size, processes)

    @property
    def compares(self) -> bool:
        """True if there is more than one run."""
        return self.compare_baseline or bool(self.compare_policies) or len(self.seeds or []) > 1

    @property
    def has_tasks(self) -> bool:
        """True if lm-evaluation-harness runs after training."""
        return bool(self.eval_tasks or self.eval_tasks_path)

    def variants(self, edit: EditArguments) -> dict[str, EditPolicy | None]:
        """The policies to train with, by name, the baseline first; None: no editing."""
        found: dict[str, EditPolicy | None] = {}
        if self.compare_baseline:
            found["none"] = None
        own = edit.policy()
        found["none" if own is None else edit.policy_name] = own
        for text in self.compare_policies or []:
            found[",".join(text.replace(",", " ").split())] = variant(text)
        return found


def as_mapping(name: str, value: dict[str, Any] | str | None) -> dict[str, Any]:
    """A mapping, or JSON from the command line.

    Raises:
        ValueError: `value`, the field `name`, is neither.

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
    """The fields of `EditArguments` that stand for a policy, made from `preset`.

    Example:
        >>> as_arguments(EditPolicy(top_k=64))
        {'edit_policy': 'paper', 'edit_top_k': 64}
    """
    if policy is None:
        return {"edit_policy": "none"}
    default = EditPolicy.preset(preset).record()
    changed = {name: value for name, value in policy.record().items() if value != default[name]}
    if callable(policy.protect):  # YAML cannot hold a function
        del changed["protect"]
    return {"edit_policy": preset, **{PREFIX + name: value for name, value in changed.items()}}


def variant(text: str) -> EditPolicy | None:
    """A policy that `compare_policies` names; "none": no editing.

    Raises:
        ValueError: `text` names no policy, or a value is out of range.

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
