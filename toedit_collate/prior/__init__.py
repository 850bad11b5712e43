"""The frozen model: how it is loaded, shared, run and swapped, and what it predicts.

Start with `base` (`BasePrior`: what every prior can do), `prior` (`Prior`: a model with the
trainee's tokenizer) and `aligned` (`AlignedPrior`: a model with another tokenizer).

Words:
    prior: the frozen model that scores tokens and draws others in their place.
    trainee: the model in training; a *shared* prior is the trainee's own frozen base.
    trunk: a model without its vocabulary projection, the *head*.
    pass: one call of the trunk, on some of a batch's documents, padded or packed.
    predictions: what a pass says about some tokens: log P, draws, candidates.
    fingerprint: a hash that differs between priors whose scores differ.
    swap: take over the weights of a checkpoint in place, between two generations.
    idle pass: a pass of one row, made only because other ranks need all ranks to take part.
"""
