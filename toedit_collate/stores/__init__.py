"""What is stored about documents, by their content: the journal of edits, the cache of decisions.

A *journal* is data: without it, nobody knows what a run was trained on, so a write error ends the
run. A *cache* only saves time: a write error is a warning, and its folder can be deleted.

Words:

- *segment*: a file of named arrays. It is written whole, checked whole, and never changed.
- *key*: 64 bits of a document's content, by which the document is found.
- *frame*: the edits of one process in one generation, in a segment of a journal.
- *attempt*: a run from its start, or from where it was resumed, to where it was killed.
- *void*: edits of an attempt after the checkpoint from which the next one resumed.
- *decisions*: which tokens of a document are selected or dropped, and the candidates for each
  selected token, before the draws.
- *identity*: what the decisions were made with: the prior, the policy, the vocabulary.
"""
