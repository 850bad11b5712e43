"""Algorithm 1 on one batch: as it is, with a cache of decisions, with a journal.

For others: `edit_tokens` (tensors), `edit_batch` (a `TokenBatch`), `edit_with_journal`.

Words of this folder:

- *editable*: a token to which the policy is applied: not protected, not the first of its document,
  and with the scope "loss" not without a label.
- *decision*: which tokens of a document are selected or removed, and among what they are drawn.
  Everything but the draw; what a cache keeps.
- *source*: a batch before any edit, of this generation or an earlier one.
- *replayed*: a document whose edit of this generation the journal knew, so that no pass was needed.
"""
