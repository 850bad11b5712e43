"""The frozen model: how it is loaded, shared, run and swapped, and what it predicts.

Start with `base` (`BasePrior`: what every prior can do), `prior` (`Prior`: a model with the
trainee's tokenizer) and `aligned` (`AlignedPrior`: a model with another tokenizer).

Words:
    prior: the frozen model that scores tokens and draws others in their place.
    trainee: the model in training.
    shared prior: the frozen base of the trainee, below its LoRA adapter.
    head: the vocabulary projection of a model (lm_head).
    trunk: a model without its head.
    pass: one forward pass of the trunk over some documents of a batch.
    predictions: the results of a pass and the head: log P of tokens, draws, candidates.
    fingerprint: a hash of weights and configuration; priors with other scores have another one.
    generation: an edit by a prior that was trained on the previous edit.
    swap: load the weights of a checkpoint into the prior, before the next generation.
    idle pass: a pass of one row whose result is ignored, because all ranks must take part.
"""
