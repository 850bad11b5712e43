"""EditPolicy: which tokens are edited, and how they are resampled."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .checks import (
    as_token_ids,
    require_choice,
    require_int,
    require_number,
    require_probability,
)
from .function import describe_function
from .options import as_docstring, described, options_of
from .presets import PRESETS
from .protect import parse_rules

Region = Literal["above", "below", "all", "none"]
Sampler = Literal["top_k", "top_p", "rejection"]
Scope = Literal["loss", "all"]
Target = Literal["both", "inputs", "labels"]
Redraw = Literal["epoch", "never"]
Protect = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class EditPolicy:
    """Which tokens are edited, and how they are resampled. The defaults are the paper's.

    Source: "How to Synthesize Text Data without Model Collapse?" (arXiv:2412.14689), Algorithm 1
    and Eq. 2; the ablations are its Tables 5 (samplers), 6 (`top_k`) and 7 (thresholds, regions).

    Below, P is the probability that the prior gives a token after the tokens before it, from the
    softmax over its whole vocabulary at temperature 1.

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value is of the wrong type.

    Example:
        >>> EditPolicy(threshold=0.999, top_k=64).threshold
        0.999
    """

    threshold: float = described(
        0.99,
        "the probability that bounds the region, strictly between 0 and 1",
        source="Algorithm 1; 0.999 and 0.1, 0.01, 0.001 in Table 7",
    )
    region: Region = described(
        "above",
        'resample P >= threshold; "below": P <= threshold; "all": every scored token, whatever '
        'the threshold; "none": nothing, so that only `drop_below` acts',
        source='Eq. 2; reversed in Table 7; "all" is Algorithm 1 at p = 0',
    )
    sampler: Sampler = described(
        "top_k",
        'candidates of a draw, which is renormalised over them: "top_k" most probable tokens; '
        '"top_p", the fewest that hold that mass; "rejection", the whole vocabulary',
        source="Table 5",
    )
    top_k: int = described(
        8,
        'number of candidates of the sampler "top_k"; of equal probabilities the lower id wins',
        source="Algorithm 1; 64 in Table 6",
    )
    top_p: float = described(
        0.99,
        'mass of the sampler "top_p", in (0, 1]. With P >= 0.99 at temperature 1 it holds the '
        "token alone and changes nothing: you are told so",
        source="Table 5",
    )
    temperature: float = described(
        1.0,
        "of candidates and draws, which follow softmax(logits / temperature); selection is always "
        "at temperature 1",
        source="1.5 in the script",
    )
    scope: Scope = described(
        "loss", 'edit tokens that have a label other than -100; "all": every token, prompts, too'
    )
    target: Target = described(
        "both",
        'inputs and labels carry the new tokens; "inputs": labels stay the source, so that only '
        'the context is edited; "labels": inputs stay the source, so that the prior\'s draws are '
        "learned after the source's context",
    )
    drop_below: float | None = described(
        None, "remove tokens with P below this", source="0.001 in the script"
    )
    exclude_original: bool = described(
        False,
        "draw among the *other* candidates, so that every selected token changes; where the "
        "sampler leaves no other, the most probable other token is taken",
    )
    protect_special: bool = described(
        True,
        "never edit, drop or draw special tokens and the chat template's markers; draws are "
        "renormalised over the candidates that remain",
    )
    protected_token_ids: tuple[int, ...] = described(
        (), "more ids that are never edited or dropped"
    )
    protect: str | Protect | None = described(
        None,
        "tokens that are never edited or dropped: rules combined by commas, of `numbers`, `code`, "
        "`urls`, `latex`, `names` and `regex:...`; or a function `(input_ids, tokenizer)` that "
        "returns a (B, T) bool mask",
    )
    seed: int = described(0, "of the draws, in [0, 2**64)")
    redraw: Redraw = described(
        "epoch", 'draw afresh in every epoch; "never": make the same edit every time'
    )

    def record(self) -> dict[str, Any]:
        """What decides an edit, as JSON has it.

        Of a function that protects, its name and a hash of its code as it was when the record was
        first asked for: see `toedit_collate.policy.function.describe_function` for what that
        covers.
        """
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        record["protected_token_ids"] = list(self.protected_token_ids)
        if callable(self.protect):
            record["protect"] = self._protect_described
        return record

    @functools.cached_property
    def _protect_described(self) -> str:
        return describe_function(self.protect)

    def __post_init__(self) -> None:
        require_choice("region", self.region, get_args(Region))
        require_choice("sampler", self.sampler, get_args(Sampler))
        require_choice("scope", self.scope, get_args(Scope))
        require_choice("redraw", self.redraw, get_args(Redraw))
        require_choice("target", self.target, get_args(Target))
        require_probability("threshold", self.threshold)
        if self.drop_below is not None:
            require_probability("drop_below", self.drop_below)
            if self._has_threshold and self.drop_below >= self.threshold:
                raise ValueError(
                    f"drop_below must be less than threshold, got drop_below={self.drop_below!r} "
                    f"and threshold={self.threshold!r}; the authors' script uses 0.001 and 0.99"
                )
            if self.target != "both":
                raise ValueError(
                    f"target={self.target!r} can't go with drop_below={self.drop_below!r}: a token "
                    "that is removed is removed from inputs and labels; use target='both'"
                )
        if self.target == "labels" and self.scope == "all":
            raise ValueError(
                "target='labels' can't go with scope='all': a token without a label has nothing "
                "to edit; use scope='loss'"
            )
        require_int("top_k", self.top_k, minimum=1, mend="it is a number of candidates")
        require_number("top_p", self.top_p)
        if not 0 < self.top_p <= 1:
            raise ValueError(
                f"top_p must lie in (0, 1], got {self.top_p!r}; it is a probability: "
                "write 0.9 for 90 %"
            )
        require_number("temperature", self.temperature)
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(
                f"temperature must be a finite number above 0, got {self.temperature!r}; "
                "for greedy draws use top_k=1"
            )
        require_int("seed", self.seed, minimum=0, mend="pass a whole number in [0, 2**64)")
        if self.seed >= 2**64:
            raise ValueError(f"seed must be less than 2**64, got {self.seed!r}")
        for flag in ("exclude_original", "protect_special"):
            if not isinstance(getattr(self, flag), bool):
                raise TypeError(f"{flag} must be True or False, got {getattr(self, flag)!r}")
        if isinstance(self.protect, str):
            object.__setattr__(self, "protect", ",".join(parse_rules(self.protect)))
        elif self.protect is not None and not callable(self.protect):
            raise TypeError(
                f"protect must be rules in a string, as in 'numbers,code', or a function "
                f"(input_ids, tokenizer) -> bool mask, got {self.protect!r}; to protect ids, use "
                "protected_token_ids"
            )
        object.__setattr__(self, "protected_token_ids", as_token_ids(self.protected_token_ids))
        if self.changes_nothing:
            warnings.warn(
                f"this policy can change no token: {self._why_nothing_changes()}",
                UserWarning,
                stacklevel=3,
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> EditPolicy:
        """A policy by its name, with single fields changed.

        Args:
            name: "paper", "reference_code", "low_drop_up_revise" or "filtering" (`PRESETS`).
            changes: other fields.

        Raises:
            ValueError: unknown name, or a value out of its range.
            TypeError: a value of the wrong type.

        Example:
            >>> EditPolicy.preset("reference_code", top_k=8).temperature
            1.5
        """
        if name not in PRESETS:
            raise ValueError(f"policy must be one of {', '.join(PRESETS)}, got {name!r}")
        return cls(**{**PRESETS[name].fields, **changes})

    @classmethod
    def paper(cls, **changes: Any) -> EditPolicy:
        """The paper's setting: P >= 0.99, top-k with k = 8, temperature 1 (Algorithm 1).

        Example:
            >>> EditPolicy.paper(threshold=0.999).top_k
            8
        """
        return cls.preset("paper", **changes)

    @classmethod
    def reference_code(
        cls,
        strategy: Literal["up_revise", "low_drop_up_revise", "filtering"] = "up_revise",
        **changes: Any,
    ) -> EditPolicy:
        """The settings of the script that the authors published, `toedit_resampling.py`.

        It differs from the paper: 64 candidates (its example; its default is 8) and, in
        "up_revise", temperature 1.5, so that it changes some twenty times more tokens.

        Args:
            strategy: "up_revise" resamples P > 0.99 at temperature 1.5; "low_drop_up_revise"
                resamples them at temperature 1 and removes tokens with P < 0.001; "filtering"
                removes those, and resamples nothing.
            changes: other fields of `EditPolicy`.

        Raises:
            ValueError: unknown `strategy`.

        Note:
            The script selects by P > 0.99, we by P >= 0.99: they differ where P is 0.99 exactly.

        Example:
            >>> EditPolicy.reference_code("filtering").drop_below
            0.001
        """
        if strategy not in ("up_revise", "low_drop_up_revise", "filtering"):
            raise ValueError(
                f"strategy must be 'up_revise', 'low_drop_up_revise' or 'filtering', got "
                f"{strategy!r}"
            )
        return cls.preset("reference_code" if strategy == "up_revise" else strategy, **changes)

    def replace(self, **changes: Any) -> EditPolicy:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def selects(self, logprob: Tensor) -> Tensor:
        """Which tokens are in the region (Eq. 2).

        Args:
            logprob: log P of the tokens, any shape, float32, nats. NaN is never selected.

        Returns:
            bool, the shape of `logprob`.
        """
        # In float32 and in log space: bf16 would store 0.99 as 0.98828125.
        if self.region == "above":
            return logprob.float() >= math.log(self.threshold)
        if self.region == "below":
            return logprob.float() <= math.log(self.threshold)
        if self.region == "all":
            return ~logprob.isnan()
        return torch.zeros_like(logprob, dtype=torch.bool)

    def drops(self, logprob: Tensor) -> Tensor:
        """Which tokens are removed because their P is below `drop_below`; shapes as `selects`."""
        if self.drop_below is None:
            return torch.zeros_like(logprob, dtype=torch.bool)
        return logprob.float() < math.log(self.drop_below)

    @property
    def lowest_cut(self) -> float:
        """The lowest log-probability at which a decision of this policy turns, in nats.

        Everything under it is decided alike, so the head may stop as soon as an upper bound of
        log P falls under it. Infinite when the policy decides nothing.
        """
        cuts = []
        if self._has_threshold:
            cuts.append(math.log(self.threshold))
        if self.drop_below is not None:
            cuts.append(math.log(self.drop_below))
        return min(cuts, default=math.inf)

    @property
    def _has_threshold(self) -> bool:
        return self.region in ("above", "below")

    @property
    def decides(self) -> bool:
        """True where a probability can lead this policy to do anything."""
        return self.region != "none" or self.drop_below is not None

    @property
    def changes_nothing(self) -> bool:
        """True where the draw can only give back the token that was there."""
        return (
            self.region == "above"
            and self.drop_below is None
            and not self.exclude_original
            and self._why_nothing_changes() != ""
        )

    def _why_nothing_changes(self) -> str:
        # Cooling (temperature <= 1) only raises the share of the most probable token.
        if self.sampler == "top_p" and self.temperature <= 1 and self.top_p <= self.threshold:
            return (
                f"where P >= threshold={self.threshold}, the nucleus of top_p={self.top_p} is "
                "the observed token alone; raise top_p or the temperature"
            )
        if self.sampler == "top_k" and self.top_k == 1 and self.threshold > 0.5:
            return (
                f"where P >= threshold={self.threshold}, the top_k=1 candidate is the observed "
                "token; raise top_k, or set exclude_original=True"
            )
        return ""


OPTIONS = options_of(EditPolicy)
make_policy = EditPolicy.preset
# What is said at the fields is said once: `help(EditPolicy)` has it from there.
EditPolicy.__doc__ = (EditPolicy.__doc__ or "") + as_docstring(OPTIONS.values())
