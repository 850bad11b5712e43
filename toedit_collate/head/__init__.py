"""What hidden states alone decide: log P, candidates and draws. It knows no model and no batch.

For others: `projection` (`Head`), `logprob`, `candidates`, and `kernels` for GPUs.

Words of this folder:
    head: the vocabulary projection, from hidden states to logits.
    observed: the id that stands in the text, whose log P is asked for.
    tile: as many logits as are held at once; never those of all tokens and all ids.
    block, piece: the logits of one product with the whole head, and a few rows of them.
    chunk: some ids that follow one another, of which the sum or the maximum is computed first.
    cut: the log P under which no decision of a policy turns.
    competitors: the ids that are summed over first.
    open: a token whose bound, from the ids so far, does not lie under the cut yet.
    forbidden: ids that must not be drawn: special ones, and padding of the vocabulary.
    candidates: the ids among which a token is resampled.
"""
