"""Rules by name that say which tokens are never edited, as a policy's `protect` has them."""

from __future__ import annotations

import difflib
import re

# What each rule spares stands beside its expression, in tokens/rules.py.
RULES = ("code", "latex", "names", "numbers", "urls")
REGEX = "regex:"
# A comma ends a rule only where another begins: an expression may have commas of its own.
_BORDER = re.compile(rf",(?=\s*(?:{'|'.join(RULES)})\s*(?:,|$)|\s*{REGEX})")


def parse_rules(text: str) -> tuple[str, ...]:
    r"""The rules in a string, sorted, each once.

    Args:
        text: names of `RULES` and `regex:EXPRESSION`, combined by commas.

    Raises:
        ValueError: there is no such rule, or an expression can't be read.

    Example:
        >>> parse_rules(r"numbers, code,regex:[A-Z]{2,5}-\d+")
        ('code', 'numbers', 'regex:[A-Z]{2,5}-\\d+')
    """
    rules = set()
    for part in _BORDER.split(text):
        if part.lstrip().startswith(REGEX):
            rules.add(_expression(part.lstrip()))
        else:
            rules.update(_name(word.strip(), text) for word in part.split(","))
    return tuple(sorted(rules))


def _expression(rule: str) -> str:
    if rule == REGEX:
        raise ValueError(f"protect has {rule!r} with no expression; write it behind the colon")
    try:
        re.compile(rule.removeprefix(REGEX))
    except re.error as error:
        raise ValueError(
            f"protect has {rule!r}, which is no regular expression ({error}); behind {REGEX} "
            "write one as Python's re has them"
        ) from None
    return rule


def _name(word: str, text: str) -> str:
    if word in RULES:
        return word
    near = difflib.get_close_matches(word.lower(), RULES, n=1, cutoff=0.5)
    mend = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"protect has no rule {word!r}, in {text!r}; {mend}rules are {', '.join(RULES)} and "
        f"{REGEX}EXPRESSION, combined by commas"
    )
