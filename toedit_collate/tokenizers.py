"""Whether two tokenizers speak of the same ids."""

from __future__ import annotations

from typing import Any


def check_same_tokenizer(trainee: Any, prior: Any, vocab_size: int) -> None:
    """Raise unless an id means the same token to the trainee and to the prior.

    Tokens that only one of them has are fine (a padding token that was added, say): an id past
    the prior's vocabulary is refused when it occurs in a text.

    Args:
        trainee: tokenizer of the model in training.
        prior: tokenizer of the prior.
        vocab_size: of the prior.

    Raises:
        ValueError: the tokenizers differ; names a token.
    """
    if trainee is prior:
        return
    ours, theirs = trainee.get_vocab(), prior.get_vocab()
    if ours == theirs:
        return
    by_id = {token_id: token for token, token_id in theirs.items()}
    for token, token_id in sorted(ours.items(), key=lambda item: item[1]):
        other = by_id.get(token_id)
        if other is not None and other != token:
            raise ValueError(
                f"tokenizer differs from the prior's: id {token_id} is {token!r} to the trainee "
                f"and {other!r} to the prior; use a prior with the trainee's tokenizer"
            )
    added = len(set(ours) ^ set(theirs))
    if added > max(64, len(theirs) // 100):
        raise ValueError(
            f"tokenizer differs from the prior's: {added} tokens are known to only one of them "
            f"({len(ours)} and {len(theirs)} tokens, prior's vocabulary {vocab_size}); use a prior "
            "with the trainee's tokenizer"
        )
