"""The demo from end to end: what the prior draws, whether it pays, and the edits of the paper."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import math
import re
import time
from typing import Any, cast

import torch

from ...config.console import quiet
from ...config.options import wants_color
from ...config.priors import open_prior
from ...data import Example, Preparation, examples
from ...data.demo_text import DEMO, HELD_OUT_SHARE, python_topics
from ...errors import UnusableError
from ...inspection.advice import percent
from ...inspection.findings import Document
from ...inspection.inspecting import Inspection, inspect_edits
from ...inspection.reading import as_data
from ...inspection.terminal import bold, boxed, in_columns, label_lines, policy_table, wrapped
from ...policy import EditPolicy
from ...prior.prior import Prior
from .training import BATCH_SIZE, smaller_model, train

MAX_DOCUMENTS = 2000  # read from a file
MAX_LENGTH = 512  # tokens of a document
NUM_TRAINED = 64  # documents: with little text, a short run has many epochs
NUM_HELD_OUT = 40
FEW_TOKENS, MANY_TOKENS = 1_000, 20_000  # to inspect
FEWEST_STEPS = 5  # of a training run that is worth showing
PAPER = {"paper": EditPolicy.paper(), "reference_code": EditPolicy.reference_code()}
Documents = list[Example]


def show_demo(args: argparse.Namespace, policy: EditPolicy, deadline: float) -> None:
    """Print the demo, and finish at about `deadline`, a time of `time.monotonic`.

    Raises:
        UnusableError: a file or a model cannot be used.
    """
    color, name = wants_color(args), " ".join(args.policy.split())
    _heading("1. The prior and the text", color)
    with quiet():
        prior = _load_prior(args)
        documents, held_out = _read(prior, args)
        size = sum(p.numel() for p in prior.model.parameters()) / 1e6
        prior_name = args.prior or f"{DEMO}, a small model that was trained on this text"
        _say(f"Prior: {prior_name}; {size:.1f} M weights.")
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
    name = args.prior or "NAME"
    print(f"toedit demo --prior {name} --data FILE       the same with your model and your text")
    print(f"toedit inspect --prior {name} --data FILE    more about the edits; --html for a page")


def _say(text: str) -> None:
    print(wrapped(text), flush=True)


def _heading(title: str, color: bool) -> None:
    print(f"\n{bold(title, color)}\n{'-' * len(title)}", flush=True)


# --- 1. The prior and the text ---


def _load_prior(args: argparse.Namespace) -> Prior:
    # Many CPUs multiply bfloat16 several times slower than float32.
    dtype = "auto" if torch.cuda.is_available() else "float32"
    prior = cast(Prior, open_prior(args.prior or DEMO, dtype=dtype))
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
        some = list(itertools.islice(labelled, MAX_DOCUMENTS))
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
    """Inspect some documents; more, if that fits into a third of the time that is left."""

    def first(num_tokens: int) -> Documents:
        ends = itertools.accumulate(len(document.ids) for document in documents)
        return documents[: max(1, sum(end <= num_tokens for end in ends))]

    def inspect(some: Documents) -> Inspection:
        rows = (
            {"input_ids": d.ids, "assistant_masks": [x != -100 for x in d.labels]} for d in some
        )
        return inspect_edits(prior, rows, policies, limit=None, batch_tokens=1024)

    started = time.monotonic()
    seen = inspect(first(FEW_TOKENS))
    now = time.monotonic()
    if (now - started) * MANY_TOKENS / FEW_TOKENS < (deadline - now) / 3:
        seen = inspect(first(MANY_TOKENS))
    _say(
        f"The examples and shares below are of {seen.num_documents} documents: "
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

    def new_token(document: Document, i: int) -> int:
        return int(document.edits[name].after[i])

    def chance(document: Document, i: int) -> float:
        """P of the new token."""
        return dict(document.candidates.get(i, ())).get(new_token(document, i), 0.0)

    def is_readable(document: Document, i: int) -> bool:
        """Whether a whole word became another one that the prior finds probable."""
        pieces = [document.pieces[i], seen.reader.piece(new_token(document, i))]
        next_piece = document.pieces[i + 1] if i + 1 < len(document.ids) else ""
        are_words = all(re.fullmatch(r" [^\W\d_]{2,}", piece) for piece in pieces)
        return are_words and not next_piece[:1].isalnum() and chance(document, i) >= 0.05

    readable = [
        [i for i in document.edits[name].changed if is_readable(document, i)]
        for document in seen.documents
    ]
    places, document = max(zip(readable, seen.documents, strict=True), key=lambda of: len(of[0]))
    edit = document.edits[name]
    shown = places[:: max(1, len(places) // 6)][:6]
    print("\n" + "\n".join(label_lines(seen, document, edit, shown, draws)))
    worse = sum(chance(document, i) < document.probability[i] for i in edit.changed)
    print()
    _say(
        f"{percent(seen.tallies[name].share(None, 'changed'))} of all "
        f"{'labels' if draws == 1 else 'first draws'} are another token than the text has. In "
        f"this document, the prior finds {worse} of these {len(edit.changed)} tokens less probable "
        "than the token of the text. Taken alone, such a label is worse than the text. Together, "
        "the labels show the smaller model how sure the larger one is."
    )


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
    steps = max(edited)
    if steps < args.steps:
        print(f"{steps} of {args.steps} steps fit into the time; --seconds gives more time.")
    if steps < min(args.steps, FEWEST_STEPS):
        print("These are too few to compare the runs.")
        return
    plain = train(prior, documents, held_out, None, steps=steps, seed=args.seed, deadline=math.inf)
    rows = [["steps", "epochs", "without edits", "with edits"]]
    for step, value in edited.items():
        epochs = f"{step * BATCH_SIZE / len(documents):.1f}"
        rows.append([f"{step}", epochs, f"{plain[step]:.2f}", f"{value:.2f}"])
    print(f"\nPerplexity per token on {len(held_out)} held-out documents\n{in_columns(rows)}\n")
    best, without = (min(run.values()) for run in (edited, plain))
    gain = 1 - best / without
    outcome = f"{percent(abs(gain))} {'lower' if gain > 0 else 'higher'} with edits"
    print(
        boxed(
            f"{outcome if abs(gain) >= 0.005 else 'no difference'}: at best {best:.2f}, and "
            f"{without:.2f} without edits",
            "One short run is an example, not evidence. For evidence, see docs/studies.md; for the "
            "cost, run toedit bench.",
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
    _say(
        "In our studies (docs/studies.md), so few changes made no difference in training. With "
        "the model's own base as the prior (Prior.shared), no policy lowered the loss."
    )
