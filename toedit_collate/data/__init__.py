"""Reads and writes the data of users.

Words:
    source: what a user names: a file, a folder, or `hub/id:config:split`.
    row: a dict of columns; batch: some rows, with their names for messages.
    example: the token ids and labels of one document, or of one window of a long document.
    documents: those of a batch of rows, as training sees them.
"""

from .documents import Documents, Example, by_length, examples, find_documents, labels_of
from .parsing import Row, check_text
from .reading import Batch, Data, load_rows, open_data, parse_source
from .tokens import Preparation, encode, format_of, tokenize

__all__ = [
    "Batch",
    "Data",
    "Documents",
    "Example",
    "Preparation",
    "Row",
    "by_length",
    "check_text",
    "encode",
    "examples",
    "find_documents",
    "format_of",
    "labels_of",
    "load_rows",
    "open_data",
    "parse_source",
    "tokenize",
]
