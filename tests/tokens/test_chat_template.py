"""What a chat template writes is found in the tokens, and nothing else."""

import datetime
import functools
import itertools
import json
import re

import pytest
import torch
from chat_templates import SPECIAL, STYLES
from conftest import make_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from toedit_collate.tokens.chat_template import ChatPatterns, special_token_ids
from toedit_collate.tokens.documents import find_documents
from toedit_collate.tokens.protection import Protection

# Among them texts that begin and end as templates do, so that tokens reach over the border.
_TEXTS = (
    "the quick brown fox",
    "under\nthe old mill.",
    "  past the sea",
    "12 ships wait",
    "for the wind:",
    "where (slow) turtles walk\n",
)
_CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "find_ship", "arguments": {"harbour": "the sea"}},
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "find_ship",
        "description": "the ship in a harbour",
        "parameters": {"type": "object", "properties": {"harbour": {"type": "string"}}},
    },
}


@functools.cache
def byte_level(style):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = STYLES[style]
    return tokenizer


@functools.cache
def sentencepiece(style):
    """Blanks as letters of words, one before each text, and bytes for what it does not know."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    raw.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False,
        initial_alphabet=[chr(i) for i in range(33, 127)],
    )  # fmt: skip
    raw.train_from_iterator([*_TEXTS, "user assistant system tool Instruction Response"], trainer)
    raw.add_tokens([f"<0x{i:02X}>" for i in range(256)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=SPECIAL,
    )  # fmt: skip
    tokenizer.chat_template = STYLES[style]
    return tokenizer


def conversations():
    texts = itertools.cycle(_TEXTS)

    def talk(*roles):
        return [{"role": role, "content": next(texts)} for role in roles]

    yield talk("user", "assistant", "user", "assistant"), {}
    yield talk("system", "user", "assistant", "user", "assistant"), {}
    for role in ("tool", "function", "ipython", "developer", "wizard"):
        yield talk("user", "assistant", role, "assistant"), {}
        yield talk(role, "user", "assistant"), {}
    (question, answer), results = talk("user", "assistant"), talk("tool", "tool")
    for result in results:
        result.update(name="find_ship", tool_call_id="abcdefghi")
    for number, extra in ((1, {}), (2, {"content": next(texts)})):
        asking = {"role": "assistant", "tool_calls": [_CALL] * number, **extra}
        yield [question, asking, *results[:number], answer], {}
    yield talk("user", "assistant"), {"tools": [_TOOL]}
    yield talk("system", "user", "assistant"), {"tools": [_TOOL]}
    yield talk("user", "assistant"), {"documents": [{"text": "a green turtle", "doc_id": "1"}]}
    thoughts = talk("user", "assistant")
    thoughts[1].update(reasoning_content="while ships wait", thinking="while ships wait")
    yield thoughts + talk("user", "assistant"), {}
    for options in ({"enable_thinking": False}, {"thinking": True}, {"date_string": "2 May 1999"}):
        yield talk("user"), {"add_generation_prompt": True, **options}
    yield talk("user", "assistant"), {"effort": "low tide"}


def strings(value):
    if isinstance(value, str):
        yield value
    for one in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from strings(one)


def texts(messages, options):
    """All that a conversation and its options say, and not the template."""
    texts = [v for m in messages for name, v in m.items() if name not in ("role", "tool_calls")]
    calls = [m.get("tool_calls", []) for m in messages]
    data = [calls, json.dumps(_TOOL), options.get("documents", [])]
    found = [*strings(texts), *strings(data), options.get("effort", "")]
    of_schema = {"", "function", "object", "string"}
    return {*found, *(text.strip() for text in found), "harbour"} - of_schema


def expected(text, offsets, texts):
    """Which tokens have a character that no message has; None where that is a matter of taste."""
    free = [True] * len(text)
    for one in sorted(texts, key=len, reverse=True):
        for match in re.finditer(re.escape(one), text):
            free[match.start() : match.end()] = [False] * len(one)
    schema = text.find(json.dumps(_TOOL))
    found = []
    for begin, end in offsets:
        solid = [free[k] for k in range(begin, end) if text[k] != " "] or free[begin:end]
        in_schema = 0 <= schema <= begin < schema + len(json.dumps(_TOOL))
        if in_schema or ('"' in text and re.fullmatch(r"[\s\"{}\[\]:,]*", text[begin:end])):
            found.append(None)
        elif any(free[begin:end]) and not any(solid):
            found.append(None)  # a blank of the template's that a word has taken in
        else:
            found.append(any(solid))
    return found


def protected(tokenizer, ids):
    documents = find_documents(torch.tensor([ids]), None, None)
    return Protection.of(tokenizer).mask(torch.tensor(ids), documents).tolist()


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@pytest.mark.parametrize("style", STYLES)
def test_what_a_template_writes_is_protected_and_nothing_else(style, make):
    tokenizer, tried = make(style), 0
    for messages, options in conversations():
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except Exception:
            continue
        tried += 1
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        right = expected(text, offsets, texts(messages, options))
        for (begin, end), is_written, found in zip(
            offsets, right, protected(tokenizer, ids), strict=True
        ):
            if is_written is not None and begin < end and '"' not in text[begin:end]:
                assert found == is_written, (text[max(0, begin - 20) : end + 9], text[begin:end])
    assert tried > 4


def test_any_day_and_any_locale_give_the_same(monkeypatch):
    """Rows of one day, with a tokenizer that is loaded on another, or a date of the user's."""

    class Day(datetime.datetime):
        text = ""

        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2)

        def strftime(self, form):
            return self.text

    monkeypatch.setattr(chat_template_utils, "datetime", Day)
    texts = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "jumps"}]
    for style in ("llama", "granite"):
        found = set()
        for text in ("02 Jan 2026", "31. Dezember 2025", "2\u5e741\u6708"):
            Day.text = text
            tokenizer = make_tokenizer()
            tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
            tokenizer.chat_template = STYLES[style]
            ids = tokenizer.apply_chat_template(texts, return_dict=True)["input_ids"]
            free = [i for i, kept in zip(ids, protected(tokenizer, ids), strict=True) if not kept]
            assert tokenizer.decode(free) == "the foxjumps", text
            found.add(ChatPatterns.of(tokenizer))
        assert len(found) == 1


