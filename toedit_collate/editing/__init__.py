"""Algorithm 1 on one batch: as it is, with a cache of decisions, with a journal.

For others: `edit_tokens`, `edit_batch`, `edit_with_cache`, `edit_with_journal`.

Words:
    editable: a token to which the policy is applied: in its scope, not protected, and with tokens
        of its document before it.
    scored: editable, in what came of it. selected: in the policy's region, so resampled. changed:
        selected, and the resample is another token. dropped: removed by `drop_below`.
    decision: what the prior says of a document, before any draw: selected tokens, candidates.
    replayed: brought to the state that a journal has on record, without the prior.
"""
