"""What is kept of documents, by their content: the journal of edits, and the cache of decisions.

Both stand on one floor, `segments`, `index`, `write_behind` and `locks`, and make two promises. A
*journal* is data: losing it loses what a run has trained on, so an error in writing ends the run. A
*cache* saves time: an error in writing is a warning, and its folder may be deleted at any time.

Words:

- *segment*: a file of named arrays, written whole, checked whole, and never changed.
- *key*: 64 bits of a document's content, by which it is found; a document's place in the data, its
  batch and its rank have no part in it.
- *frame*: the edits that one process made in one generation, as a segment of a journal holds them.
- *attempt*: a run from its start, or from where it was resumed, to where it was killed.
- *void*: edits of an attempt behind the checkpoint from which the next one went on.
- *decisions*: which tokens of a document are selected or dropped, and the candidates for each,
  before anything is drawn.
- *identity*: with what decisions were made: the prior, the policy, the vocabulary.
"""
