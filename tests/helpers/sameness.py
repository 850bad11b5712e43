"""Compares an edit with the slow reference's."""

import reference
import torch

from toedit_collate import edit_tokens


def assert_same_edit(prior, policy, input_ids, *, protected=None, **arguments):
    """Compare with the reference, dropped tokens and all; returns the result, for further looks.

    Args:
        prior: with a model on the CPU.
        policy: of the edit.
        input_ids: (B, T) int64.
        protected: (B, T) bool, what the policy's `protect` should spare.
        arguments: of `edit_tokens`.
    """
    result = edit_tokens(prior, input_ids, policy=policy, **arguments)
    for name in ("return_logprob", "cache", "num_sampled"):
        arguments.pop(name, None)
    forbidden = {i for i in prior.special_ids if policy.protect_special}
    if prior.tokenizer is not None:
        forbidden |= set(range(len(prior.tokenizer), prior.vocab_size))
    special = torch.isin(input_ids, torch.tensor(sorted(prior.special_ids)))
    spared = torch.zeros_like(special) if protected is None else protected
    if policy.protect_special:
        spared = spared | special
    ids, selected, changed, dropped = reference.edit(
        prior.model, input_ids, policy, forbidden=sorted(forbidden), protected=spared, **arguments
    )
    assert torch.equal(result.selected, selected)
    assert torch.equal(result.dropped, dropped)
    assert torch.equal(result.changed, changed)
    mask = arguments.get("attention_mask")
    none = torch.zeros_like(dropped)
    expected = {
        "tokens": reference.rows_left(ids, dropped, mask),
        "input_ids": reference.rows_left(
            {"labels": input_ids}.get(policy.target, ids), dropped, mask
        ),
    }
    if arguments.get("labels") is not None:
        labels = reference.labels_after(arguments["labels"], ids, changed, policy.target)
        expected["labels"] = reference.rows_left(labels, dropped, mask)
    if result.source is None:
        left, left_mask = none, mask
    else:
        left, left_mask = none[:, : result.source.shape[1]], result.source >= 0
    for name, rows in expected.items():
        assert reference.rows_left(getattr(result, name), left, left_mask) == rows, name
    return result
