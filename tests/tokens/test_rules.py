"""The rules of `protect`: what they spare in a text, and as tokens of any kind of tokenizer."""

import pytest
import torch
from conftest import make_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from toedit_collate.policy import RULES
from toedit_collate.tokens.documents import find_documents
from toedit_collate.tokens.protection import rule_mask
from toedit_collate.tokens.rules import BORDER, FINDERS, find_spans
from toedit_collate.tokens.spelling import Spelling, text_of

PROSE = "Yesterday Ann saw Dr. Bob Li in New York. The dog, I think, paid $5 and $6.50."
CODE = "Run this:\n\n    def f():\n\n        return 1\n\nThen\n```py\nx = 2\n```\nor\n~~~\nopen"
MATHS = r"So $x^2$, \(a_1\), $$b\n= c$$ and \frac{1}{\sqrt{2}}; \begin{cases}d\end{cases} in C:\U"
LINKS = "See https://a.org/b?c=(1)d. Or www.d.net, or write to e.f@g.com!"


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("names", PROSE, ["Ann", "Bob", "Dr", "Li", "New", "York"]),
        ("numbers", PROSE, ["5", "6.50"]),
        (
            "numbers",
            "-3 % of 1,024 at 2e-5, 12:30, 0x1F, x86, 50%",
            ["-3", "1,024", "2e-5", "12:30", "0x1F", "86", "50%"],
        ),
        ("code", CODE, ["    def f():\n\n        return 1\n\n", "```py\nx = 2\n```", "~~~\nopen"]),
        (
            "latex",
            MATHS,
            [
                r"$x^2$",
                r"\(a_1\)",
                r"$$b\n= c$$",
                r"\frac{1}{\sqrt{2}}",
                r"\begin{cases}d\end{cases}",
            ],
        ),
        ("urls", LINKS, ["https://a.org/b?c=(1)d", "www.d.net", "e.f@g.com"]),
        ("regex:[A-Z]{2,}", "an IBM and a DEC", ["IBM", "DEC"]),
        ("code", f"a{BORDER}    b = 1{BORDER}c", ["    b = 1"]),
        ("code", f"```\nopen{BORDER}assistant\nclosed", ["```\nopen"]),
        ("names", f"the{BORDER}Hello there", []),
        ("names", "we went.\nThen we came. “Oh,” he said.", []),
    ],
)
def test_what_a_rule_spares(rule, text, expected):
    found = [text[begin:end] for begin, end in sorted(find_spans(rule, text))]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("x = 1_000_000;", "1_000_000"),
        ("CHF 1'000'000 or", "1'000'000"),
        ("CHF 1\u2019000 or", "1\u2019000"),
        ("1\u202f234,5 km", "1\u202f234,5"),
        ("10\u207b\u2075 m", "10\u207b\u2075"),
        ("H\u2082O", "\u2082"),
        ("x\u00b2 + y", "\u00b2"),
        ("\u0663\u066b\u0661\u0664 and", "\u0663\u066b\u0661\u0664"),
        ("\uff11\uff0c\uff12 and", "\uff11\uff0c\uff12"),
        ("\u0967\u0968", "\u0967\u0968"),
        ("f(0b1011_0001)", "0b1011_0001"),
        ("0o755 and", "0o755"),
        ("0xFF_FF;", "0xFF_FF"),
        ("a \u00bd cup", "\u00bd"),
        ("1\u00bd cups", "1\u00bd"),
        ("1/2 or", "1/2"),
        ("item \u2460", "\u2460"),
        ("5\u2030 of", "5\u2030"),
        ("2e\u22125 m", "2e\u22125"),
    ],
)
def test_numbers_are_spared_as_a_whole(text, number):
    assert [text[begin:end] for begin, end in find_spans("numbers", text)] == [number]


