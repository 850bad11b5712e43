"""The sections of the demo's report."""

from __future__ import annotations

from ...policy import EditPolicy
from ...prior.prior import Prior
from ...tools.demo_model.topics import Corpus
from ...tools.marking import legend, mark_edits
from .measure import Batch, Shares, edit_cost, survey
from .show import find_passage
from .tune import BATCH_SIZE, MAX_HELD_OUT, Run, held_out_perplexity, tune

_ENOUGH = 5  # changed tokens for a ratio to them to mean something


def section(title: str) -> None:
    """Print a heading."""
    print(f"\n{title}\n{'-' * len(title)}", flush=True)


def show_passage(prior: Prior, batches: list[Batch], policy: EditPolicy, *, color: bool) -> None:
    """Print the passage with the most edits."""
    section("2. A training passage, edited with EditPolicy.reference_code()")
    passage = find_passage(prior, batches, policy)
    print(mark_edits(passage, prior.tokenizer, color=color).strip("\n"))
    print(f"\n{legend(color=color)}")
    print(
        f"{sum(passage.selected)} of these {len(passage.before)} tokens are selected, "
        f"{passage.num_changed} changed: the passage with the most changes, not a typical one."
    )


def show_shares(prior: Prior, batches: list[Batch], policies: dict[str, EditPolicy]) -> None:
    """Print what each policy selects and changes in the same tokens."""
    section("3. How much each preset edits")
    counted = survey(prior, batches, policies)
    draws = "once" if counted.num_draws == 1 else f"up to {counted.num_draws} times"
    print(
        f"{counted.num_batches} training batches; a token is selected where P >= 0.99, and was "
        f"drawn {draws}."
    )
    print(f"{'':16}{'tokens scored':>14}{'selected':>20}{'changed':>20}")
    for name, shares in counted.shares.items():
        print(
            f"{name:16}{shares.scored:>14,}{_count(shares.selected, shares.scored):>20}"
            f"{_count(shares.changed, shares.scored):>20}"
        )
    print("selected: resampled. changed: the resample is another token than before.")
    print(_compare(counted.shares["paper"], counted.shares["reference_code"]))


def _compare(paper: Shares, script: Shares) -> str:
    if not script.selected:
        return "No token is that certain to this prior: nothing to edit. Try a stronger one."
    if not script.changed:
        return "No resample was another token: too few were selected to see the presets differ."
    changes = f"reference_code changed {script.changed:,} of them, paper {paper.changed:,}"
    if paper.changed >= _ENOUGH:
        changes += f": {script.changed / paper.changed:.0f} times as many"
    return f"The two select the same tokens; {changes}."


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
    print(f"  before                    {held_out_perplexity(prior, corpus):9.3f}", flush=True)
    plain = tune(prior, corpus, None, steps=steps, seed=seed)
    print(f"  after, without editing    {plain.perplexity:9.3f}", flush=True)
    edited = tune(prior, corpus, policy, steps=steps, seed=seed)
    print(f"  after, with {name:14}{edited.perplexity:9.3f}")
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