def test_a_document_that_was_cut_inside_of_a_header():
    """As wrapped packing and truncation cut it: a part of the header is the template's, too."""
    tokenizer = byte_level("hashes")
    text = "### user:\nthe fox\n\n### assistant:\njumps"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = protected(tokenizer, ids)
    header = [place for place, kept in enumerate(whole) if kept]
    assert len(header) > 10
    for cut in header[2:-2]:
        # The first token of a document is never edited.
        assert protected(tokenizer, ids[cut:])[1:] == whole[cut + 1 :], tokenizer.decode(ids[cut:])
        if cut > header[header.index(cut) - 1] + 1:
            continue  # a line feed alone is anybody's
        before = tokenizer.decode(ids[: cut + 1])
        if not before.endswith(("fox\n", "\n\n", "\n#", "\n##")):
            assert protected(tokenizer, ids[: cut + 1]) == whole[: cut + 1], before


def test_documents_of_a_packed_row_are_read_one_by_one():
    tokenizer = byte_level("hashes")
    texts = ("fox\n\n###", " user:\nthe")
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    tokens = torch.tensor([*rows[0], *rows[1]])
    position = torch.cat([torch.arange(len(row)) for row in rows])
    documents = find_documents(tokens.unsqueeze(0), None, position.unsqueeze(0))
    together = Protection.of(tokenizer).mask(tokens, documents).tolist()
    assert together == protected(tokenizer, rows[0]) + protected(tokenizer, rows[1])


def test_a_line_feed_that_a_message_has_taken_in_is_the_templates():
    """The template's and the message's are one token, or three: none may be lost."""
    for make in (byte_level, sentencepiece):
        tokenizer = make("chatml")
        texts = [
            {"role": "user", "content": "\n\nthe fox"},
            {"role": "assistant", "content": "\n"},
        ]
        text = tokenizer.apply_chat_template(texts, tokenize=False)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        feed = text.index("user\n") + 4
        kept = protected(tokenizer, encoded["input_ids"])
        assert all(kept[k] for k, (a, b) in enumerate(encoded["offset_mapping"]) if a <= feed < b)


def test_tags_of_transformers_and_a_date_in_pieces():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}"
        "{%- if m.role == 'assistant' %}<answer>{% generation %}{{ m.content }}</answer>"
        "{%- endgeneration %}{% else %}<ask day='{{ strftime_now('%d') }}' of "
        "{{ strftime_now('%B %Y').split(' ')[0] }}>{{ m.content }}</ask>{% endif %}{% endfor %}"
    )
    found = {
        text.replace("\ue001", "DATE")
        for text in ChatPatterns.of(tokenizer).patterns
        if "13" in text or "DATE" in text.replace("\ue001", "DATE")
    }
    assert any("<ask day='DATE' of DATE>" in text for text in found)
    assert not any("13" in text or "February" in text for text in found)


def test_templates_that_are_none():
    tokenizer = make_tokenizer()
    for template in (
        "{% if %}",
        "{{ raise_exception('never') }}",
        "{{ messages[99].content }}",
        None,
        "",
    ):
        tokenizer.chat_template = template
        assert ChatPatterns.of(tokenizer) == ChatPatterns()


def test_several_templates_of_one_tokenizer():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"default": STYLES["hashes"], "tool_use": STYLES["names"]}
    patterns = set(ChatPatterns.of(tokenizer).patterns)
    for name in ("hashes", "names"):
        assert patterns >= set(ChatPatterns.of(byte_level(name)).patterns)


def test_a_template_that_is_changed_later_is_read_again():
    tokenizer = make_tokenizer()
    before = ChatPatterns.of(tokenizer)
    assert ChatPatterns.of(tokenizer) is before
    tokenizer.chat_template = STYLES["hashes"]
    assert ChatPatterns.of(tokenizer) != before


def test_special_ids_come_from_tokenizer_and_template():
    tokenizer = make_tokenizer()
    assert special_token_ids(None) == set()
    assert special_token_ids(tokenizer) == {0, 1, 2, 3, 4}
    tokenizer.add_tokens(["<think>", "plainword", "  "])
    think, blanks = tokenizer.convert_tokens_to_ids(["<think>", "  "])
    assert think not in special_token_ids(tokenizer)
    tokenizer.chat_template = tokenizer.chat_template + "{{ '<think>'  }}"
    found = special_token_ids(tokenizer)
    assert think in found
    assert tokenizer.convert_tokens_to_ids("plainword") not in found
    assert blanks not in found
