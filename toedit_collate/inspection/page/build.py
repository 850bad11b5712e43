"""The page as one string of HTML."""

from __future__ import annotations

import html
import json
from importlib.resources import files

from ..inspection import Inspection
from .data import pack


def as_page(seen: Inspection) -> str:
    """An inspection as a self-contained page of HTML.

    Args:
        seen: of how many documents does not matter to the browser: it makes a few at a time.
    """
    # "<" would end the script element where a document has "</script>".
    data = json.dumps(pack(seen), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    data = data.replace("<", "\\u003c")
    page = _part("page.html")
    for name, value in (
        ("TITLE", html.escape(f"toedit inspect: {seen.data}")),
        ("STYLE", _part("style.css")),
        ("SCRIPT", _part("script.js")),
        ("DATA", data),  # last: documents may have any text
    ):
        page = page.replace(f"<!--{name}-->", value, 1)
    return page


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
