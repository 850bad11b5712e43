"""EditPolicy: which tokens are edited, and how they are resampled."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .options import described, options_of, parse_rules

Region = Literal["above", "below", "all", "none"]
Sampler = Literal["top_k", "top_p", "full", "rejection"]
Scope = Literal["loss", "all"]
Target = Literal["both", "inputs", "labels"]
Redraw = Literal["epoch", "never"]
Context = Literal["document", "text", "answer"]
Protect = Callable[[Tensor, Any], Tensor]


MAX_DRAWS = 255  # a decision cache keeps a count in one byte


@dataclass(frozen=True)
class Preset:
    """A policy with a name: what it does, in one line, and its fields that are not the defaults."""

    help: str
    fields: dict[str, Any] = field(default_factory=dict)


# The script is `toedit_resampling.py` of github.com/Xuekai-Zhu/toedit. All of its strategies take 8
# candidates by default. Its README passes 64, in an example of "low_drop_up_revise".
PRESETS: dict[str, Preset] = {
    "paper": Preset(
        "the paper's text: P >= 0.99, top-k with k = 8; temperature 1, since the paper names none"
    ),
    "reference_code": Preset(
        'the authors\' published script ("up_revise"): k = 8, temperature 1.5',
        {"temperature": 1.5},
    ),
    "low_drop_up_revise": Preset(
        "the script's other strategy: temperature 1, and tokens with P < 0.001 are removed",
        {"drop_below": 0.001},
    ),
    "distill": Preset(
        "every label becomes 64 draws of the prior, inputs stay: distillation from a larger model",
        {"region": "all", "target": "labels", "sampler": "full", "num_draws": 64},
    ),
    "filtering": Preset(
        "only removes tokens with P < 0.001, as the script's third strategy does",
        {"region": "none", "drop_below": 0.001},
    ),
}


@dataclass(frozen=True, kw_only=True)
class EditPolicy:
    """Which tokens are edited, and how they are resampled. The defaults are the paper's.

    Source: "How to Synthesize Text Data without Model Collapse?" (arXiv:2412.14689), Algorithm 1
    and Eq. 2; the ablations are its Tables 5 (samplers), 6 (`top_k`) and 7 (thresholds, regions).

    Below, P is the probability that the prior gives a token after the tokens before it, from the
    softmax over its whole vocabulary at temperature 1.

    `OPTIONS` describes the fields, as does docs/policies.md. A field with a value of the wrong type
    or out of its range raises a TypeError or ValueError.

    Example:
        >>> EditPolicy(threshold=0.999, top_k=64).threshold
        0.999
    """

    threshold: float = described(
        0.99,
        "a probability, strictly between 0 and 1; `region` says which side of it is resampled",
        source="section 4.1; Table 7 has 0.999, and 0.1, 0.01, 0.001 for P <= threshold",
    )
    region: Region = described(
        "above",
        'the tokens that are resampled. "above": P >= threshold; "below": P <= threshold; "all": '
        'every scored token; "none": no token, only `drop_below` and `drop_above` act',
        source='Eq. 2; "below" in Table 7; "all" is Algorithm 1 with p = 0',
    )
    sampler: Sampler = described(
        "top_k",
        'the candidates of a draw; their probabilities are rescaled to sum to 1. "top_k": the '
        '`top_k` most probable tokens; "top_p": the fewest tokens whose probabilities sum to at '
        'least `top_p`; "full" or "rejection": the whole vocabulary',
        source="section 4.4, Table 5",
    )
    num_draws: int = described(
        1,
        "number of independent draws for each label. Several draws make a soft label: the weight "
        'of a token is its share of the draws. More than 1 requires `target="labels"` and '
        '`sampler="full"`',
        source="Anshumann et al. 2025, arXiv:2503.16870",
    )
    top_k: int = described(
        8,
        'number of candidates of the sampler "top_k"; a tie goes to the lower token id',
        source="section 4.1; 64 in Table 6",
    )
    top_p: float = described(
        0.99,
        'probability that the candidates of the sampler "top_p" must reach, in (0, 1]. If a token '
        "has P >= top_p at temperature 1, it is its own only candidate and never changes; a "
        "warning says so",
        source="Table 5",
    )
    temperature: float = described(
        1.0,
        "candidates and draws follow softmax(logits / temperature). P is always at temperature 1",
        source="the paper names none; 1.5 in the authors' script",
    )
    scope: Scope = described(
        "loss",
        'the tokens that may be edited. "loss": those with a label other than -100; "all": prompts '
        "and other tokens without a label as well",
    )
    context: Context = described(
        "document",
        'where the prior begins to read. "document": at the beginning of the document; "text": '
        'after the end-of-text token before it, if a document contains several texts; "answer": '
        "after the prompt, so that the prior does not see the prompt. The prior (not the trainee) "
        "gets a BOS token there if its tokenizer adds one. The first token after it is not edited",
        source="the authors' scripts score each text, and each SFT answer, by itself",
    )
    target: Target = described(
        "both",
        'where the new tokens go. "both": inputs and labels; "inputs": only inputs, and the model '
        'learns the original text after an edited context; "labels": only labels, and the model '
        "learns the prior's draws after the original context",
    )
    drop_below: float | None = described(
        None,
        "remove tokens with P below this value; the row becomes shorter",
        source="0.001 in the authors' script",
    )
    drop_above: float | None = described(
        None,
        "remove tokens with P of at least this value; removal comes before resampling",
        source="0.99 and 0.999 in the authors' runs for Table 7",
    )
    exclude_original: bool = described(
        False,
        "draw among the *other* candidates, so that every selected token changes. If there is no "
        "other candidate, take the most probable other token of the vocabulary",
    )
    protect_special: bool = described(
        True,
        "never edit, remove or draw special tokens and the tokens of the chat template; the "
        "probabilities of the other candidates are rescaled to sum to 1",
    )
    protected_token_ids: tuple[int, ...] = described(
        (), "token ids that are never edited or removed (but may be drawn)"
    )
    protect: str | Protect | None = described(
        None,
        "tokens that are never edited or removed: a list, with commas, of the rules `numbers`, "
        "`code`, `urls`, `latex`, `names` and `regex:...`; or a function `(input_ids, tokenizer)` "
        "that returns a (B, T) bool mask, True where a token is protected",
    )
    seed: int = described(0, "the seed of the draws, in [0, 2**64)")
    redraw: Redraw = described(
        "epoch", '"epoch": make new draws in every epoch; "never": make the same edit every time'
    )

    def __post_init__(self) -> None:
        for option in OPTIONS.values():
            option.check(getattr(self, option.name))
        if self.sampler == "rejection":
            object.__setattr__(self, "sampler", "full")
        self._check_ranges()
        self._check_combinations()
        if isinstance(self.protect, str):
            object.__setattr__(self, "protect", ",".join(parse_rules(self.protect)))
        elif self.protect is not None and not callable(self.protect):
            raise TypeError(
                f"protect must be rules in a string, as in 'numbers,code', or a function "
                f"(input_ids, tokenizer) -> bool mask, got {self.protect!r}; to protect ids, use "
                "protected_token_ids"
            )
        object.__setattr__(self, "protected_token_ids", _as_ids(self.protected_token_ids))
        if self._changes_nothing():
            warnings.warn(
                "this policy can change no token: where it selects one, that token is the only "
                "candidate; raise top_p, top_k or temperature, or set exclude_original=True",
                UserWarning, stacklevel=3,
            )  # fmt: skip

    def _check_ranges(self) -> None:
        for name in ("threshold", "drop_below", "drop_above"):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                raise ValueError(
                    f"{name} must lie strictly between 0 and 1, got {share!r}; it is a "
                    "probability: write 0.99 for 99 %"
                )
        rules = {
            "top_p": (0 < self.top_p <= 1, "lie in (0, 1]"),
            "top_k": (self.top_k >= 1, "be at least 1"),
            "num_draws": (1 <= self.num_draws <= MAX_DRAWS, f"lie in [1, {MAX_DRAWS}]"),
            "temperature": (0 < self.temperature < math.inf, "be a finite number above 0"),
            "seed": (0 <= self.seed < 2**64, "lie in [0, 2**64)"),
        }
        for name, (is_valid, rule) in rules.items():
            if not is_valid:
                raise ValueError(f"{name} must {rule}, got {getattr(self, name)!r}")

    def _check_combinations(self) -> None:
        below, above = self.drop_below, self.drop_above
        is_soft = self.num_draws > 1
        rules = [
            (
                below is not None and self._has_threshold and below >= self.threshold,
                ("drop_below", "threshold"), "drop_below must be less than threshold",
            ),
            (
                below is not None and above is not None and below >= above,
                ("drop_below", "drop_above"), "every token would be removed",
            ),
            (
                self.drops_tokens and self.target != "both",
                ("drop_below", "drop_above", "target"),
                "a removed token leaves inputs and labels; use target='both'",
            ),
            (
                is_soft and self.target != "labels",
                ("num_draws", "target"), "several draws make a soft label; use target='labels'",
            ),
            (
                is_soft and self.sampler != "full",
                ("num_draws", "sampler"),
                "soft labels of a few candidates are biased; use sampler='full'",
            ),
            (
                self.target == "labels" and self.scope == "all",
                ("target", "scope"),
                "a token without a label has nothing to edit; use scope='loss'",
            ),
            (
                self.context == "answer" and self.scope == "all",
                ("context", "scope"),
                "a prompt is no answer; use scope='loss', or context='document'",
            ),
        ]  # fmt: skip
        for is_wrong, names, why in rules:
            if is_wrong:
                values = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
                raise ValueError(f"{values} can't be combined: {why}")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> EditPolicy:
        """A policy by its name (one of `PRESETS`), with some fields changed."""
        if name not in PRESETS:
            raise ValueError(f"policy must be one of {', '.join(PRESETS)}, got {name!r}")
        return cls(**{**PRESETS[name].fields, **changes})

    @classmethod
    def paper(cls, **changes: Any) -> EditPolicy:
        """The paper's setting (Algorithm 1, section 4.1): P >= 0.99, top-k with k = 8.

        The paper names no temperature. We assume 1.
        """
        return cls.preset("paper", **changes)

    @classmethod
    def reference_code(
        cls,
        strategy: Literal["up_revise", "low_drop_up_revise", "filtering"] = "up_revise",
        **changes: Any,
    ) -> EditPolicy:
        """The defaults of the script that the authors published, `toedit_resampling.py`.

        It changes ten to thirty times more tokens than `paper`. The script selects P > 0.99, we
        select P >= 0.99.

        Args:
            strategy: "up_revise" resamples P >= 0.99 at temperature 1.5; "low_drop_up_revise"
                resamples them at temperature 1 and removes tokens with P < 0.001; "filtering" only
                removes those.
            changes: other fields of `EditPolicy`.

        Example:
            >>> EditPolicy.reference_code("filtering").drop_below
            0.001
        """
        names = ("up_revise", "low_drop_up_revise", "filtering")
        if strategy not in names:
            raise ValueError(f"strategy must be one of {', '.join(names)}, got {strategy!r}")
        return cls.preset("reference_code" if strategy == "up_revise" else strategy, **changes)

    @classmethod
    def distill(cls, num_draws: int = 64, **changes: Any) -> EditPolicy:
        """Distillation from a larger prior: every label becomes many draws, inputs stay.

        In expectation, the gradient is that of KL(prior || trainee). Source: random sampling
        distillation (Anshumann et al., "Sparse Logit Sampling", ACL 2025, arXiv:2503.16870).
        `redraw="never"` draws the labels once, to be stored in a `DecisionCache`.
        """
        return cls.preset("distill", num_draws=num_draws, **changes)

    def replace(self, **changes: Any) -> EditPolicy:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def record(self) -> dict[str, Any]:
        """All fields, as JSON; a function in `protect` by its name and a hash of its source."""
        record = {name: getattr(self, name) for name in OPTIONS}
        record["protected_token_ids"] = list(self.protected_token_ids)
        if callable(self.protect):
            record["protect"] = self._name_of_protect
        return record

    @functools.cached_property
    def _name_of_protect(self) -> str:
        function: Any = self.protect
        while isinstance(function, functools.partial):
            function = function.func
        code = function if hasattr(function, "__qualname__") else type(function)
        try:
            source = inspect.getsource(code)
        except (OSError, TypeError):  # built in, or typed into an interpreter
            return code.__qualname__
        return f"{code.__qualname__} (source {hashlib.sha256(source.encode()).hexdigest()[:16]})"

    def selects(self, logprob: Tensor) -> Tensor:
        """Which tokens are in the region (Eq. 2): log P in nats -> bool; never True at NaN."""
        # In float32 and in log space: bf16 would store 0.99 as 0.98828125.
        if self.region == "above":
            return logprob.float() >= math.log(self.threshold)
        if self.region == "below":
            return logprob.float() <= math.log(self.threshold)
        if self.region == "all":
            return ~logprob.isnan()
        return torch.zeros_like(logprob, dtype=torch.bool)

    def drops(self, logprob: Tensor) -> Tensor:
        """Which tokens `drop_below` or `drop_above` removes; shapes as in `selects`."""
        dropped = torch.zeros_like(logprob, dtype=torch.bool)
        if self.drop_below is not None:
            dropped |= logprob.float() < math.log(self.drop_below)
        if self.drop_above is not None:
            dropped |= logprob.float() >= math.log(self.drop_above)
        return dropped

    @property
    def drops_tokens(self) -> bool:
        """Whether this policy can remove a token, so that rows may become shorter."""
        return self.drop_below is not None or self.drop_above is not None

    @property
    def lowest_cut(self) -> float:
        """The lowest log-probability at which a decision of this policy changes, in nats.

        All tokens below it get the same decision, so the head may stop as soon as an upper bound
        of log P is below it. Infinite if the policy decides nothing.
        """
        cuts = [self.threshold] if self._has_threshold else []
        cuts += [cut for cut in (self.drop_below, self.drop_above) if cut is not None]
        return min(map(math.log, cuts), default=math.inf)

    @property
    def _has_threshold(self) -> bool:
        return self.region in ("above", "below")

    @property
    def decides(self) -> bool:
        """Whether this policy can select or drop a token."""
        return self.region != "none" or self.drops_tokens

    def _changes_nothing(self) -> bool:
        if self.region != "above" or self.drops_tokens or self.exclude_original:
            return False
        # A temperature <= 1 only raises the share of the most probable token.
        top_p = self.sampler == "top_p" and self.temperature <= 1 and self.top_p <= self.threshold
        return top_p or (self.sampler == "top_k" and self.top_k == 1 and self.threshold > 0.5)


def _as_ids(value: Any) -> tuple[int, ...]:
    ids = tuple(value) if isinstance(value, Iterable) else (value,)
    if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise ValueError(f"protected_token_ids must be whole numbers from 0 on, got {value!r}")
    return ids


OPTIONS = options_of(EditPolicy)
