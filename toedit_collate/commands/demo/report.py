"""The sections of the demo's report."""

from __future__ import annotations

from ...data.demo_text import Corpus
from ...inspection.marking import legend, mark_edits
from ...policy import EditPolicy
from ...prior.prior import Prior
from .measure import Batch, Shares, edit_cost, survey
from .show import find_passage
from .tune import BATCH_SIZE, MAX_HELD_OUT, Run, held_out_perplexity, tune

COMPARED = ("paper", "reference_code")
_ENOUGH = 5  # changed tokens for a ratio to them to mean something


def section(title: str) -> None:
    """Print a heading."""
    print(f"\n{title}\n{'-' * len(title)}", flush=True)


def show_passage(
    prior: Prior, batches: list[Batch], name: str, policy: EditPolicy, *, color: bool
) -> None:
    """Print the passage with the most edits."""
    section(f"2. A training passage, edited with the policy {name}")
    passage = find_passage(prior, batches, policy)
    print(mark_edits(passage, prior.tokenizer, color=color).strip("\n"))
    print(f"\n{legend(color=color)}")
    removed = f", {passage.num_removed} removed" if policy.drop_below is not None else ""
    print(
        f"{sum(passage.selected)} of these {len(passage.before)} tokens are selected, "
        f"{passage.num_changed} changed{removed}: the passage with the most edits, not a typical "
        "one."
    )


def show_shares(prior: Prior, batches: list[Batch], policies: dict[str, EditPolicy]) -> None:
    """Print what each policy selects and changes in the same tokens."""
    section("3. How much each policy edits")
    counted = survey(prior, batches, policies)
    draws = "once" if counted.num_draws == 1 else f"up to {counted.num_draws} times"
    print(
        f"{counted.num_batches} training batches; {' and '.join(COMPARED)} select a token where "
        f"P >= 0.99; each was drawn {draws}."
    )
    drops = any(policy.drop_below is not None for policy in policies.values())
    width = max(16, *(len(name) + 1 for name in policies))
    removed = f"{'removed':>20}" if drops else ""
    print(f"{'':{width}}{'tokens scored':>14}{'selected':>20}{'changed':>20}{removed}")
    for name, shares in counted.shares.items():
        counts = [shares.selected, shares.changed, *([shares.dropped] if drops else [])]
        columns = "".join(f"{_count(count, shares.scored):>20}" for count in counts)
        print(f"{name:{width}}{shares.scored:>14,}{columns}")
    print("selected: resampled. changed: the resample is another token than before.")
    print(_compare(*(counted.shares[name] for name in COMPARED)))


def _compare(paper: Shares, script: Shares) -> str:
    if not script.selected:
        return "No token is that certain to this prior: nothing to edit. Try a stronger one."
    if not script.changed:
        return "No resample was another token: too few were selected to see the presets differ."
    changes = f"reference_code changed {script.changed:,} of them, paper {paper.changed:,}"
    if paper.changed >= _ENOUGH:
        changes += f": {script.changed / paper.changed:.0f} times as many"
    return f"{' and '.join(COMPARED)} select the same tokens; {changes}."


def show_cost(prior: Prior, batches: list[Batch], name: str, policy: EditPolicy) -> None:
    """Print the time of the edit pass as a ratio."""
    section("4. What it costs")
    cost = edit_cost(prior, batches, policy)
    print(
        f"The edit pass takes {cost.ratio:.2f} times as long as the prior's bare forward pass, "
        "without its head"
    )
    print(
        f"({name}; median of {cost.num_pairs} pairs, from {cost.lowest:.2f} to "
        f"{cost.highest:.2f}; the forward pass takes {cost.forward_ms:.0f} ms a batch)."
    )


def show_runs(
    prior: Prior, corpus: Corpus, name: str, policy: EditPolicy, steps: int, seed: int
) -> None:
    """LoRA-tune without and with editing, and print the held-out perplexities."""
    section("5. LoRA on the prior's own weights, without and with editing")
    num_documents = min(len(corpus.held_out), MAX_HELD_OUT)
    print(
        f"{steps} steps of {BATCH_SIZE} documents, the same ones in both runs. "
        f"Perplexity of {num_documents} held-out documents:"
    )
    width = max(26, len(name) + 13)
    before = held_out_perplexity(prior, corpus)
    print(f"  {'before':{width}}{before:9.3f}", flush=True)
    plain = tune(prior, corpus, None, steps=steps, seed=seed)
    print(f"  {'after, without editing':{width}}{plain.perplexity:9.3f}", flush=True)
    edited = tune(prior, corpus, policy, steps=steps, seed=seed)
    print(f"  {f'after, with {name}':{width}}{edited.perplexity:9.3f}")
    print(_verdict(plain, edited))
    stats = edited.stats or {}
    print(
        f"Edited on the way: {stats['scored']:,} tokens scored, "
        f"{_count(int(stats['selected']), int(stats['scored']))} selected, "
        f"{_count(int(stats['changed']), int(stats['scored']))} changed; "
        f"the edit pass took {edited.time_share:.0%} of the step time."
    )


def _verdict(plain: Run, edited: Run) -> str:
    difference = edited.perplexity / plain.perplexity - 1
    if abs(difference) < 5e-4:
        return "Editing moved it by less than 0.05%: few tokens change in so short a run."
    how = "lower (better)" if difference < 0 else "higher (worse)"
    return (
        f"With editing it is {abs(difference):.2%} {how}; one short run says little about editing."
    )


def _count(number: int, of: int) -> str:
    share = number / of if of else 0.0
    digits = 4 if share < 0.001 else 2
    return f"{number:,} ({share:.{digits}%})"
