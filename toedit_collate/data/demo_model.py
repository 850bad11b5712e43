"""A small model that is trained within a minute: for the demo and the tiny recipes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UnusableError
from .demo_text import DEMO, DEMO_MODELS, python_topics
from .files import whole
from .progress import progress_bar

CONTEXT = 256
BATCH_SIZE = 4
NUM_STEPS = 500  # 45 seconds on two CPU cores
# Of the Llama, apart from its vocabulary.
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": True,
}
_WARM_UP = 0.03  # share of the steps
_SPECIAL = ("<|bos|>", "<|eos|>", "<|pad|>")
_CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ':\\n' + m['content'] + '<|eos|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\\n' }}{% endif %}"
)


def make_tokenizer(texts: list[str], vocab_size: int = 1024) -> Any:
    """A byte-level BPE tokenizer with a chat template."""
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
    """The configuration of the small Llama with this tokenizer."""
    from transformers import LlamaConfig

    return LlamaConfig(
        **SHAPE,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _train(model: Any, stream: Tensor) -> None:
    """Train on random windows of `stream`, a row of token ids."""
    steps = NUM_STEPS
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [_Muon(matrices, lr=0.03), torch.optim.AdamW(others, lr=0.03, betas=(0.9, 0.95))]
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    length = min(CONTEXT, len(stream))
    model.train()
    with progress_bar(lambda: steps, "steps", desc="training the prior") as bar:
        for step in range(steps):
            done = step / steps
            factor = min(1.0, done / _WARM_UP + 0.05, (1 - done) / (1 - _WARM_UP))
            for optimizer, peak in zip(optimizers, peaks, strict=True):
                optimizer.param_groups[0]["lr"] = peak * factor
            starts = torch.randint(0, len(stream) - length + 1, (BATCH_SIZE,)).tolist()
            ids = torch.stack([stream[s : s + length] for s in starts]).to(model.device)
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(others, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            bar.update()
    model.zero_grad(set_to_none=True)


class _Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024): descends along the orthogonal part of a matrix's gradient.

    AdamW needs three times the steps. `torch.optim.Muon` needs torch 2.9 and computes in bfloat16,
    which is five times slower on many CPUs.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                gradient, momentum = weight.grad, group["momentum"]
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(gradient, 1 - momentum)
                update = orthogonalize(gradient.lerp(mean, momentum))
                tall = max(1.0, weight.shape[0] / weight.shape[1])
                weight.add_(update, alpha=-group["lr"] * tall**0.5)


def orthogonalize(matrix: Tensor) -> Tensor:
    """Move the singular values of an (n, m) matrix close to 1: five Newton-Schulz steps."""
    is_wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if is_wide else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if is_wide else x.T


def demo_model(name: str = DEMO) -> Path:
    """A small model with a tokenizer and a chat template. The first call trains it in a minute.

    `name` is one of `DEMO_MODELS`; each has its own tokenizer. Returns the model's folder, in
    `$XDG_CACHE_HOME` or `~/.cache`.
    """
    from transformers import LlamaForCausalLM

    folder = _folder_of(name)
    if not _is_there(folder):
        print(
            f"Training {name}, a small model for the tiny recipes ({NUM_STEPS} steps). It is kept "
            f"in {folder}; to train it again, delete this folder",
            flush=True,
        )
        torch.manual_seed(0)
        texts = python_topics()[0]
        tokenizer = make_tokenizer(texts, DEMO_MODELS[name])
        eos = tokenizer.eos_token_id
        stream = torch.tensor([i for ids in tokenizer(texts)["input_ids"] for i in (*ids, eos)])
        model: Any = LlamaForCausalLM(make_config(tokenizer))
        _train(model.to("cuda" if torch.cuda.is_available() else "cpu"), stream)
        _save(folder, tokenizer, model)
    return folder


def demo_config(name: str = DEMO) -> Path:
    """Like `demo_model`, but without weights: the folder has a config and a tokenizer."""
    trained = _folder_of(name)
    folder = trained.with_name(f"{trained.name}-config")
    if not _is_there(folder):
        tokenizer = make_tokenizer(python_topics()[0], DEMO_MODELS[name])
        _save(folder, tokenizer, make_config(tokenizer))
    return folder


def _folder_of(name: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept_as = "demo-model-2" if name == DEMO else f"demo-model-2-{DEMO_MODELS[name]}"
    return cache / "toedit_collate" / kept_as


def _is_there(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _save(folder: Path, tokenizer: Any, model: Any) -> None:
    if not _is_there(folder):
        shutil.rmtree(folder, ignore_errors=True)  # it is not complete
    try:
        with whole(folder, replace=False) as place:
            tokenizer.save_pretrained(place)
            model.save_pretrained(place)
    except UnusableError:
        if not _is_there(folder):  # else another process was faster
            raise
