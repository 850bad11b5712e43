"""The small prior of the demo: a tokenizer and a Llama, trained on some text in a minute.

`make_prior` trains one; `demo_model` keeps one for the tiny recipes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import UnusableError
from ..prior.prior import Prior
from .demo_text import DEMO, DEMO_MODELS, Corpus, DemoExample, demo_rows, hold_out
from .files import whole, write_json
from .progress import progress_bar
from .reading import Data, open_data
from .tokens import check_format, format_of

VOCAB_SIZE = 1024
CONTEXT = 256
BATCH_SIZE = 4
NUM_STEPS = 500  # three quarters of a minute on two CPU cores
# Of the Llama that is made, beside its vocabulary.
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
}
_WARM_UP = 0.03  # share of the training
_SPECIAL = ("<|bos|>", "<|eos|>", "<|pad|>")
_CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ':\\n' + m['content'] + '<|eos|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class MadePrior:
    """A prior, and how it came about.

    Attributes:
        prior: frozen.
        num_steps: of training that were made.
        num_tokens: that it saw in them.
        seconds: that they took.
        is_whole: all steps were made; False: the time was up before.
    """

    prior: Prior
    num_steps: int
    num_tokens: int
    seconds: float
    is_whole: bool


def make_prior(
    texts: list[str],
    *,
    seed: int,
    steps: int = NUM_STEPS,
    seconds: float = math.inf,
    vocab_size: int = VOCAB_SIZE,
) -> MadePrior:
    """Train a byte-level BPE tokenizer and a Llama on `texts`; a progress bar goes to stderr.

    Args:
        texts: the documents.
        seed: of weights and windows.
        steps: how many to make.
        seconds: end by then, annealed, even if fewer steps were made.
        vocab_size: the most tokens that the tokenizer may have.
    """
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(texts, vocab_size)
    encoded = tokenizer(texts)["input_ids"]
    eos = tokenizer.eos_token_id
    stream = torch.tensor([token for ids in encoded for token in (*ids, eos)])
    model = _make_model(tokenizer)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.perf_counter()
    num_steps = _train(model.to(device), stream, steps, seconds)
    return MadePrior(
        prior=Prior(model, tokenizer),
        num_steps=num_steps,
        num_tokens=num_steps * BATCH_SIZE * CONTEXT,
        seconds=time.perf_counter() - started,
        is_whole=num_steps == steps,
    )


@torch.no_grad()
def perplexity(prior: Prior, texts: list[str]) -> float:
    """Of a prior per token, each text scored on its own, up to the prior's positions."""
    total, count = 0.0, 0
    for ids in prior.tokenizer(texts, verbose=False)["input_ids"]:
        row = torch.tensor([ids[: prior.max_length]], device=prior.device)
        if row.shape[1] > 1:
            loss = prior.model(input_ids=row, labels=row, use_cache=False).loss
            total += float(loss) * (row.shape[1] - 1)
            count += row.shape[1] - 1
    return math.exp(total / max(count, 1))


