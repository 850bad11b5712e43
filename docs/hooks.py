"""For mkdocs: README.md is the first page here, too, with its links turned."""

from __future__ import annotations

import pathlib
import re
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]


def on_page_markdown(markdown: str, *, page: Any, **kwargs: Any) -> str:
    """README.md in place of index.md."""
    if page.file.src_path != "index.md":
        return markdown
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\[([^\]]*)\]\((?:CONTRIBUTING.md|CITATION.cff)\)", r"\1", text)
