"""Tensor operations on hidden states: log P, candidates and draws. No model and no batch.

For other folders: `projection` (`Head`), `logprob`, `candidates`, and `kernels` for GPUs.

Words:
    head: the vocabulary projection, from hidden states to logits.
    observed: the id in the text, whose log P is computed.
    tile: the logits that are in memory at once; never those of all tokens and all ids.
    block, piece: the logits of one product with the whole head, and a few rows of them.
    chunk: consecutive ids, whose sum or maximum is computed first.
    cut: the log P below which no decision of a policy changes.
    competitors: the ids that are summed first.
    open: a token whose bound, from the ids so far, is not below the cut yet.
    forbidden: ids that must not be drawn: special ones, and padding of the vocabulary.
    candidates: the ids among which a token is resampled.
"""
