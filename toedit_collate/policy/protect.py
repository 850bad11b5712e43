"""The rules of `EditPolicy.protect`, which name kinds of text that are never edited."""

from __future__ import annotations

import re

RULES = ("code", "latex", "names", "numbers", "urls")  # their expressions are in tokens/rules.py
REGEX = "regex:"
# A comma separates two rules only if a rule follows: an expression may contain commas.
_SEPARATOR = re.compile(rf",(?=\s*(?:{'|'.join(RULES)})\s*(?:,|$)|\s*{REGEX})")


def parse_rules(text: str) -> tuple[str, ...]:
    r"""The rules in a string, sorted, without repetitions.

    They are names of `RULES` and `regex:EXPRESSION`, separated by commas.

    Raises:
        ValueError: a rule does not exist, or an expression is not valid.

    Example:
        >>> parse_rules(r"numbers, code,regex:[A-Z]{2,5}-\d+")
        ('code', 'numbers', 'regex:[A-Z]{2,5}-\\d+')
    """
    rules = set()
    for part in _SEPARATOR.split(text):
        if part.lstrip().startswith(REGEX):
            rules.add(_checked_expression(part.lstrip()))
        else:
            rules.update(word.strip() for word in part.split(","))
    for rule in rules:
        if rule not in RULES and not rule.startswith(REGEX):
            raise ValueError(
                f"protect has no rule {rule!r}, in {text!r}; the rules are {', '.join(RULES)} and "
                f"{REGEX}EXPRESSION, separated by commas"
            )
    return tuple(sorted(rules))


def _checked_expression(rule: str) -> str:
    try:
        re.compile(rule.removeprefix(REGEX))
    except re.error as error:
        raise ValueError(
            f"protect has {rule!r}, which is not a regular expression of Python's re ({error})"
        ) from None
    return rule
