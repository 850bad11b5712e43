"""The part `journal`: what it takes to keep what was changed, in bytes and look-ups."""

from __future__ import annotations

import dataclasses

from ..measuring.journal import BATCH_SIZE, LENGTHS, SHARE, measure_size
from .table import Column, Row, Section

_NUM_TOKENS = 2_000_000


def measure_journal() -> Section:
    """Write synthetic journals; no prior has a part in it."""
    section = Section(
        "journal",
        f"A journal of synthetic documents, of which {SHARE:.1%} of the tokens change",
        [
            Column("bytes a document", "{bytes_per_document:.1f}"),
            Column("MB for 10^9 tokens", "{megabytes_per_billion:.1f}"),
            Column("look-ups a second", "{lookups_per_second:,.0f}"),
        ],
        notes=[
            f"Look-ups in batches of {BATCH_SIZE} documents, half of them known. `toedit journal "
            "bench --prior --data` measures its share of the edit pass."
        ],
    )
    for length in LENGTHS:
        figures = dataclasses.asdict(measure_size(_NUM_TOKENS, length))
        section.rows.append(Row(f"documents of {length:,} tokens", figures))
    return section
