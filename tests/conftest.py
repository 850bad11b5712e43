"""Tiny models and a tiny tokenizer, made on the spot; nothing is downloaded."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# With pytest-xdist, the main process reads this file, too, but runs no test: what takes seconds to
# import is imported where it is used.
if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from toedit_collate import Prior

# In CI the same examples each time: a failure there must be one that can be had again.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

TEXT = (
    "the quick brown fox jumps over the lazy dog while a slow green turtle walks under the old "
    "stone bridge and the river runs past the mill to the sea where ships wait for the wind 0123456"
)
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VOCAB_SIZE = 320


def make_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|bos|>", "<|eos|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 8,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([TEXT, "user assistant system\n"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_llama(seed: int = 0, *, sharpness: float = 6.0, **config) -> LlamaForCausalLM:
    """A random Llama. `sharpness` scales its logits, so that some tokens are near certain."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCAB_SIZE,  # padded: the tokenizer has fewer tokens
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **config}))
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpness)
    return model.eval()


def likely_ids(model, B: int, T: int, seed: int = 0, *, low: int = 5) -> torch.Tensor:
    """Token ids of which many are near certain to `model`: half of them are its own choice."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(low, VOCAB_SIZE - 8, (B, T), generator=generator)
    with torch.no_grad():
        for t in range(1, T):
            logits = model(input_ids=ids[:, :t], use_cache=False).logits[:, -1]
            logits[:, :low] = -torch.inf
            logits[:, VOCAB_SIZE - 8 :] = -torch.inf
            own = torch.rand(B, generator=generator) < 0.5
            ids[:, t] = torch.where(own, logits.argmax(-1), ids[:, t])
    return ids


def pytest_configure(config):
    """pytest-xdist keeps the order of files: the doctests, which are short, come last.

    By default, files of few tests come last. Some of them take half a minute, while the other
    workers have nothing to do.
    """
    config.option.loadscopereorder = False


def pytest_collection_finish():
    """Each run of a Trainer collects garbage; most of its time went into what was imported."""
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="session")
def prior() -> Prior:
    """A separate prior without a tokenizer."""
    from toedit_collate import Prior

    return Prior(make_llama())


@pytest.fixture(autouse=True, scope="session")
def no_fsync():
    """Tests write thousands of small files, and none of them is about a loss of power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture
def end_workers():
    """End persistent workers: the garbage collector waits five seconds for each of them."""
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

    yield
    for one in gc.get_objects():
        if type(one) is _MultiProcessingDataLoaderIter:
            one._shutdown_workers()


@pytest.fixture
def no_bars():
    """No progress bars of datasets among what a command prints."""
    import datasets

    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
