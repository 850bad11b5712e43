"""The demo from end to end: prior, passage, shares, cost, LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ...config.options import read_policy
from ...config.priors import open_prior
from ...data.demo_model import make_prior, perplexity, read_corpus
from ...data.demo_text import Corpus, enough_examples, plain_text, python_topics
from ...errors import UnusableError
from ...prior.prior import Prior
from .report import COMPARED, section, show_cost, show_passage, show_runs, show_shares
from .threads import fastest_threads
from .tune import BATCH_SIZE, max_length, training_batches


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of `toedit demo`; `color` says whether to use it."""

    prior: str | None
    prior_options: dict[str, Any]
    data: str | None
    split: str | None
    policy: str
    prior_steps: int
    seconds: float
    steps: int
    seed: int
    output: Path | None
    color: bool


def run_demo(settings: Settings) -> None:
    """Print the report.

    Raises:
        UnusableError: a file or a model can't be used, or the extra `recipes` is not installed.
    """
    _require_extra()
    from ...config.quiet import quiet

    policies = {
        name: read_policy(name, seed=settings.seed) for name in (*COMPARED, settings.policy)
    }
    policy = policies[settings.policy]
    if settings.data is None:
        corpus = python_topics()
    else:
        corpus = read_corpus(settings.data, settings.split)
    if settings.output is not None:
        _make_folder(settings.output)
    with quiet():
        with fastest_threads():
            prior = _show_prior(settings, corpus)
        corpus = enough_examples(corpus, settings.steps * BATCH_SIZE, settings.seed)
        batches = training_batches(prior, corpus, steps=settings.steps, seed=settings.seed)
        with fastest_threads():
            show_passage(prior, batches, settings.policy, policy, color=settings.color)
            show_shares(prior, batches, policies)
            show_cost(prior, batches, settings.policy, policy)
        with fastest_threads():
            show_runs(prior, corpus, settings.policy, policy, settings.steps, settings.seed)
    section("Next")
    name = settings.prior or settings.output or "PATH_OR_HUB_ID"
    print(f"toedit demo --prior {name} --data FILE   the same on a model and a text of yours")
    print("attach(trainer, Prior.shared(trainer.model))   one line for a LoRA training script")


def _require_extra() -> None:
    for name in ("datasets", "peft", "trl"):
        try:
            __import__(name)
        except ImportError as error:
            raise UnusableError(
                f'the demo needs {name} ({error}); pip install "toedit_collate[recipes]"'
            ) from None


def _show_prior(settings: Settings, corpus: Corpus) -> Prior:
    section("1. Prior and text")
    print(f"Text: {corpus.name}")
    if settings.prior is not None:
        prior = _load_prior(settings.prior, settings.prior_options, corpus)
        made = "loaded"
    else:
        result = make_prior(
            [plain_text(example) for example in corpus.train],
            steps=settings.prior_steps,
            seconds=settings.seconds,
            seed=settings.seed,
        )
        prior = result.prior
        made = (
            f"made from that text in {result.seconds:.0f} s "
            f"({result.num_steps} steps, {result.num_tokens:,} tokens)"
        )
        if not result.is_whole:
            print(
                f"The time was up after {result.num_steps} of {settings.prior_steps} steps: this "
                f"prior is weaker than it should be; --seconds {2 * settings.seconds:g} gives more."
            )
    num_weights = sum(p.numel() for p in prior.model.parameters()) / 1e6
    print(
        f"Prior: {type(prior.model).__name__}, {num_weights:.1f} M weights, "
        f"{prior.vocab_size:,} ids, {made}"
    )
    held_out = [plain_text(example) for example in corpus.held_out]
    print(f"Its perplexity on the held-out documents: {perplexity(prior, held_out):.1f} per token")
    print(f"Documents are cut at {max_length(prior)} tokens.")
    if settings.output is not None:
        cast(Any, prior.model).save_pretrained(settings.output)
        prior.tokenizer.save_pretrained(settings.output)
        print(f"Saved in {settings.output}")
    return prior


def _load_prior(name: str, options: dict[str, Any], corpus: Corpus) -> Prior:
    import torch

    if not torch.cuda.is_available():
        options = {**options, "dtype": torch.float32}  # few CPUs are quick at bf16
    prior = open_prior(name, **options)
    if corpus.is_conversational and not prior.tokenizer.chat_template:
        raise UnusableError(
            f"--prior {name}: its tokenizer has no chat template, and {corpus.name.split(':')[0]} "
            "holds messages; use a model with one, or data with text"
        )
    return prior


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnusableError(
            f"--output {folder}: can't be made ({error.strerror}); name a folder that can"
        ) from None
