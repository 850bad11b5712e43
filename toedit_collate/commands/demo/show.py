"""The demo from end to end: what the prior draws, whether it pays, and the edits of the paper."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import math
import time
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch

from ...config.console import quiet
from ...config.options import prior_options, wants_color
from ...config.precision import fast_dtype
from ...config.priors import open_prior
from ...data import Example, Preparation, examples
from ...data.demo_model import make_prior
from ...data.demo_text import HELD_OUT_SHARE, python_topics
from ...errors import UnusableError
from ...inspection.advice import percent
from ...inspection.findings import Document
from ...inspection.inspecting import Inspection, inspect_edits
from ...inspection.reading import as_data
from ...inspection.terminal import (
    bold,
    boxed,
    in_columns,
    label_lines,
    passages,
    policy_table,
    wrapped,
)
from ...policy import EditPolicy
from ...prior.prior import Prior
from .training import BATCH_SIZE, smaller_model, train

MAX_DOCUMENTS = 2000  # read from a file
MAX_LENGTH = 512  # tokens of a document
NUM_TRAINED = 64  # documents: with little text, a short run has many epochs
NUM_HELD_OUT = 40
INSPECTED_TOKENS = 20_000
FEWEST_STEPS = 5  # of a training run that is worth showing
PAPER = {"paper": EditPolicy.paper(), "reference_code": EditPolicy.reference_code()}
Documents = list[Example]


def show_demo(args: argparse.Namespace, policy: EditPolicy, deadline: float) -> None:
    """Print the demo.

    Args:
        args: of the command line.
        policy: of the training run with edits.
        deadline: finish at about this time, of `time.monotonic`.

    Raises:
        UnusableError: a file or a model cannot be used.
    """
    color, name = wants_color(args), " ".join(args.policy.split())
    _heading("1. The prior and the text", color)
    with quiet():
        prior = _make_prior(args) if args.prior is None else _load_prior(args)
        documents, held_out = _read(prior, args)
        size = sum(p.numel() for p in prior.model.parameters()) / 1e6
        made = args.prior or "a small model that was trained on this text just now"
        _say(f"Prior: {made}; {size:.1f} M weights.")
        _say(
            f"Text: {args.data or 'the help topics of Python'}; {len(documents):,} documents "
            f"to train on, {len(held_out):,} held out; longer ones are split."
        )
        seen = _inspect(prior, documents, {name: policy, **PAPER}, deadline)
        if policy.target == "labels":
            _show_labels(seen, name, color)
        _show_training(prior, documents[:NUM_TRAINED], held_out, policy, args, deadline)
    _show_paper(seen, color)
    _heading("Next", color)
    name = args.prior or args.output or "NAME"
    print(f"toedit demo --prior {name} --data FILE       the same with your model and your text")
    print(f"toedit inspect --prior {name} --data FILE    more about the edits; --html for a page")


def _say(text: str) -> None:
    print(wrapped(text), flush=True)


def _heading(title: str, color: bool) -> None:
    print(f"\n{bold(title, color)}\n{'-' * len(title)}", flush=True)


# --- 1. The prior and the text ---


def _make_prior(args: argparse.Namespace) -> Prior:
    folder: Path | None = args.output
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnusableError(
                f"--output {folder}: cannot be created ({error.strerror}); name another folder"
            ) from None
    prior = make_prior(python_topics()[0], seed=args.seed)
    if folder is not None:
        cast(Any, prior.model).save_pretrained(folder)
        prior.tokenizer.save_pretrained(folder)
        print(f"Saved the prior in {folder}.")
    return prior


def _load_prior(args: argparse.Namespace) -> Prior:
    options = prior_options(args)
    if args.dtype == "auto" and not torch.cuda.is_available():
        options["dtype"] = fast_dtype(torch.device("cpu"))
    prior = open_prior(args.prior, **options)
    if prior.tokenizer.pad_token is None:
        prior.tokenizer.pad_token = prior.tokenizer.eos_token
    return prior


def _read(prior: Prior, args: argparse.Namespace) -> tuple[Documents, Documents]:
    """Documents to train on and held-out ones, at least one of each."""

    def read(source: Any) -> Documents:
        prep = Preparation(max_length=min(prior.max_length or MAX_LENGTH, MAX_LENGTH))
        tokenizer = prep.set_up(prior.tokenizer)
        found = examples(as_data(source), tokenizer, prep, vocab_size=prior.vocab_size)
        labelled = (one for one in found if any(label != -100 for label in one.labels[1:]))
        some = list(islice(labelled, MAX_DOCUMENTS))
        # An order that depends on the content: the same documents are held out in every run.
        return sorted(some, key=lambda one: hashlib.sha256(repr(one.ids).encode()).digest())

    if args.data is None:
        train, held_out = map(read, python_topics())
        return train, held_out[:NUM_HELD_OUT]
    found = read(as_data(args.data, args.split))
    if len(found) < 2:
        raise UnusableError(
            f"--data {args.data}: the demo requires 2 documents or more, got {len(found)}"
        )
    if len(found) == MAX_DOCUMENTS:
        print(f"The demo reads the first {MAX_DOCUMENTS:,} documents of the file.")
    count = max(1, int(len(found) * HELD_OUT_SHARE))
    return found[count:], found[:count][:NUM_HELD_OUT]


def _inspect(
    prior: Prior, documents: Documents, policies: dict[str, EditPolicy], deadline: float
) -> Inspection:
    """Inspect as many documents as fit into a third of the time that is left."""

    def inspect(some: Documents) -> Inspection:
        rows = (
            {"input_ids": d.ids, "assistant_masks": [x != -100 for x in d.labels]} for d in some
        )
        return inspect_edits(prior, rows, policies, limit=None, batch_tokens=1024)

    inspect(documents[:1])  # the first pass is slower than the others
    started = time.monotonic()
    num_tokens = inspect(documents[:1]).num_tokens
    now = time.monotonic()
    budget = (deadline - now) / 3 * num_tokens / (now - started)
    total, some = 0, documents[:1]
    for document in documents[1:]:
        total += len(document.ids)
        if total > min(budget, INSPECTED_TOKENS):
            break
        some.append(document)
    seen = inspect(some)
    if len(some) < len(documents):
        why = "as many as fit into the time" if total > budget else "enough for an example"
        _say(
            f"The examples and shares below are of {len(some)} documents, {why}: "
            f"{seen.num_tokens:,} tokens."
        )
    return seen


# --- 2. What the prior draws ---


def _show_labels(seen: Inspection, name: str, color: bool) -> None:
    policy = cast(EditPolicy, seen.policies[name])
    draws = policy.num_draws
    several = "a token that" if draws == 1 else f"{draws} tokens that"
    _heading("2. What the prior draws", color)
    _say(
        f"The policy '{name}' does not change the text. It changes the labels: at each "
        f"position, the model learns {several} the prior draws there. "
        + ("Each epoch draws anew." if policy.redraw == "epoch" else "They are drawn once.")
    )

    def readable(document: Document) -> list[int]:
        """Places where a whole word became another word that the prior finds probable."""
        places = document.edits[name].changed
        return [i for i in places if _rank(seen, document, name, i) >= (True, 0.05)]

    document = max(seen.documents, key=lambda one: len(readable(one)))
    places = readable(document)
    edit = document.edits[name]
    shown = places[:: max(1, len(places) // 6)][:6]
    print("\n" + "\n".join(label_lines(seen, document, edit, shown, draws)))
    chances = [_rank(seen, document, name, i)[1] for i in edit.changed]
    worse = sum(p < document.probability[i] for i, p in zip(edit.changed, chances, strict=True))
    print()
    _say(
        f"{percent(seen.tallies[name].share(None, 'changed'))} of all "
        f"{'labels' if draws == 1 else 'first draws'} are another token than the text has. In "
        f"this document, the prior finds {worse} of these {len(chances)} tokens less probable than "
        "the token of the text. Taken alone, such a label is worse than the text. Together, the "
        "labels show the smaller model how sure the larger one is."
    )


def _rank(seen: Inspection, document: Document, name: str, i: int) -> tuple[bool, float]:
    """How well an edit can be read: whether words were exchanged, and P of the new token."""
    new = cast(int, document.edits[name].after[i])
    after = document.text.pieces[i + 1] if i + 1 < len(document.ids) else ""
    pieces = (document.text.pieces[i], seen.reader.piece(new))
    is_whole = not after[:1].isalnum() and all(
        piece[:1] == " " and piece[1:].isalpha() and len(piece) > 2 for piece in pieces
    )
    return is_whole, dict(document.candidates.get(i, ())).get(new, 0.0)


# --- 3. Does it pay? ---


def _show_training(
    prior: Prior, documents: Documents, held_out: Documents, policy: EditPolicy,
    args: argparse.Namespace, deadline: float,
) -> None:  # fmt: skip
    color = wants_color(args)
    _heading("3. Does it pay? A smaller model, trained with and without these edits", color)
    layers = cast(Any, prior.model).config.num_hidden_layers
    _say(
        f"The smaller model is the prior with {smaller_model(prior).config.num_hidden_layers} "
        f"of its {layers} layers. Both runs see the same {len(documents)} documents in "
        "several epochs. Held-out documents are never edited."
    )
    now = time.monotonic()
    edited = train(
        prior, documents, held_out, policy, steps=args.steps, seed=args.seed,
        deadline=now + 0.5 * (deadline - now),
    )  # fmt: skip
    steps = max(edited.perplexities)
    if steps < args.steps:
        print(f"{steps} of {args.steps} steps fit into the time; --seconds gives more time.")
    if steps < min(args.steps, FEWEST_STEPS):
        print("These are too few to compare the runs.")
        return
    plain = train(prior, documents, held_out, None, steps=steps, seed=args.seed, deadline=math.inf)
    rows = [["steps", "epochs", "without edits", "with edits"]]
    for step, value in edited.perplexities.items():
        epochs = f"{step * BATCH_SIZE / len(documents):.1f}"
        rows.append([f"{step}", epochs, f"{plain.perplexities[step]:.2f}", f"{value:.2f}"])
    print(f"\nPerplexity per token on {len(held_out)} held-out documents\n{in_columns(rows)}\n")
    best, without = (min(run.perplexities.values()) for run in (edited, plain))
    gain = 1 - best / without
    outcome = f"{percent(abs(gain))} {'lower' if gain > 0 else 'higher'} with edits"
    print(
        boxed(
            f"{outcome if abs(gain) >= 0.005 else 'no difference'}: at best {best:.2f}, and "
            f"{without:.2f} without edits",
            "One short run is an example, not evidence. For evidence, see docs/studies.md. The "
            f"edit pass took {percent(edited.time_share)} of the time of the training steps.",
            color=color,
        )
    )


# --- 4. The edits of the paper ---


def _show_paper(seen: Inspection, color: bool) -> None:
    _heading("4. The edits of the paper", color)
    _say(
        "ToEdit changes the input and the label together. It selects tokens that the prior is "
        "sure of (P >= 0.99) and draws them anew. Most draws return the same token."
    )
    tallies = {name: seen.tallies[name] for name in PAPER}
    print(f"\n{policy_table(dataclasses.replace(seen, tallies=tallies))}\n")
    name = "reference_code"
    changes = [
        (_rank(seen, document, name, i), -number, i)
        for number, document in enumerate(seen.documents)
        for i in document.edits[name].changed
    ]
    if changes:
        (_, chance), number, i = max(changes)
        document = seen.documents[-number]
        times = float(document.probability[i]) / max(chance, 1e-3)
        print(f"An example of {name}:")
        print(passages(seen, document, document.edits[name], [i], color) + "\n")
        _say(
            "By the prior's own judgement this draw made the text worse: the old token was "
            f"{times:,.0f} times as probable{' or more' * (chance < 1e-3)}."
        )
    else:
        print("In these documents, no draw returned another token.")
    _say(
        "In our studies (docs/studies.md), so few changes made no difference in training. With "
        "the model's own base as the prior (Prior.shared), no policy lowered the loss."
    )
