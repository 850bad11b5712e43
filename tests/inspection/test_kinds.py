"""What kind of text a token is."""

import numpy as np
import pytest
from conftest import make_tokenizer

from toedit_collate.inspection.kinds import KINDS, Reader, find_kinds


def kinds_of(pieces, template=()):
    found = find_kinds(pieces, np.array([i in template for i in range(len(pieces))]))
    return [{KINDS[k] for k in row.nonzero()[0]} for row in found]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["The", " cat", "s", ".", " ", "\n", " 4", "2"],
         ["capitalised words", "word beginnings", "word pieces", "punctuation", "whitespace",
          "whitespace", "digits", "digits"]),
        (["a", "Word"], ["word beginnings", "word pieces"]),
        (["don", "'", "t"], ["word beginnings", "punctuation", "word beginnings"]),
        (["\N{GREEK SMALL LETTER ALPHA}", "", " 3"], ["word beginnings", "word pieces", "digits"]),
    ],
)  # fmt: skip
def test_forms(pieces, expected):
    assert kinds_of(pieces) == [{kind} for kind in expected]


def test_template_goes_before_all():
    assert kinds_of(["<|user|>", "x", "\n"], template={0, 2}) == [
        {"template"}, {"word beginnings"}, {"template"}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pieces", "inside"),
    [
        (["See", "\n", "```", "py", "\n", "x", "\n", "```", "\n", "end"], [2, 3, 4, 5, 6, 7]),
        (["so", " `", "f", "`", " is"], []),
        (["We", " sum", " it", ":", "\n", "two"], []),
        (["Text", "\n\n", "    ", "run", "\n\n", "more"], [2, 3]),
        (["<", "it>", "import", " os"], []),
    ],
)
def test_code(pieces, inside):
    assert [i for i, found in enumerate(kinds_of(pieces)) if "code" in found] == inside


@pytest.mark.parametrize(
    ("pieces", "inside"),
    [
        (["a", " <", "b", ">", " c"], [1, 2, 3]),
        (["##", " Title", "\n", "**", "bold", "**"], [0, 3, 5]),
        (["[", "here", "](", "http://x.org", ")"], [0, 2, 3, 4]),
        (["2", " <", " 3", " and", " 4", " >", " 3"], []),
        (["costs", " $", "5"], []),
        (["\\", "frac", "{", "1"], [0, 1]),
    ],
)
def test_markup(pieces, inside):
    assert [i for i, found in enumerate(kinds_of(pieces)) if "markup" in found] == inside


def test_pieces_are_the_text_and_letters_of_several_tokens_come_whole():
    tokenizer = make_tokenizer()
    reader = Reader(tokenizer)
    for text in ("the quick brown", " 12  x\n\ty", "na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert "".join(reader.pieces(ids)) == tokenizer.decode(ids)
    assert "".join(reader.read(ids)[0]) == text