def make_tokenizer(texts: list[str], vocab_size: int = VOCAB_SIZE) -> Any:
    """A byte-level BPE tokenizer of at most `VOCAB_SIZE` tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    bos, eos, pad = _SPECIAL
    raw.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, raw.token_to_id(bos))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=bos, eos_token=eos, pad_token=pad
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def make_config(tokenizer: Any) -> Any:
    """The configuration of a small Llama with this tokenizer."""
    from transformers import LlamaConfig

    return LlamaConfig(
        **SHAPE,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _make_model(tokenizer: Any) -> Any:
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(make_config(tokenizer))


def _train(model: Any, stream: Tensor, steps: int, seconds: float) -> int:
    """Train on random windows of `stream`; returns the number of steps that were made."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [Muon(matrices, lr=0.03), torch.optim.AdamW(others, lr=0.03, betas=(0.9, 0.95))]
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    length = min(CONTEXT, len(stream))
    model.train()
    num_steps, started = 0, time.perf_counter()
    with progress_bar(lambda: steps, "steps", desc="training the prior") as bar:
        while num_steps < steps:
            # Where the time runs out first, by the clock: so that it ends annealed there, too.
            done = max(num_steps / steps, (time.perf_counter() - started) / seconds)
            if done >= 1:
                break
            factor = min(1.0, done / _WARM_UP + 0.05, (1 - done) / (1 - _WARM_UP))
            for optimizer, peak in zip(optimizers, peaks, strict=True):
                optimizer.param_groups[0]["lr"] = peak * factor
            starts = torch.randint(0, len(stream) - length + 1, (BATCH_SIZE,)).tolist()
            ids = torch.stack([stream[s : s + length] for s in starts]).to(model.device)
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(others, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            num_steps += 1
            bar.update()
            if num_steps % 10 == 0:
                bar.set_postfix_str(f"perplexity {math.exp(loss.item()):.0f}", refresh=False)
    model.zero_grad(set_to_none=True)
    return num_steps


class Muon(torch.optim.Optimizer):
    """For the 2-D weights between embedding and head (Jordan et al., 2024).

    `torch.optim` has one from torch 2.9 on, but it computes in bf16, which many CPUs are slow at:
    in the demo's minute it made 133 steps where this one made 661. With AdamW, a step is worth
    about a third.

    Args:
        params: matrices.
        lr: size of a step, of a matrix whose singular values are all 1.
        momentum: of the gradient's running mean.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one step."""
        for group in self.param_groups:
            for weight in group["params"]:
                gradient, momentum = weight.grad, group["momentum"]
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(gradient, 1 - momentum)
                update = orthogonalize(gradient.lerp(mean, momentum))
                tall = max(1.0, weight.shape[0] / weight.shape[1])
                weight.add_(update, alpha=-group["lr"] * tall**0.5)


def orthogonalize(matrix: Tensor) -> Tensor:
    """Bring the singular values of a matrix near 1, by five Newton-Schulz steps.

    Args:
        matrix: (n, m) float.

    Returns:
        (n, m), with the same singular vectors.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.T


# By then the machine is busy with something else: a model that was cut short is of no use.
LONGEST = 1800.0  # seconds


def demo_model(name: str = DEMO) -> Path:
    """A small model that was trained on those passages; trained at the first call, in a minute.

    Args:
        name: of `DEMO_MODELS`; each has a tokenizer of its own.

    Returns:
        Its folder, with a tokenizer and a chat template: under `$XDG_CACHE_HOME` or `~/.cache`.

    Raises:
        UnusableError: the training took too long, or the folder can't be written; nothing is kept.
    """
    folder = _folder_of(name)
    if not (folder / "config.json").is_file():
        print(
            f"Training {name}, a small model for the tiny recipes, once, in {NUM_STEPS} steps; it "
            f"is kept in {folder}",
            flush=True,
        )
        _make(folder, DEMO_MODELS[name])
    return folder


def demo_config(name: str = DEMO) -> Path:
    """The configuration and the tokenizer of such a model: enough to train one from scratch.

    Args:
        name: of `DEMO_MODELS`.

    Returns:
        Their folder, beside those of `demo_model`; nothing is trained.

    Raises:
        UnusableError: it can't be written.
    """
    trained = _folder_of(name)
    folder = trained.with_name(f"{trained.name}-config")
    if not (folder / "config.json").is_file():
        tokenizer = make_tokenizer(_texts("train"), DEMO_MODELS[name])
        try:
            with whole(folder, replace=False) as place:
                tokenizer.save_pretrained(place)
                make_config(tokenizer).save_pretrained(place)
        except UnusableError:
            if not (folder / "config.json").is_file():  # another process was first
                raise
    return folder


def _folder_of(name: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept_as = "demo-model-2" if name == DEMO else f"demo-model-2-{DEMO_MODELS[name]}"
    return cache / "toedit_collate" / kept_as


def _texts(split: str) -> list[str]:
    return [row["text"] for row in demo_rows("docs", split)]


def _make(folder: Path, vocab_size: int) -> None:
    texts, held_out = _texts("train"), _texts("test")
    made = make_prior(texts, seed=0, steps=NUM_STEPS, seconds=LONGEST, vocab_size=vocab_size)
    if not made.is_whole:
        raise UnusableError(
            f"the small model of toedit-demo got {made.num_steps} of {NUM_STEPS} steps in "
            f"{made.seconds:.0f} s, and is not kept; start again when the machine is less busy, or "
            "name a model of your own"
        )
    quality = perplexity(made.prior, held_out)
    shutil.rmtree(folder, ignore_errors=True)  # without a config: what is left of another
    try:
        with whole(folder, replace=False) as place:
            cast(Any, made.prior.model).save_pretrained(place)
            made.prior.tokenizer.save_pretrained(place)
            write_json(
                place / "training.json", {"steps": made.num_steps, "held_out_perplexity": quality}
            )
    except UnusableError:
        if not (folder / "config.json").is_file():  # another process was first
            raise
    print(
        f"Its perplexity is {quality:.1f} per token on passages that it has not seen. To make it "
        f"anew, remove {folder}",
        flush=True,
    )


MAX_DOCUMENTS = 20_000  # of a file; the rest is left unread


def read_corpus(source: str, split: str | None = None) -> Corpus:
    """Read documents of text or chats; one in eight is held out.

    Args:
        source: see `open_data`.
        split: of a folder with several, or of a hub dataset.

    Raises:
        UnusableError: it can't be read, or holds no documents of a known format.
    """
    data = open_data(source, split)
    examples = list(islice(_examples(data), MAX_DOCUMENTS))
    kinds = {tuple(example) for example in examples}
    if len(kinds) > 1:
        raise data.error(f"documents of {len(kinds)} formats {sorted(kinds)}; keep to one")
    if len(examples) < 2:
        raise data.error(
            f"{len(examples)} documents; the demo needs at least 2, to train on some and hold out "
            "others"
        )
    train, held_out = hold_out(examples, key=lambda example: json.dumps(example, sort_keys=True))
    first = "the first " if len(examples) == MAX_DOCUMENTS else ""
    name = f"{source}: {first}{len(train):,} documents to train on, {len(held_out):,} held out"
    return Corpus(name, train, held_out)


def _examples(data: Data) -> Iterator[DemoExample]:
    """The columns of each document that the demo uses; empty documents are skipped."""
    for batch in data.batches():
        for row, name in zip(batch.rows, batch.names, strict=True):
            form = format_of(row)
            if form is None or form == ("input_ids",):
                raise data.error(
                    f"{name} has {sorted(row)}; the demo reads text, messages, or prompt and "
                    "completion: rename the columns"
                )
            last = row.get(form[-1])
            if last.strip() if isinstance(last, str) else last != []:
                yield {column: row[column] for column in check_format(data, row, name)}
