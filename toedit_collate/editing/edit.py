"""edit_tokens(): the method on one batch of tensors (arXiv:2412.14689, Algorithm 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..policy import EditPolicy
from ..prior.base import BasePrior
from ..stores.cache import DecisionCache
from ..stores.journal import Journal
from ..tokens.checks import check_documents, check_finite
from ..tokens.draws import Draws
from ..tokens.result import EditResult
from ..tokens.token_batch import TokenBatch, evenly_spread
from ..transfer import send
from .editable import find_editable
from .with_cache import edit_with_cache


@torch.no_grad()
def edit_tokens(
    prior: BasePrior,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    labels: Tensor | None = None,
    policy: EditPolicy | None = None,
    epoch: int = 0,
    generation: int = 0,
    return_logprob: bool = False,
    num_sampled: int = 0,
    cache: DecisionCache | None = None,
) -> EditResult:
    """Resample the tokens that the prior finds too easy: Algorithm 1 and Eq. 2.

    Args:
        prior: scores the original tokens, in one forward pass.
        input_ids: (B, T) int64, on any device.
        attention_mask: (B, T), 0 at padding on either side, and elsewhere 1 or the number of the
            document; or (B, 1, T, T), which pairs of tokens see each other.
        position_ids: (B, T) int64, restarting at 0 at each document of a packed row. Without
            them, a row is one document.
        labels: (B, T) int64, equal to `input_ids` or -100 ("no loss").
        policy: which tokens, and how; default: the paper's.
        epoch: number of the epoch, for `redraw="epoch"`.
        generation: number of the generation.
        return_logprob: also return log P of all tokens, exactly. The edit is the same.
        num_sampled: return log P of so many scored tokens, evenly spread, exactly.
        cache: of decisions; known documents need no forward pass, others are added. The edit is
            the same. It is not used with `return_logprob`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: shapes differ; an epoch or generation is out of range; an id is not in the
            vocabulary; a document is longer than the prior's positions; a label is neither -100 nor
            the token; the prior returned NaN.

    Example:
        >>> from toedit_collate import Prior
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(
        ...     vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        ...     num_attention_heads=2,
        ... )
        >>> prior = Prior(LlamaForCausalLM(config))
        >>> input_ids = torch.tensor([[5, 6, 7, 8]])
        >>> policy = EditPolicy(threshold=1e-6, exclude_original=True)  # all, and to other tokens
        >>> result = edit_tokens(prior, input_ids, policy=policy)
        >>> result.changed
        tensor([[False,  True,  True,  True]])
        >>> torch.equal(result.input_ids != input_ids, result.changed)
        True
    """
    check_types(prior, policy, cache=cache)
    _check_number("epoch", epoch)
    _check_number("generation", generation)
    policy = EditPolicy() if policy is None else policy
    batch = TokenBatch.of(
        input_ids, attention_mask, position_ids, labels, tokenizer=prior.tokenizer
    )
    return edit_batch(
        prior, policy, batch, epoch=epoch, generation=generation, return_logprob=return_logprob,
        num_sampled=num_sampled, cache=cache,
    )  # fmt: skip


@torch.no_grad()
def edit_batch(
    prior: BasePrior,
    policy: EditPolicy,
    batch: TokenBatch,
    *,
    epoch: int,
    generation: int,
    return_logprob: bool = False,
    num_sampled: int = 0,
    cache: DecisionCache | None = None,
) -> EditResult:
    """`edit_tokens` on a batch that is on the host; arguments and errors as there."""
    batch = batch.in_context(policy.context, getattr(prior.tokenizer, "eos_token_id", None))
    check_documents(
        batch.contexts, batch.tokens, vocab_size=prior.vocab_size, max_length=prior.max_length
    )
    check_num_draws(prior, policy)
    draws = Draws(policy.seed, epoch if policy.redraw == "epoch" else None, generation)
    if cache is not None and not return_logprob:
        return prior.run_gathered(
            lambda: edit_with_cache(prior, policy, batch, cache, draws, num_sampled)
        )
    return prior.run_gathered(
        lambda: _algorithm_1(prior, policy, batch, draws, return_logprob, num_sampled)
    )


def _algorithm_1(
    prior: BasePrior,
    policy: EditPolicy,
    batch: TokenBatch,
    draws: Draws,
    return_logprob: bool,
    num_sampled: int,
) -> EditResult:
    """x'_i = x_i where P(x_i | x_<i) < p; x'_i ~ P(. | x_<i) where it is >= p (Eq. 2)."""
    scorable = prior.scorable(batch)
    editable = find_editable(prior, policy, batch) & scorable
    where = (scorable if return_logprob else editable).nonzero().squeeze(-1)

    predictions = prior.predict(batch, where)
    # On the host, while the device predicts.
    uniforms = batch.uniforms(where, draws, policy.num_draws)
    sample = predictions.exact_logprob(evenly_spread(editable[where], num_sampled))
    scores = predictions.score(policy, exact=return_logprob)
    check_finite(scores.is_finite)

    may_be_edited = send(editable[where], predictions.device)
    selected = policy.selects(scores.logprob) & may_be_edited
    dropped = None
    if policy.drops_tokens:
        dropped = policy.drops(scores.logprob) & may_be_edited
        selected &= ~dropped
    new_tokens = predictions.draw(policy, scores, selected, uniforms)
    return batch.result(
        where=where,
        new_tokens=new_tokens,
        selected=selected,
        dropped=dropped,
        scored=editable,
        logprob=scores.logprob if return_logprob else None,
        sample_logprob=sample,
        pad_id=prior.pad_id,
        target=policy.target,
    )


def check_num_draws(prior: BasePrior, policy: EditPolicy) -> None:
    """Raise a ValueError if a policy draws many labels from a prior with another tokenizer."""
    if policy.num_draws > 1 and prior.aligner is not None:
        raise ValueError(
            f"num_draws={policy.num_draws} needs a prior with the trainee's own tokenizer: a token "
            "of another one is drawn piece by piece; use num_draws=1"
        )


def check_types(prior: Any, policy: Any, journal: Any = None, cache: Any = None) -> None:
    """Raise a TypeError for an argument of the wrong type; only the prior is required."""
    is_name = isinstance(prior, str)
    load = f"Prior.from_pretrained({prior!r})" if is_name else "Prior(model, tokenizer)"
    for name, value, kind, expected, example in (
        ("prior", prior, BasePrior, "a Prior", load),
        ("policy", policy, EditPolicy, "an EditPolicy", "EditPolicy(threshold=0.99)"),
        ("journal", journal, Journal, "a Journal", "Journal(path)"),
        ("cache", cache, DecisionCache, "a DecisionCache", "DecisionCache(path)"),
    ):
        if not isinstance(value, kind) and (value is not None or name == "prior"):
            raise TypeError(
                f"{name} must be {expected}, got {type(value).__name__}; write {example}"
            )


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {value!r}; count from 0")
    # Draws use 32 bits for each, and one value for "no epoch".
    if not 0 <= value < 2**32 - 1:
        raise ValueError(f"{name} must lie in [0, 2**32 - 1), got {value!r}; count from 0")
