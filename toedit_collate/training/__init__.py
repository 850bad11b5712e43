"""Inside a Trainer: batches that edit themselves, and what happens around them in a run.

Words:

- *editor*: a `BatchEditor`, with prior, policy, stores and counts, in the one process that has the
  prior. A `ToEditCollator` travels to workers, and finds its editor by a key.
- *pending*: a batch that is collated, but not yet edited or found to be for evaluation.
- *marked*: a training loader whose collator has the purpose TRAINING. `attach` and `ToEditCallback`
  mark it, and then no other loader of the Trainer is edited.
- *call site*: the loop on the call stack that reads a batch. It decides if no loader is marked.
- *swap*: the prior takes over other weights, which starts a generation. *Refresh*: swaps at every
  epoch, checkpoint or n steps.
- *attempt*: how often a run was started or resumed. Resuming discards later edits of the journal.
"""
