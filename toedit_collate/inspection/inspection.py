"""`Inspection`: findings that show themselves in a terminal, a notebook or a page."""

from __future__ import annotations

import html
from typing import Any

from .advice import Advice, recommend
from .findings import Findings
from .page import as_page
from .records import as_record
from .terminal import as_text


class Inspection(Findings):
    """What policies do to data, or what training did; see `Findings` for its fields."""

    def to_html(self) -> str:
        """A page that needs no network; see `toedit_collate.inspection.page`."""
        return as_page(self)

    def to_dict(self) -> dict[str, Any]:
        """All figures and the edits of the documents, as JSON has them."""
        return as_record(self)

    def recommend(self) -> Advice | None:
        """Which policy to use, if any, and why; None for edits that a training run made."""
        return recommend(self)

    def __str__(self) -> str:
        return as_text(self, color=False)

    def _repr_html_(self) -> str:
        """The page, for notebooks."""
        page = html.escape(self.to_html(), quote=True)
        style = "width:100%;height:48rem;border:0"
        return f'<iframe style="{style}" title="toedit inspect" srcdoc="{page}"></iframe>'
