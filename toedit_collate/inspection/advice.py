"""Which policy to begin with, said with its reasons: what was measured on the user's own data."""

from __future__ import annotations

import math

from ..policy import EditPolicy
from .inspection import Inspection
from .kinds import KINDS
from .tally import KindTally

# Below this share of changed tokens, a training run can't be told from one without edits: in the
# studies of many epochs (docs/studies.md) 0.2 % made no difference that counts, and 3.8 % one of
# -0.129 +- 0.029 nats.
TOO_FEW = 0.0025
# Above this one, more than every twentieth token is the prior's word: distillation by sampling
# rather than editing. In the same study that served a small model with a larger prior; where the
# prior was the model's own base, 13 % cost 0.10 nats (continual pretraining) and 5 % cost 0.05
# (LoRA SFT).
MANY = 0.05
FOUND = (
    "When it pays, as small studies found (docs/studies.md): with a prior that is larger than the "
    "model in training and knows the text's domain or task, over many epochs, labels drawn afresh "
    "in each of them (region=all top_k=64 target=labels), in pretraining on little text, continual "
    "pretraining and SFT; over one epoch of more text, hardly. Edited inputs cost more than they "
    "gave but in the first. With the model's own base as the prior no policy lowered the loss of "
    "what was learned. Compare with a run that is not edited."
)
# Of a kind in which a single wrong token spoils a document.
FRAGILE = ("digits", "code", "markup")
FRAGILE_SHARE = 0.005
_RULES = {"digits": "numbers", "code": "code"}


def recommend(seen: Inspection) -> list[str]:
    """Sentences: what each policy touches, and where to begin; nothing is chosen for the user."""
    lines = [
        _about(name, tally, was_done=seen.policies.get(name) is None)
        for name, tally in seen.tallies.items()
    ]
    candidates = [
        (name, tally) for name, tally in seen.tallies.items() if seen.policies.get(name) is not None
    ]
    if not candidates:
        return lines
    tried = [policy for policy in seen.policies.values() if policy is not None]
    of_labels = {
        name for name, policy in seen.policies.items() if policy and policy.target == "labels"
    }
    drawn = [one for one in candidates if one[0] in of_labels]
    others = [one for one in candidates if one[0] not in of_labels]
    begin = [_draw_labels(drawn)] if drawn else []
    begin += [_begin_with(others, tried)] if others else []
    return [*lines, *begin, FOUND]


def _draw_labels(candidates: list[tuple[str, KindTally]]) -> str:
    """When to take a policy that edits labels alone: inputs stay, so that it has no upper bound."""
    name, tally = max(candidates, key=lambda one: acted(one[1]))
    if acted(tally) < TOO_FEW:
        return (
            f"{name!r} changes too few labels to be seen in training ({acted(tally):.3%}). Try "
            "region=all top_k=64 target=labels, which redraws every one."
        )
    return (
        "To begin with, if the prior is larger than the model in training and knows this kind of "
        f"text: {name!r}. The model reads the source and learns the prior's draws "
        f"({acted(tally):.1%} of the labels become another token). With the model's own base as "
        "the prior it would learn what it knows."
    )


def _begin_with(candidates: list[tuple[str, KindTally]], tried: list[EditPolicy]) -> str:
    """Which of some policies to begin with, and why."""
    fitting = [
        (name, tally)
        for name, tally in candidates
        if TOO_FEW <= acted(tally) <= MANY and not touched(tally)
    ]
    if fitting:
        name, tally = max(fitting, key=lambda one: acted(one[1]))
        return (
            f"To begin with: {name!r}. Of the policies that change between {TOO_FEW:.2%} and "
            f"{MANY:.0%} of the tokens and hardly any digit, code or markup, it changes the most "
            f"({acted(tally):.2%})."
        )
    risky = [(name, tally) for name, tally in candidates if TOO_FEW <= acted(tally) <= MANY]
    if risky:
        name, tally = max(risky, key=lambda one: acted(one[1]))
        kinds = touched(tally)
        rules = sorted({_RULES[kind] for kind in kinds if kind in _RULES})
        mend = f"protect={','.join(rules)}" if rules else "a higher threshold"
        return (
            f"To begin with: {name!r} with {mend}. It changes {acted(tally):.2%} of the tokens, "
            f"and would be the choice but for {_list(kinds)}; look at it again with the change."
        )
    if all(acted(tally) < TOO_FEW for _, tally in candidates):
        most = max(candidates, key=lambda one: acted(one[1]))
        return (
            f"None of these to begin with: they change too little to be seen in training (most: "
            f"{most[0]!r}, {acted(most[1]):.3%}). Try {_further(tried)}."
        )
    least = min(candidates, key=lambda one: acted(one[1]))
    has_threshold = any(one.region in ("above", "below") for one in tried)
    mend = "a threshold between" if has_threshold else "region=above, as in threshold=0.5"
    return (
        f"None of these to begin with: all change more than {MANY:.0%} of the tokens (least: "
        f"{least[0]!r}, {acted(least[1]):.1%}), or hardly any. Try {mend}."
    )


def _further(tried: list[EditPolicy]) -> str:
    """What changes more than the policies that were tried."""
    lowest = min((one.threshold for one in tried if one.region == "above"), default=1.0)
    lower = [p for p in (0.9, 0.5, 0.1) if p < lowest]
    if not lower:
        return "region=all top_k=64, which redraws every token"
    if lowest > 0.9 and EditPolicy.reference_code() not in tried:
        return f"a lower threshold (threshold={lower[0]} or {lower[1]}), or reference_code"
    return f"threshold={lower[0]} top_k=64: a lower threshold, and more candidates"


def acted(tally: KindTally) -> float:
    """Share of tokens that were changed or removed; 0 where there are none."""
    share = tally.share(None, "changed") + tally.share(None, "removed")
    return 0.0 if math.isnan(share) else share


def touched(tally: KindTally) -> list[str]:
    """Kinds that an error spoils, of which more than 0.5 % were changed or removed."""
    return [
        kind
        for kind in FRAGILE
        if tally.of(kind, "tokens")
        and tally.share(kind, "changed") + tally.share(kind, "removed") > FRAGILE_SHARE
    ]


def _about(name: str, tally: KindTally, *, was_done: bool) -> str:
    kinds = touched(tally)
    said = [
        f"{kind} ({tally.of(kind, 'changed') + tally.of(kind, 'removed'):,} of "
        f"{tally.of(kind, 'tokens'):,})"
        for kind in KINDS
        if kind in kinds
    ]
    if was_done:  # a journal knows what changed, and not what was selected
        said = [f"{_list(said)} among them"] if said else ["hardly a digit, code or markup"]
        return f"{name}: changed {acted(tally):.3%} of the tokens; {said[0]}."
    touches = f"touches {_list(said)}" if said else "leaves digits, code and markup nearly alone"
    spared = tally.of(None, "spared")
    saved = f"; protection (of special tokens, too) spared {spared:,}" if spared else ""
    return (
        f"{name}: selects {tally.share(None, 'selected'):.2%} of the tokens and changes "
        f"{acted(tally):.3%}; {touches}{saved}."
    )


def _list(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
