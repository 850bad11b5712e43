"""Inside a Trainer: batches that edit themselves, and the life of a run around them.

For others: `ToEditCollator`, `ToEditBatch`, `ToEditCallback`, `attach`, `last_checkpoint`,
`self_edit`; `read_layout` (what a collated batch says of its documents) and `held_out_perplexity`.

Words of this folder:

- *editor*: a `BatchEditor`, with prior, policy, stores and counts, in the one process that has the
  prior. A `ToEditCollator` is its front, which travels to workers and finds it by a key.
- *pending*: a batch that was collated, and neither edited nor left for evaluation yet.
- *origin*: what its collator knows of a batch when it makes it (`Origin`).
- *known*: a training loader that has a collator of its own (`for_training`); then no other loader
  of the Trainer is edited. `attach` and `ToEditCallback` make it known.
- *surroundings*: the loop, on the call stack, that reads a batch. They decide where no loader is
  known.
- *layout*: which tokens are padding, where documents begin, which have labels (`BatchLayout`).
- *swap*: the prior takes over other weights, which begins a generation. *Refresh*: to do so by
  itself, at every epoch, checkpoint or n steps.
- *attempt*: a run counts how often it was begun or resumed, since a resumed run takes back what
  its journal holds of later steps.
"""
