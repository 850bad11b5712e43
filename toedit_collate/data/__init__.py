"""The data files of users: read by every command and recipe, and written by some.

Source: what a user names: a file, a folder of `save_to_disk`, or `hub/id:config:split`.
Row: one line of it, a dict of columns. Batch: some rows as they were read, with their names for
messages. Example: the token ids and labels of one document, cut in windows where that is asked.
Documents: those of a batch of rows as training saw them, by `seq_lengths`, `position_ids` and
`attention_mask`. Reviser: brings rows to their state after an edit. Columns with a value for each
token follow the tokens.
"""

from .documents import Documents, Example, examples, find_documents, labels_of
from .reading import Batch, Data, Row, load_rows, open_data, parse_source
from .tokens import COLUMNS, Preparation, encode, format_of, ids_and_labels, tokenize

__all__ = [
    "COLUMNS",
    "Batch",
    "Data",
    "Documents",
    "Example",
    "Preparation",
    "Row",
    "encode",
    "examples",
    "find_documents",
    "format_of",
    "ids_and_labels",
    "labels_of",
    "load_rows",
    "open_data",
    "parse_source",
    "tokenize",
]
