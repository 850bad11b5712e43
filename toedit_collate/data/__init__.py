"""Reads and writes the data of users: sources, their rows, and the documents in these."""

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
