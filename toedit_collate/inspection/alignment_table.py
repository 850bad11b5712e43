"""How a prior with another tokenizer scores data: the table of the terminal and of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .inspection import Inspection
from .tally import KindTally

TITLE = "how a prior with another tokenizer scores these tokens"


def alignment_rows(seen: Inspection) -> list[list[str]]:
    """Head, a row for each way in which tokens are scored, and all of them together.

    Of each way: its tokens, their share, and for each policy the shares that it selects and
    changes. Where the prior's own tokens were edited beside them, they are the last row.
    """
    tallies = seen.alignment
    one = next(iter(tallies.values()))
    columns = [cell for name in tallies for cell in (f"{name}: selected", "changed")]
    rows = [["", "tokens", "", *columns]]
    for way in (*one.names, None):
        tokens = one.of(way, "tokens")
        share = percent(tokens / max(1, one.of(None, "tokens")))
        rows.append([way or "all", f"{tokens:,}", share, *_shares(tallies.values(), way)])
    if seen.own is not None:
        tallies = seen.own.tallies
        tokens = next(iter(tallies.values())).of(None, "tokens")
        rows.append(["the prior's own tokens", f"{tokens:,}", "", *_shares(tallies.values(), None)])
    return rows


def percent(share: float) -> str:
    """A share in words; "-" for NaN, a share of nothing.

    Example:
        >>> percent(0.01234), percent(math.nan)
        ('1.23 %', '-')
    """
    return "-" if math.isnan(share) else f"{100 * share:.3g} %"


def _shares(tallies: Iterable[KindTally], kind: str | None) -> list[str]:
    """For each policy, what it selects and changes of a kind of token."""
    columns = ("selected", "changed")
    return [percent(tally.share(kind, column)) for tally in tallies for column in columns]
