"""What a study is: question, world, arms and seeds, read from YAML."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from toedit_collate.config.fields import did_you_mean, read_yaml
from toedit_collate.config.policies import parse_policy
from toedit_collate.errors import UnusableError
from toedit_collate.policy import EditPolicy

WRITERS = ("replaced", "accumulated")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How one model is trained.

    Attributes:
        policy: as `toedit inspect --policy` takes it; None: no edit.
        prior: "prior", the study's; "self": the first arm's model of the same seed.
        epochs: passes over the training rows.
        learning_rate: the highest; after a warm-up (5 % of the steps) a cosine takes it to a tenth.
        batch_rows: rows in a step.
        weight_decay: AdamW's.
        dropout: of embeddings and of what each layer adds.
        label_smoothing: as in `torch.nn.functional.cross_entropy`.
        kl_weight: w in (1 - w) cross-entropy + w divergence from the prior, over the vocabulary.
        kl_beta: 0: that divergence is KL(prior || trainee); 1: KL(trainee || prior); between them
            the generalised Jensen-Shannon divergence, as TRL's `GKDTrainer` has it.
        on_policy: share of the steps for which the trainee completes the rows itself, and learns
            from the prior on what it wrote (`lmbda` of TRL's `GKDTrainer`); needs `kl_weight` 1,
            since only the prior can say what is right there.
        replay: rows of other text for each training row.
        lora_rank: 0: all weights are trained.

    Raises:
        ValueError: `on_policy` is not between 0 and 1, or is combined with what excludes it.
    """

    policy: str | None = None
    prior: str = "prior"
    epochs: int = 8
    learning_rate: float = 2e-3
    batch_rows: int = 8
    weight_decay: float = 0.1
    dropout: float = 0.0
    label_smoothing: float = 0.0
    kl_weight: float = 0.0
    kl_beta: float = 0.0
    on_policy: float = 0.0
    replay: float = 0.0
    lora_rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.on_policy <= 1:
            raise ValueError(f"on_policy={self.on_policy} is a share of the steps: from 0 to 1")
        if self.on_policy and (self.kl_weight != 1 or self.policy or self.replay):
            raise ValueError(
                f"on_policy={self.on_policy} needs kl_weight=1 (it is {self.kl_weight:g}), and "
                "neither policy nor replay: only the prior can say what is right in text that "
                "the trainee wrote"
            )

    def edit_policy(self, seed: int) -> EditPolicy | None:
        """The policy with a run's seed; None: no edit."""
        return None if self.policy is None else parse_policy(self.policy, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of one file: windows of text, or conversations.

    Attributes:
        file: in the folder of the data.
        rows: first row, and the one after the last.
    """

    file: str
    rows: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Pretraining(Rows):
    """What a model is trained on once, before the first run of a study; no epoch is chosen.

    Attributes:
        epochs, learning_rate, batch_rows: as in `RunSettings`.
    """

    epochs: int = 1
    learning_rate: float = 2e-3
    batch_rows: int = 8


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """What all runs of a study share.

    Attributes:
        trainee: fields of the prior's configuration that differ in the model that is trained from
            random weights; None: training starts from the weights of the prior.
        trainee_before: what the trainee is trained on beforehand; None: nothing.
        prior_before: what the prior is trained on beforehand; None: nothing.
        keep_layers: numbers of the prior's layers that such a trainee keeps; None: all of them.
        prior_dtype: in which the prior computes its edits; "bfloat16" is faster for a large one.
        row_length: tokens of a row.
        train, validation, test: rows.
        others: further text to evaluate on, by name.
        replay: rows to mix in, for arms with `replay`.
    """

    train: Rows
    validation: Rows
    test: Rows
    trainee: dict[str, Any] | None = None
    trainee_before: Pretraining | None = None
    prior_before: Pretraining | None = None
    keep_layers: list[int] | None = None
    prior_dtype: str = "float32"
    row_length: int = 256
    others: dict[str, Rows] = field(default_factory=dict)
    replay: Rows | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question, and the runs that answer it: arms with trials, or generations of models.

    Attributes:
        name: of its file.
        question: in words.
        counts_as_yes: what would count as yes, written down before the first run.
        world: data, prior and trainee.
        seeds: of the runs that count.
        arms: ways of training, by name: the trials of each, of which the best on validation is run
            with all seeds. The others are compared with the first.
        tuning_seed: of the trials. They are chosen on the validation rows, and results are measured
            on the test rows, so it may be one of `seeds` where runs are expensive.
        run: how each generation is trained.
        generations: how many models are trained one after the other; 0: the study has arms.
        writers: arms of generations that train on written text, "replaced" and "accumulated".
        policies: of the arms that edit over generations, by name.
        fractions: shares of written text in mixtures; empty: no mixtures are made.
    """

    name: str
    question: str
    counts_as_yes: str
    world: WorldSettings
    seeds: list[int]
    arms: dict[str, list[RunSettings]] = field(default_factory=dict)
    tuning_seed: int | None = None
    run: RunSettings = RunSettings()
    generations: int = 0
    writers: tuple[str, ...] = WRITERS
    policies: dict[str, str] = field(default_factory=dict)
    fractions: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if bool(self.arms) == bool(self.generations):
            raise ValueError("a study has either arms or generations; write one of them")
        if unknown := set(self.writers) - set(WRITERS):
            raise ValueError(
                f"writers may be {' and '.join(WRITERS)}, got {', '.join(sorted(unknown))}"
            )


def read_study(path: Path, size: str | None = None) -> Study:
    """A study from its YAML file.

    Args:
        path: of the file.
        size: one of its `sizes`, the fields of which replace those of the file; None: as it is.

    Raises:
        UnusableError: the file can't be read, or a field of it is unknown or wrong; it is named.
    """
    content = read_yaml(path, "--study")
    sizes = content.pop("sizes", None) or {}
    name = path.stem
    if size is not None:
        if size not in sizes:
            raise UnusableError(
                f"--size {size}: {path} has {', '.join(sizes) or 'no sizes'}"
                f"; {did_you_mean(size, list(sizes))}"
            )
        content, name = _merge(content, sizes[size]), f"{name}-{size}"
    try:
        base = content.pop("run", {})
        content |= {"name": name, "run": _made(RunSettings, base, "run")}
        content["world"] = _world(content["world"])
        content["arms"] = {
            arm: _trials(base, own or {}, f"arms.{arm}")
            for arm, own in (content.get("arms") or {}).items()
        }
        study: Study = _made(Study, content, "the study")
        return study
    except (TypeError, ValueError, KeyError) as error:
        raise UnusableError(f"--study {path}: {error}") from None


def describe(settings: dict[str, Any]) -> str:
    """The fields of `RunSettings` that are not at their defaults, and the epochs."""
    default = asdict(RunSettings())
    return ", ".join(
        f"{name}={value}"
        for name, value in settings.items()
        if name == "epochs" or value != default[name]
    )


def _merge(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The content with changes; mappings are merged, all else is replaced."""
    merged = dict(content)
    for key, value in changes.items():
        old = merged.get(key)
        nested = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(old or {}, value) if nested else value
    return merged


def _trials(base: dict[str, Any], own: dict[str, Any], where: str) -> list[RunSettings]:
    shared = {name: value for name, value in own.items() if name != "trials"}
    return [_made(RunSettings, {**base, **shared, **one}, where) for one in own.get("trials", [{}])]


def _world(content: dict[str, Any]) -> Any:
    own = dict(content)
    kinds = dict.fromkeys(("train", "validation", "test", "replay"), Rows)
    kinds |= dict.fromkeys(("trainee_before", "prior_before"), Pretraining)
    for key, kind in kinds.items():
        if own.get(key) is not None:
            own[key] = _rows(own[key], f"world.{key}", kind)
    others = own.get("others") or {}
    own["others"] = {key: _rows(one, f"world.others.{key}", Rows) for key, one in others.items()}
    return _made(WorldSettings, own, "world")


def _rows(content: dict[str, Any], where: str, kind: type) -> Any:
    first, last = content["rows"]
    return _made(kind, {**content, "rows": (int(first), int(last))}, where)


def _made(kind: type, content: dict[str, Any], where: str) -> Any:
    known = [one.name for one in fields(kind)]
    for name in content:
        if name not in known:
            raise ValueError(f"{where} has no field {name!r}; {did_you_mean(name, known)}")
    return kind(**content)
