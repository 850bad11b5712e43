"""self_edit(): generations over one dataset, each edited by a model trained on the last (Eq. 3)."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import Trainer

from ..distributed import barrier
from ..policy import EditPolicy
from ..prior.prior import Prior
from ..stores.journal import Journal
from .attach import attach
from .checkpoints import last_checkpoint
from .perplexity import perplexity_of
from .trainee import text_tokenizer

logger = logging.getLogger("toedit_collate")

MakeTrainer = Callable[[int, Path | None], Trainer]
_REPORT = "toedit_report.json"


@dataclass(frozen=True, kw_only=True)
class GenerationReport:
    """What came of one generation.

    Attributes:
        generation: its number; 0 is the prior that edits the first.
        tokens: of the documents that it edited.
        scored: tokens to which the policy was applied.
        selected: tokens in the policy's region.
        changed: selected tokens that became another.
        dropped: tokens that were removed.
        perplexity: held-out, per token, of the model that was trained on this generation; None
            without an eval_dataset.
        train_loss: mean of the losses that its Trainer logged; None for generation 0.
        folder: where its model is.
    """

    generation: int
    tokens: int = 0
    scored: int = 0
    selected: int = 0
    changed: int = 0
    dropped: int = 0
    perplexity: float | None = None
    train_loss: float | None = None
    folder: str | None = None

    @property
    def selected_share(self) -> float:
        """Selected of the scored tokens: what Table 9 gives."""
        return self.selected / self.scored if self.scored else math.nan

    @property
    def changed_share(self) -> float:
        """Changed of the scored tokens."""
        return self.changed / self.scored if self.scored else math.nan


def self_edit(
    make_trainer: MakeTrainer,
    prior: Prior | Callable[[Trainer], Prior],
    policy: EditPolicy | None = None,
    *,
    generations: int,
    output_dir: str | Path,
    start: Literal["base", "previous"] = "base",
    journal: Journal | None = None,
    later_prior: Literal["swapped", "trainee"] = "swapped",
    **collator_settings: Any,
) -> list[GenerationReport]:
    """Train k generations, generation n on the data of n-1 as the model of n-1 has edited it.

    Generation 1 is edited by the prior as it comes. After each generation its model is saved in
    `output_dir/generation-n`, and swapped in as the prior of the next. A loop that was killed goes
    on where it was when it is called again: with the generations that are finished, and with the
    last whole checkpoint of the one that was not.

    Source: arXiv:2412.14689, section 3.2, Eq. 3 and Table 9.

    Args:
        make_trainer: (generation, weights) -> a new Trainer on the *source* dataset. Its model
            comes from the folder `weights`, or from the base where that is None. Its
            `eval_dataset`, if it has one, is the held-out set.
        prior: a prior of its own; or a function that makes one from each generation's Trainer:
            `lambda trainer: Prior.shared(trainer.model)`.
        policy: which tokens are edited, and how; default: the paper's.
        generations: k, how many.
        output_dir: folder for the models, the journal and a report of each generation.
        start: "base": each generation trains the base afresh; "previous": it goes on training the
            model of the generation before.
        journal: default: in `output_dir/journal`.
        later_prior: what edits from generation 2 on: "swapped": the prior, with the weights of the
            model of the generation before; "trainee": that model as a prior of its own, which may
            be of another architecture than the first, and have another tokenizer
            (`Prior.aligned_to`).
        collator_settings: further settings for `ToEditCollator`.

    Raises:
        ValueError: `generations` is not positive, `start` is something else, the prior has been
            swapped before, there is `refresh` among the settings, or what is in `output_dir` was
            made with another policy or `start`.

    Returns:
        A report of generation 0 (the prior as it comes) and of each generation.

    Example:
        >>> import tempfile
        >>> from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments
        >>> config = LlamaConfig(
        ...     vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        ...     num_attention_heads=2,
        ... )
        >>> folder = tempfile.TemporaryDirectory()
        >>> rows = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}] * 4
        >>> def make_trainer(generation, weights):
        ...     base = LlamaForCausalLM(config)
        ...     model = base if weights is None else LlamaForCausalLM.from_pretrained(weights)
        ...     arguments = TrainingArguments(
        ...         f"{folder.name}/training-{generation}", num_train_epochs=1, save_strategy="no",
        ...         use_cpu=True, report_to=[], disable_tqdm=True,
        ...     )
        ...     return Trainer(model, arguments, train_dataset=rows)
        >>> prior, policy = Prior(LlamaForCausalLM(config)), EditPolicy(threshold=1e-6)
        >>> reports = self_edit(
        ...     make_trainer, prior, policy, generations=2, output_dir=folder.name
        ... )  # doctest: +ELLIPSIS
        {'train_runtime': ...
        >>> [(report.generation, report.selected_share) for report in reports[1:]]
        [(1, 1.0), (2, 1.0)]
        >>> folder.cleanup()
    """
    if isinstance(generations, bool) or not isinstance(generations, int) or generations < 1:
        raise ValueError(f"generations must be a positive whole number, got {generations!r}")
    if start not in ("base", "previous"):
        raise ValueError(f"start must be 'base' or 'previous', got {start!r}")
    if later_prior not in ("swapped", "trainee"):
        raise ValueError(f"later_prior must be 'swapped' or 'trainee', got {later_prior!r}")
    if "refresh" in collator_settings:
        raise ValueError(
            "self_edit swaps the prior after each generation; leave refresh out, or train one run "
            "with ToEditCallback(collator, refresh=...)"
        )
    if not callable(prior) and prior.generation != 0:
        raise ValueError(
            f"prior must be the one before the first generation, got one of generation "
            f"{prior.generation}; load it anew"
        )
    folder = Path(output_dir)
    journal = Journal(folder / "journal") if journal is None else journal
    policy = EditPolicy() if policy is None else policy
    made_with = {"start": start, **policy.record()}
    swaps = later_prior == "swapped"
    if not swaps:
        made_with["later_prior"] = later_prior
    reports: list[GenerationReport] = []
    for number in range(1, generations + 1):
        here, before = (folder / f"generation-{n}" for n in (number, number - 1))
        if _is_finished(here) and (number > 1 or _is_finished(before)):
            if number == 1:
                reports.append(_read_report(before, made_with))
            reports.append(_read_report(here, made_with))
            continue
        weights = before if number > 1 else None
        trainer = make_trainer(number, weights if start == "previous" else None)
        own: Any
        if weights is not None and not swaps:
            own = _saved_model(weights, trainer)
        else:
            own = prior(trainer) if callable(prior) else prior
        if swaps:
            own.check_can_swap()
        if weights is not None:
            if swaps:
                own.swap(weights)
            own.generation = number - 1
        attach(trainer, own, policy, journal=journal, **collator_settings)
        if number == 1:
            # Lower bounds at some of the tokens would not compare with later perplexities.
            comparable = own.unaligned is own
            perplexity = perplexity_of(trainer, own) if comparable else None
            first = GenerationReport(generation=0, perplexity=perplexity)
            reports.append(_finish(first, before, trainer, made_with, save=None))
        trainer.train(
            resume_from_checkpoint=last_checkpoint(trainer.args.output_dir or folder, number - 1)
        )
        journal.flush()
        barrier()
        reports.append(_end(number, here, trainer, own if swaps else None, journal, made_with))
    return reports


def format_reports(reports: Sequence[GenerationReport]) -> str:
    """The reports as a table, as Table 9 has them.

    Example:
        >>> first = GenerationReport(generation=1, scored=1000, selected=125, changed=40)
        >>> print(format_reports([GenerationReport(generation=0, perplexity=11.5), first]))
        generation      scored            selected             changed  held-out perplexity
                 0           -                   -                   -              11.5000
                 1       1,000        125 (12.50%)        40 (4.0000%)                    -
    """
    lines = ["generation      scored            selected             changed  held-out perplexity"]
    for report in reports:
        perplexity = "-" if report.perplexity is None else f"{report.perplexity:.4f}"
        numbers = f"{'-':>12}{'-':>20}{'-':>20}"
        if report.generation:
            selected = f"{report.selected:,} ({report.selected_share:.2%})"
            changed = f"{report.changed:,} ({report.changed_share:.4%})"
            numbers = f"{report.scored:>12,}{selected:>20}{changed:>20}"
        lines.append(f"{report.generation:>10}{numbers}{perplexity:>21}")
    return "\n".join(lines)


def _end(
    number: int,
    folder: Path,
    trainer: Trainer,
    prior: Any,
    journal: Journal,
    made_with: dict[str, Any],
) -> GenerationReport:
    """Save a generation's model, swap it into the prior if there is one, and report."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    trainer.save_model(str(unfinished))
    barrier()
    if prior is None:
        prior = _saved_model(unfinished, trainer)
    else:
        prior.swap(unfinished)
    counts = journal.stats().get(number, {})
    names = ("tokens", "scored", "selected", "changed", "dropped")
    report = GenerationReport(
        generation=number,
        **{name: int(counts.get(name, 0)) for name in names},  # type: ignore[arg-type]
        perplexity=perplexity_of(trainer, prior),
        train_loss=mean_loss(trainer),
        folder=str(folder),
    )
    return _finish(report, folder, trainer, made_with, save=unfinished)


def _saved_model(folder: Path, trainer: Trainer) -> Prior:
    """What a Trainer saved, full weights or an adapter, as a prior."""
    name, adapter, device = str(folder), None, trainer.args.device
    config = folder / "adapter_config.json"
    if config.is_file():
        name, adapter = json.loads(config.read_text())["base_model_name_or_path"], name
    prior = Prior.from_pretrained(name, adapter=adapter, device=device)
    prior.set_tokenizer(text_tokenizer(getattr(trainer, "processing_class", None)))
    return prior


def _finish(
    report: GenerationReport,
    folder: Path,
    trainer: Trainer,
    made_with: dict[str, Any],
    *,
    save: Path | None,
) -> GenerationReport:
    """Write a report; the folder has its name only once it is whole."""
    if trainer.args.should_save:
        unfinished = folder.with_name(f"{folder.name}.unfinished") if save is None else save
        unfinished.mkdir(parents=True, exist_ok=True)
        content = {"report": dataclasses.asdict(report), "made_with": made_with}
        (unfinished / _REPORT).write_text(json.dumps(content, indent=2))
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
    barrier()
    return report


def mean_loss(trainer: Trainer) -> float | None:
    """Over all steps that were logged; what `train()` returns begins where it was resumed.

    None where nothing was logged.
    """
    logged = [(e["step"], e["loss"]) for e in trainer.state.log_history if "loss" in e]
    befores = [0, *(step for step, _ in logged)]
    total = sum(
        loss * (step - before) for before, (step, loss) in zip(befores, logged, strict=False)
    )
    return total / befores[-1] if logged else None


def _is_finished(folder: Path) -> bool:
    return (folder / _REPORT).is_file()


def _read_report(folder: Path, made_with: dict[str, Any]) -> GenerationReport:
    content = json.loads((folder / _REPORT).read_text())
    for name, value in made_with.items():
        if content["made_with"].get(name) != value:
            raise ValueError(
                f"output_dir holds {folder.name}, which was made with "
                f"{name}={content['made_with'].get(name)!r}, now it is {value!r}; give another "
                "output_dir"
            )
    return GenerationReport(**content["report"])
