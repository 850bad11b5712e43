"""What `toedit apply` prints in the end."""

from __future__ import annotations

import dataclasses

from ...policy import EditPolicy
from ...prior.prior import Prior
from ...stores.cache import DecisionCache
from ...stores.cache.identity import decision_record, list_identities
from .edit import Counts
from .settings import Settings


def print_report(
    settings: Settings, counts: Counts, seconds: float, prior: Prior, cache: DecisionCache | None
) -> None:
    """Print what was done, and how a training run uses it."""
    scored = f"{counts.scored:,} scored, {counts.selected:,} selected"
    print(
        f"{counts.rows:,} rows, {counts.documents:,} documents, {counts.tokens:,} tokens: {scored} "
        f"({_share(counts.selected, counts.scored)})"
    )
    print(
        f"{seconds:,.1f} s, {counts.tokens / max(seconds, 1e-9):,.0f} tokens/s, on {prior.device}"
    )
    if settings.output is not None:
        print(
            f"{settings.output}: the edit of epoch 0: {counts.changed:,} changed "
            f"({_share(counts.changed, counts.scored)}), {counts.dropped:,} removed"
        )
    if cache is not None:
        _print_cache(settings, counts, cache)
    if counts.rows_from_text:
        end = "with" if settings.preparation.add_eos else "without"
        print(
            f"Note: {counts.rows_from_text:,} of the rows held text or chats, tokenized as "
            f"SFTTrainer does, {end} an end token after text. If training sets other fields of "
            "SFTConfig, give them here, too (--max-length, --truncation-mode, ...). If it packs by "
            "wrapped: trainer.train_dataset.save_to_disk(FOLDER), and --data FOLDER."
        )


def _print_cache(settings: Settings, counts: Counts, cache: DecisionCache) -> None:
    known = counts.editable - counts.decided
    print(
        f"{settings.cache}: {cache.num_documents:,} documents in {cache.nbytes:,} bytes; "
        f"{counts.decided:,} new, {known:,} known already" + _bytes_per_token(counts)
    )
    policy = as_python(settings.policy)
    print("\nTo train without the prior:\n")
    print("    from toedit_collate import DecisionCache, EditPolicy, ToEditCollator\n")
    print(f'    policy, cache = {policy}, DecisionCache("{settings.cache}")')
    prior = _prior(settings, cache)
    print(f"    collator = ToEditCollator({prior}, policy, tokenizer=tokenizer, cache=cache)")
    print(f"    # or, with SFTTrainer: attach(trainer, {prior}, policy, cache=cache)")


def _bytes_per_token(counts: Counts) -> str:
    if not counts.decided_tokens:
        return ""
    return f" ({counts.decided_bytes / counts.decided_tokens:.2f} bytes a token)"


def _prior(settings: Settings, cache: DecisionCache) -> str:
    """How to name the prior, which must be said where the cache holds several."""
    assert cache.path is not None
    assert cache.identity is not None
    record = decision_record(settings.policy)
    of_policy = [one for one in list_identities(cache.path) if one.policy == record]
    if len(of_policy) < 2:
        return "cache.prior(policy)"
    return f'cache.prior(policy, "{cache.identity.digest[:12]}")'


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"


def as_python(policy: EditPolicy) -> str:
    """The policy as one writes it; default values are left out."""
    arguments = (
        f"{field.name}={getattr(policy, field.name)!r}"
        for field in dataclasses.fields(policy)
        if getattr(policy, field.name) != field.default
    )
    return f"EditPolicy({', '.join(arguments)})"
