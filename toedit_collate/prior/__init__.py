"""The frozen model: what editing asks of it, and how it is loaded, shared, run and swapped.

Where to begin: `base` (`BasePrior`: what every kind of prior can do), `prior` (`Prior`: a model
with the trainee's own ids), `aligned` (`AlignedPrior`: a model with another tokenizer). Helpers
for models in general: `families`, `adapters`, `sharding`, `swap`.

Words of this folder:
    prior: the frozen model that scores tokens and draws others in their place.
    trainee: the model in training; a *shared* prior is the trainee's own frozen base.
    trunk: a model without its vocabulary projection, the *head*.
    pass: one call of the trunk, on some of a batch's documents, padded or packed.
    predictions: what a pass says about some tokens: log P, draws, candidates.
    competitors: the ids that take most of the probability. Summing over these first bounds log P
        from above, so that most tokens need no other ids: *early reject*.
    fingerprint: a hash that differs between priors whose scores differ.
    swap: to take over the weights of a checkpoint in place, between two generations.
    idle pass: a pass of one row, made only because other ranks need all ranks to take part.
"""
