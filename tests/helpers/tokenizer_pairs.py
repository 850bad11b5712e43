"""Tokenizers of several kinds, trained on the spot, and texts that they cut in other places."""

from __future__ import annotations

import functools
import json

from conftest import CHAT_TEMPLATE, TEXT
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CODE = (
    "def f(x):\n    if x > 10:\n        return x * 2\n    return 0  # nothing\n\n\n"
    "class A:\n\tpass\n"
)
TEXTS = {
    "words": TEXT,
    "code": CODE,
    "blanks": "  two\n\n\n   three \t tab   \n",
    "emoji": "fine 😀😃 👩‍👩‍👧 end 🇩🇪",
    "CJK": "你好世界 こんにちは 안녕",
    "combining marks": "e\u0301tude na\u0308ive o\u0302\u0323 प्रार्थना",
    "numbers": "12 + 345 = 357, 2026-11-21 and 1000000",
    "markers as text": "say <|im_start|>user or <s> or </s> or ▁ here",
}
CORPUS = [*TEXTS.values(), CODE * 2, TEXT * 2, "the then there 10 100 1000 12 123 1234"]
SPECIAL = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}


def dressed(raw: Tokenizer, *, chat: bool = True, **special: str) -> PreTrainedTokenizerFast:
    """With special tokens, and a chat template that has two more."""
    special = special or SPECIAL
    markers = ["<|im_start|>", "<|im_end|>"] if chat else []
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, **special, additional_special_tokens=markers
    )
    tokenizer.chat_template = CHAT_TEMPLATE if chat else None
    return tokenizer


def byte_level_raw(vocab_size: int, *, digits: bool = False, corpus=None) -> Tokenizer:
    raw = Tokenizer(models.BPE())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split])
        if digits
        else split
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS if corpus is None else corpus, trainer)
    return raw


def sentencepiece_raw(vocab_size: int, scheme: str) -> Tokenizer:
    """`scheme`: of Metaspace, or "normalizer" for the older way with Prepend and Replace."""
    draft = Tokenizer(models.BPE())
    draft.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, limit_alphabet=60)
    draft.train_from_iterator(CORPUS, trainer)
    trained = json.loads(draft.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [piece for piece in trained["vocab"] if piece not in pieces]
    raw = Tokenizer(
        models.BPE(
            {piece: number for number, piece in enumerate(pieces)},
            [tuple(pair) for pair in trained["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    if scheme == "normalizer":
        raw.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return raw


LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}


@functools.cache
def make(name: str) -> PreTrainedTokenizerFast:
    """One of the tokenizers: byte-level, coarse, digits, swapped, or a SentencePiece."""
    if name == "byte-level":
        return dressed(byte_level_raw(340))
    if name == "coarse":
        return dressed(byte_level_raw(480, corpus=[TEXT, CODE, TEXTS["numbers"], TEXTS["CJK"]]))
    if name == "digits":
        return dressed(byte_level_raw(380, digits=True))
    if name == "swapped":  # the ids of a few tokens are others
        state = json.loads(byte_level_raw(340).to_str())
        vocabulary = state["model"]["vocab"]
        for one, other in (("a", "b"), ("Ġt", "Ġs"), ("1", "2")):
            vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
        return dressed(Tokenizer.from_str(json.dumps(state)))
    scheme = name.removeprefix("sentencepiece-")
    return dressed(sentencepiece_raw(160, scheme), chat=False, **LLAMA)


NAMES = (
    "byte-level", "coarse", "digits", "swapped",
    "sentencepiece-first", "sentencepiece-always", "sentencepiece-never",
    "sentencepiece-normalizer",
)  # fmt: skip
PAIRS = [
    ("byte-level", "coarse"), ("coarse", "byte-level"), ("byte-level", "swapped"),
    ("coarse", "digits"), ("digits", "coarse"), ("byte-level", "sentencepiece-first"),
    ("sentencepiece-first", "byte-level"), ("sentencepiece-normalizer", "digits"),
    ("sentencepiece-always", "sentencepiece-never"), ("coarse", "sentencepiece-normalizer"),
]  # fmt: skip
