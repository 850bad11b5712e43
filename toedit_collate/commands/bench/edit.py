"""The part `edit`: the edit pass beside the bare trunk, and with each trick switched off."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ...errors import UnusableError
from ...head import kernels
from ...policy import EditPolicy
from ...stores.cache import DecisionCache
from ...training.batch import ToEditBatch
from ..measuring.inputs import Inputs
from ..measuring.timing import Comparison, Quartiles, Variant, compare
from .passes import (
    EVERY_TOKEN,
    OURS,
    PLAIN,
    SOFT_TARGETS,
    TRUNK,
    WHOLE_HEAD,
    bare_trunk,
    make_collator,
    ours,
    plain,
    plain_fits,
    plain_left_out,
    soft_targets,
)
from .states import scored_states
from .switches import (
    eager,
    first_tile,
    in_order_of_ids,
    kernel_used,
    likely_first,
    no_early_reject,
    no_lazy_resample,
    padding_kept,
    uncompile,
)
from .table import Column, Row, Section

TILES = (256, 512, 1024, 2048)
COLUMNS = [
    Column("ratio", "{ratio:.3f}"),
    Column("quartiles", "{low:.3f} - {high:.3f}"),
    Column("ms", "{ms:.1f}"),
]
_SECONDS = 40.0
_NUM_STATES = 2048  # to choose first tiles by

Switch = Callable[[], AbstractContextManager[None]]


def measure_edit(inputs: Inputs, policy: EditPolicy, *, pairs: int, compiled: bool) -> Section:
    """Time the edit pass, its alternatives, and each trick's absence, against the bare trunk.

    Args:
        inputs: the prior and its batches.
        policy: of the edit.
        pairs: most rounds.
        compiled: also time a compiled trunk.
    """
    with inputs.in_place():
        counted = make_collator(inputs, policy)
        for number in range(len(inputs.batches)):
            ours(inputs, counted, number)
        if compiled:
            inputs.prior.compile()
        variants = edit_variants(inputs, policy, compiled=compiled)
        if not plain_fits(inputs):
            del variants[PLAIN], variants[SOFT_TARGETS]
        times = compare(variants, inputs.device, pairs=pairs, seconds=_SECONDS)
        uncompile(inputs.trunk)
    if TRUNK in times.out_of_memory:
        raise UnusableError(
            f"--batch-size {inputs.B}, --max-length {inputs.T}: the bare backbone runs out of "
            "memory; give a smaller --batch-size"
        )
    num_rounds, stats = len(times.seconds[TRUNK]), counted.stats
    section = Section(
        "edit",
        f"Time of the edit of {inputs.size} / time of the bare backbone",
        COLUMNS,
        rows=time_rows(times, TRUNK),
        notes=[
            f"Medians of {num_rounds} rounds; in each, every variant runs once, in another order, "
            "and its time is divided by the backbone's of the same round.",
            f"Of {stats['scored']:,.0f} tokens scored, {stats['selected']:,.0f} "
            f"({stats['selected_share']:.2%}) are selected and {stats['changed']:,.0f} changed "
            f"in one epoch.",
        ],
        figures={"counts": {k: stats[k] for k in ("tokens", "scored", "selected", "changed")}},
    )
    if PLAIN not in variants:
        section.rows.append(plain_left_out(inputs))
    if {PLAIN, OURS} <= times.seconds.keys():
        figures = _ratio(times.ratios(PLAIN, OURS))
        section.rows.append(Row("plain / ours", figures))
    return section


def time_rows(times: Comparison, baseline: str) -> list[Row]:
    """A row for each variant: ratio to the baseline, milliseconds, and all that was measured."""
    rows = []
    for name, seconds in times.seconds.items():
        figures = _ratio(times.ratios(name, baseline))
        figures |= {"ms": times.milliseconds(name), "all_ms": [1000 * s for s in seconds]}
        rows.append(Row(name, figures))
    return rows + [Row(name, text="out of memory") for name in times.out_of_memory]


def _ratio(ratios: list[float]) -> dict[str, Any]:
    quartiles = Quartiles.of(ratios)
    return {"ratio": quartiles.median, "low": quartiles.low, "high": quartiles.high}


def edit_variants(
    inputs: Inputs, policy: EditPolicy, *, compiled: bool = False
) -> dict[str, Variant]:
    """What is timed, by name.

    All make the same edit but `scope="all"` and `region="all"`, and the KL term makes none.

    With `compiled`, the trunk has been compiled, and is switched back where that is not meant.
    """

    def edit(
        switch: Switch = nullcontext,
        policy: EditPolicy = policy,
        cache: DecisionCache | None = None,
        trunk: Switch = lambda: eager(inputs.trunk),
    ) -> Variant:
        collator = make_collator(inputs, policy, cache)

        def run(number: int) -> ToEditBatch:
            with trunk(), switch():
                return ours(inputs, collator, number)

        return run

    def uncompiled(function: Callable[[int], Any]) -> Variant:
        def run(number: int) -> Any:
            with eager(inputs.trunk):
                return function(number)

        return run

    variants: dict[str, Variant] = {
        TRUNK: uncompiled(lambda number: bare_trunk(inputs, number)),
        PLAIN: uncompiled(lambda number: plain(inputs, policy, number)),
        SOFT_TARGETS: uncompiled(lambda number: soft_targets(inputs, number)),
        OURS: edit(),
        WHOLE_HEAD: edit(no_early_reject),
        "ours, candidates for all selected": edit(no_lazy_resample),
        EVERY_TOKEN: edit(policy=policy.replace(region="all", drop_below=None)),
    }
    if any((batch["attention_mask"] == 0).any() for batch in inputs.batches):
        variants["ours, padding kept"] = edit(padding_kept)
    if any(((b["labels"] == -100) & (b["attention_mask"] == 1)).any() for b in inputs.batches):
        everything = edit(policy=policy.replace(scope="all"))
        variants['ours, prompts too (scope="all")'] = everything
    variants |= {name: edit(switch) for name, switch in _first_tiles(inputs, policy).items()}
    if kernels.is_available(inputs.device):
        variants["ours, Triton kernel"] = edit(lambda: kernel_used(inputs.prior))
    cache = DecisionCache()
    variants["ours, epoch 2 with a cache"] = edit(cache=cache)
    first_epoch = make_collator(inputs, policy, cache)
    for number in range(len(inputs.batches)):
        ours(inputs, first_epoch, number)
    if compiled:
        variants["bare backbone, compiled"] = lambda number: bare_trunk(inputs, number)
        variants["ours, backbone compiled"] = edit(trunk=nullcontext)
    return variants


def _first_tiles(inputs: Inputs, policy: EditPolicy) -> dict[str, Switch]:
    """Other first tiles than the one in use."""
    prior = inputs.prior
    states, _ = scored_states(inputs, policy, most=_NUM_STATES)
    ours = prior.likely_competitors(states)
    if ours is None:  # a head that only its module can compute
        return {}
    tiles: dict[str, Switch] = {}
    for num_ids in TILES:
        if num_ids < prior.vocab_size and (num_ids,) != ours.stops:
            other = likely_first(prior, states, num_ids)
            tiles[f"ours, one first tile of {num_ids} ids"] = _tile(prior, other)
    sizes = ", ".join(map(str, ours.stops))
    by_id = in_order_of_ids(ours)
    tiles[f"ours, tiles to {sizes} by id, not likelihood"] = _tile(prior, by_id)
    return tiles


def _tile(prior: Any, competitors: Any) -> Switch:
    return lambda: first_tile(prior, competitors)