LINE_ENDS = ["\n", "\r\n", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"]


@pytest.mark.parametrize("end", LINE_ENDS)
@pytest.mark.parametrize(
    ("rule", "lines", "spared"),
    [
        ("code", ["a", "```py", "x = 2", "```", "b"], ["```py", "x = 2", "```"]),
        ("code", ["a", "", "    x = 2", "", "b"], ["    x = 2"]),
        ("names", ["we came", "Then Ann"], ["Ann"]),
        ("latex", ["a $b", "c$ and $d$"], ["$d$"]),
        ("latex", ["$$a", "b$$ c"], ["$$a", "b$$"]),
        ("urls", ["see www.a.org", "www.b.org."], ["www.a.org", "www.b.org"]),
        ("numbers", ["1", "2"], ["1", "2"]),
    ],
)
def test_any_line_end_is_one(rule, lines, spared, end):
    text = end.join(lines)
    found = "".join(text[a:b] + " " for a, b in find_spans(rule, text))
    assert found.split() == " ".join(spared).split()


@pytest.mark.parametrize(
    ("text", "spared"),
    [
        (r"An open \[ here. Then \[x\] and the rest.", [r"\[x\]"]),
        (r"An open \( here. Then \(x\) and the rest.", [r"\(x\)"]),
        (
            r"\begin{a} open. Then \begin{a}x\end{a}, the rest.",
            [r"\begin{a}", r"\begin{a}x\end{a}"],
        ),
        (r"\begin{a}\begin{a}x\end{a}y\end{a} z", [r"\begin{a}\begin{a}x\end{a}y\end{a}"]),
        ("Open $$ here.\n\nThen $$x$$ and the rest.", ["$$x$$"]),
        (r"An open \frac{1 and the rest.", []),
        (f"An open \\[ here.{BORDER}And \\] here.", []),
    ],
)
def test_an_open_bracket_spares_nothing_else(text, spared):
    assert [text[begin:end] for begin, end in find_spans("latex", text)] == spared


@pytest.mark.parametrize(
    ("rule", "piece", "num_spans"),
    [
        ("urls", "1.1.", 0),
        ("urls", "ab-cd.", 0),
        ("urls", "a@b", 0),
        ("urls", "www.", 1),
        ("latex", "a & b \\\\[2pt]\n", 0),
        ("latex", r"\[a ", 0),
        ("latex", r"\( \begin{a} ", 100_000),
        ("latex", r"\a{", 0),
        ("latex", "$a ", 0),
        ("latex", "$$a\n\n", 0),
        ("names", "a    ", 0),
        ("numbers", "1.", 1),
        ("numbers", "1a", 100_000),
        ("code", "`", 1),
        ("code", "\n    ", 0),
        ("code", "a ```\n", 0),
    ],
)
def test_long_texts(rule, piece, num_spans):
    """Each would take minutes if the time grew with the square of the length."""
    assert sum(1 for _ in find_spans(rule, piece * 100_000)) == num_spans


def test_every_rule_has_a_finder():
    assert sorted(FINDERS) == sorted(RULES)


def metaspace_tokenizer():
    """As SentencePiece's: blanks as a low bar, and bytes of characters that have no token."""
    pieces = ["▁the", "▁Ann", "▁", "Ann", "4", "2", "é", "▁saw", ".", "a", "n"]
    vocab = {"<unk>": 0, "<s>": 1}
    vocab |= {f"<0x{byte:02X}>": 2 + byte for byte in range(256)}
    vocab |= {piece: 258 + i for i, piece in enumerate(pieces)}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", unk_token="<unk>")


TOKENIZERS = {"bytes": make_tokenizer(), "pieces": metaspace_tokenizer()}


def masked(rules, text, kind="bytes"):
    """The text of the tokens that the rules spare."""
    tokenizer = TOKENIZERS[kind]
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    mask = rule_mask(rules, ids[0], find_documents(ids, None, None), tokenizer)
    spelled = Spelling.of(tokenizer).of_tokens(ids[0].tolist(), tokenizer)
    return b"".join(one for one, spared in zip(spelled, mask, strict=True) if spared).decode()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_with_a_part_in_it_are_spared(kind):
    assert masked("numbers", "the 42 saw 4.2", kind).replace(" ", "") == "424.2"
    assert masked("numbers", "a n", kind) == ""


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", ["日本 42 語", "é42é", "🙂 4 🙂🙂 2", "42"])
def test_characters_of_several_bytes_move_nothing(kind, text):
    assert masked("numbers", text, kind).replace(" ", "") == "".join(
        c for c in text if c.isdecimal()
    )
    assert masked("regex:[^0-9 ]", text, kind).replace(" ", "") == "".join(
        c for c in text if not c.isdecimal() and c != " "
    )


@given(st.text(max_size=30), st.sampled_from(sorted(TOKENIZERS)))
def test_tokens_spell_the_text(text, kind):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    spelled = Spelling.of(tokenizer).of_tokens(ids, tokenizer)
    expected = {"bytes": text, "pieces": " " + text if text else ""}[kind]
    assert b"".join(spelled).decode("utf-8", "surrogateescape") == expected.replace("▁", " ")


@given(st.lists(st.binary(max_size=4), max_size=12), st.integers(0, 40), st.integers(0, 8))
def test_offsets_are_those_of_the_characters(spelled, start, length):
    """Against the obvious: one character at a time, each with the tokens its bytes lie in."""
    text, begin, end = text_of(spelled)
    owner = [token for token, one in enumerate(spelled) for _ in one]
    place, owners = 0, []
    for character in text:
        width = len(character.encode("utf-8", "surrogateescape"))
        owners.append(set(owner[place : place + width]))
        place += width
    for token in range(len(spelled)):
        mine = [i for i, tokens in enumerate(owners) if token in tokens]
        assert mine == list(range(int(begin[token]), int(end[token])))


def test_documents_do_not_see_each_other():
    tokenizer = TOKENIZERS["bytes"]
    first, second = (tokenizer(t)["input_ids"] for t in ("```\nthe", "fox 7"))
    ids = torch.tensor([first + second])
    positions = torch.tensor([[*range(len(first)), *range(len(second))]])
    mask = rule_mask("code", ids[0], find_documents(ids, None, positions), tokenizer)
    assert mask.tolist() == [True] * len(first) + [False] * len(second)


def test_a_message_does_not_go_on_in_the_next():
    tokenizer = TOKENIZERS["bytes"]
    messages = [{"role": "user", "content": "```\nx"}, {"role": "assistant", "content": "the fox"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert masked("code", text) == "```\nx"


def test_says_that_it_needs_a_tokenizer():
    ids = torch.tensor([[5, 6]])
    with pytest.raises(ValueError, match=r"protect='numbers'.*no tokenizer is known; give one"):
        rule_mask("numbers", ids[0], find_documents(ids, None, None), None)
