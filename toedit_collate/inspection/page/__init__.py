"""The page of `toedit inspect --html`: one file with everything in it, which asks no network.

`data.py` packs an inspection as JSON; `page.html`, `style.css` and `script.js` show it. A content
security policy in the page forbids it to load anything.
"""

from .build import as_page

__all__ = ["as_page"]
