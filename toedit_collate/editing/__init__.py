"""Algorithm 1 on one batch: alone, with a cache of decisions, with a journal.

Words:
    editable: a token to which the policy is applied: in its scope, not protected, not the first of
        its document.
    scored: editable, in the result. selected: in the policy's region, so resampled. changed:
        selected, and the resample is another token. dropped: removed by `drop_below`, `drop_above`.
    decision: the prior's result for a document before any draw: selected tokens, candidates.
    replayed: edited from the journal, without the prior.
"""
