"""Inside a Trainer: batches that edit themselves, and the life of a run around them.

For others: `ToEditCollator`, `ToEditBatch`, `ToEditCallback`, `attach`, `last_checkpoint`,
`self_edit`; `held_out_perplexity`.

Words of this folder:

- *editor*: a `BatchEditor`, with prior, policy, stores and counts, in the one process that has the
  prior. A `ToEditCollator` is its front, which travels to workers and finds it by a key.
- *pending*: a batch that was collated, and neither edited nor left for evaluation yet.
- *origin*: what its collator knows of a batch when it makes it (`Origin`).
- *marked*: a training loader whose collator is for training (`for_training`); then no other loader
  of the Trainer is edited. `attach` and `ToEditCallback` mark it.
- *call site*: the loop, on the call stack, that reads a batch. It decides if no loader is marked.
- *purpose*: training, evaluation or unknown (`Purpose`); decided once for each batch, when it is
  first read.
- *swap*: the prior takes over other weights, which begins a generation. *Refresh*: to do so by
  itself, at every epoch, checkpoint or n steps.
- *attempt*: a run counts how often it was begun or resumed, since a resumed run takes back what
  its journal holds of later steps.
"""
