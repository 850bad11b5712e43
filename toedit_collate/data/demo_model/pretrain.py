"""A tokenizer and a small prior, made from some text in so many steps."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...prior.prior import Prior
from ..progress import progress_bar
from .muon import Muon

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
