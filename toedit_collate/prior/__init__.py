"""The frozen model: what editing asks of it, and how one is loaded, shared, run and swapped.

For others: `protocol` (`EditingPrior`: what every kind of prior can do), `prior` (`Prior`: a model
with the trainee's own ids), `aligned` (`AlignedPrior`: one with another tokenizer), and what runs
need of models in general: `families`, `adapters`, `sharding`, `swap`.

Words of this folder:
    prior: the frozen model that scores tokens and draws others in their place.
    trainee: the model in training; a *shared* prior is the trainee's own frozen base.
    trunk: a model without its vocabulary projection, the *head*.
    pass: one call of the trunk, on some of a batch's documents, padded or packed.
    predictions: what a pass says of some tokens: log P, draws, candidates.
    competitors: the ids that take most of the probability. Summing over these first bounds log P
        from above, so that most tokens need no others: *early reject*.
    fingerprint: tells priors apart that score otherwise.
    swap: to take over the weights of a checkpoint in place, between two generations.
    idle pass: a pass of one row, made only because other ranks need all to take part.
"""
