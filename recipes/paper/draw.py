"""The figures of a report; each function returns a matplotlib figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from common.figures import LINES, color_of, log_scale, new_figure
from common.ngrams import NUM_BUCKETS, TOP_BIGRAMS

from toedit_collate.inspection.findings import HISTOGRAM_BINS
from toedit_collate.inspection.kinds import Reader

from .measure import EMBEDDED, Measured
from .table import read_tables

Array = npt.NDArray[np.float64]
_BEFORE_TSNE = 50  # dimensions


def _panels(sets: Sequence[Measured], *, height: float) -> Any:
    """One panel per set, three in a row; panels that are left over are empty."""
    columns = min(3, len(sets))
    figure, axes = new_figure(columns, -(-len(sets) // columns), width=4.6, height=height)
    for axis in axes[len(sets) :]:
        axis.set_axis_off()
    return figure, axes


def draw_histogram(sets: Sequence[Measured]) -> Any:
    """Shares of tokens by their probability (Figure 6)."""
    figure, axes = _panels(sets, height=3.4)
    edges = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    counts = [of.probabilities.bins for of in sets]
    shares = [100 * bins / max(bins.sum(), 1) for bins in counts]
    lowest = min((some[some > 0].min() for some in shares if some.any()), default=1.0)
    for number, (axis, of) in enumerate(zip(axes, sets, strict=False)):
        axis.bar(
            edges[:-1], shares[number], 1 / HISTOGRAM_BINS, align="edge",
            color=color_of(number), edgecolor="white", linewidth=0.5,
        )  # fmt: skip
        axis.set_title(of.name, fontsize=10)
        axis.set_xlabel("P of the token that follows")
        axis.set_ylabel("% of tokens")
        log_scale(axis, y=True, steps=(1.0, 3.0))
        axis.set_ylim(max(lowest / 1.5, 0.01), 100)  # the same for all: they are compared
    return figure


def draw_deciles(sets: Sequence[Measured]) -> Any:
    """Shares of tokens in ten intervals of probability, a bar for each set (Table 8)."""
    paper = [row[0] for row in read_tables()["8"]["rows"].values()]
    bars = {of.name: 100 * of.deciles / max(of.deciles.sum(), 1) for of in sets}
    bars["the paper's biomedicine"] = np.array(paper)
    figure, (axis,) = new_figure(width=9, height=0.5 * len(bars) + 1.3)
    from matplotlib import colormaps

    for number in range(10):
        color = colormaps["cividis"](0.08 + 0.1 * number)
        for place, shares in enumerate(bars.values()):
            left, share = shares[:number].sum(), shares[number]
            label = f"{number / 10:.1f}" if place == 0 else None
            axis.barh(place, share, 0.75, left, color=color, label=label)
            if share >= 4:
                ink = "white" if number < 6 else "black"
                text = f"{share:.0f}"
                axis.text(
                    left + share / 2, place, text, ha="center", va="center", color=ink, fontsize=8
                )
    axis.set_yticks(range(len(bars)), list(bars))
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("% of tokens")
    axis.grid(False)
    axis.legend(
        title="P of the token, from", ncols=10, fontsize=7, title_fontsize=7, frameon=False,
        loc="lower center", bbox_to_anchor=(0.5, 1.0), handlelength=1, columnspacing=1,
    )  # fmt: skip
    return figure


def draw_perplexity(sets: Sequence[Measured]) -> Any:
    """Distributions of the documents' perplexities (Figures 3 and 9)."""
    figure, (axis,) = new_figure(width=7.5)
    spreads = [of.log_perplexity / np.log(10) for of in sets]
    every = np.concatenate(spreads)
    if not len(every):
        return figure
    low, high = np.quantile(every, [0.002, 0.998]).tolist()
    edges = np.linspace(low - 0.01, high + 0.01, 60)
    for number, (of, spread) in enumerate(zip(sets, spreads, strict=True)):
        if not len(spread):
            continue
        shares = np.histogram(spread, edges)[0] / len(spread)
        axis.stairs(
            100 * shares, edges, color=color_of(number), fill=True, alpha=0.3, label=of.name
        )
        axis.stairs(100 * shares, edges, color=color_of(number), ls=LINES[number % 4], lw=1.3)
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = [math.log10(step * 10.0**decade) for decade in decades for step in (1, 3)]
    axis.set_xticks([tick for tick in ticks if low <= tick <= high])
    axis.xaxis.set_major_formatter(lambda x, _: f"{10**x:,.3g}" if x < 3 else f"{10**x:,.0f}")
    axis.set_xlabel("perplexity of the document (log scale)")
    axis.set_ylabel("% of documents")
    axis.legend(frameon=False, fontsize=8)
    return figure


def draw_buckets(sets: Sequence[Measured]) -> Any:
    """How n-grams fill 10,000 hash buckets, the fullest first (Figure 5)."""
    figure, axes = new_figure(2, width=5.4, height=3.8)
    for axis, n, name in zip(axes, (1, 2), ("unigrams", "bigrams"), strict=True):
        for number, of in enumerate(sets):
            counts = np.sort(of.ngrams.counts[n].sum(0))[::-1]
            share = np.where(counts > 0, 100 * counts / max(counts.sum(), 1), np.nan)
            axis.plot(
                np.arange(1, NUM_BUCKETS + 1), share, LINES[number % 4],
                color=color_of(number), label=of.name, lw=1.6,
            )  # fmt: skip
        axis.axhline(100 / NUM_BUCKETS, color="grey", lw=0.8)
        log_scale(axis, x=True, y=True)
        axis.set_xlabel(f"buckets of {name}, the fullest first")
        axis.set_ylabel(f"% of {name}")
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def draw_bigrams(sets: Sequence[Measured], reader: Reader) -> Any:
    """The 64 most frequent bigrams of each set; a line below the 40th (Figures 10 and 11)."""
    few, many = TOP_BIGRAMS
    figure, axes = _panels(sets, height=0.13 * many + 1)
    for which, (axis, of) in enumerate(zip(axes, sets, strict=False)):
        top = of.ngrams.top_bigrams(many)
        total = max(int(of.ngrams.counts[2].sum()), 1)
        names = [bigram_text(reader, pair) for pair, _ in top]
        places = np.arange(len(top))
        axis.barh(places, [100 * count / total for _, count in top], color=color_of(which))
        axis.set_yticks(places, names, fontsize=6, parse_math=False)
        axis.invert_yaxis()
        axis.margins(y=0.01)
        if len(top) > few:
            axis.axhline(few - 0.5, color="grey", lw=0.8, ls="--")
        shares = " ".join(f"top {n}: {of.ngrams.top_share(n):.1%}" for n in TOP_BIGRAMS)
        axis.set_title(f"{of.name}, {shares}", fontsize=9)
        axis.set_xlabel("% of bigrams")
    return figure


def bigram_text(reader: Reader, pair: tuple[int, int]) -> str:
    """Two tokens as one reads them, with blanks and line feeds to be seen."""
    text = "".join(reader.piece(token) for token in pair)
    return "".join(
        "\N{OPEN BOX}" if letter == " " else letter if letter.isprintable() else repr(letter)[1:-1]
        for letter in text
    )


def embedding_map(sets: Sequence[Measured], method: str, *, seed: int = 0) -> list[Array]:
    """Mean hidden states of documents on a plane (Figure 4): (n, 2) for each set.

    Args:
        sets: whose sampled documents have states.
        method: "pca", or "tsne", which needs scikit-learn.
        seed: of t-SNE.

    Raises:
        ValueError: fewer than three documents have hidden states.
    """
    groups = [[one.state for one in of.sample if one.state is not None][:EMBEDDED] for of in sets]
    if sum(map(len, groups)) < 3:
        raise ValueError("a map needs the hidden states of three documents or more")
    points = np.concatenate([np.stack(group) for group in groups if group]).astype(np.float64)
    # By NumPy: to import scikit-learn takes longer than all else that the map needs.
    left, sizes, _ = np.linalg.svd(points - points.mean(0), full_matrices=False)
    points = (left * sizes)[:, : 2 if method == "pca" else _BEFORE_TSNE]
    if method == "tsne":
        from sklearn.manifold import TSNE  # type: ignore[import-untyped]

        perplexity = min(30.0, (len(points) - 1) / 3)
        points = TSNE(2, perplexity=perplexity, random_state=seed, init="pca").fit_transform(points)
    return np.split(points, np.cumsum([len(group) for group in groups])[:-1])


def draw_map(sets: Sequence[Measured], points: Sequence[Array], method: str) -> Any:
    """Documents by their mean hidden states (Figure 4)."""
    figure, (axis,) = new_figure(width=6.4, height=5.4)
    marks = "osD^vP"
    for number, (of, of_set) in enumerate(zip(sets, points, strict=True)):
        axis.scatter(
            of_set[:, 0], of_set[:, 1], s=9, alpha=0.55, color=color_of(number), lw=0,
            marker=marks[number % len(marks)], label=of.name,
        )  # fmt: skip
    axis.set_xticks([])
    axis.set_yticks([])
    name = {"pca": "PCA", "tsne": "t-SNE"}[method]
    axis.set_title(f"{name} of the documents' mean hidden states", fontsize=10)
    axis.legend(frameon=False, fontsize=8, markerscale=2)
    return figure


def draw_whatif(sets: Sequence[Measured]) -> Any:
    """What the settings of Tables 5 to 7 would change."""
    found = [of.whatif.results() for of in sets]
    names = [f"{one['table']}: {one['setting']}" for one in found[0]]
    figure, axes = new_figure(2, width=5.4, height=0.3 * len(names) + 1.2)
    places = np.arange(len(names))
    height = 0.8 / len(sets)
    for axis, key, label in (
        (axes[0], "changed_share", "% of tokens that would change"),
        (axes[1], "kl", "KL(edited || original), nats a token"),
    ):
        scale = 100 if key == "changed_share" else 1
        for number, (of, rows) in enumerate(zip(sets, found, strict=True)):
            values = [max(scale * one[key], 1e-6) for one in rows]
            errors = [1.96 * scale * one[f"{key}_error"] for one in rows]
            axis.barh(
                places + (number + 0.5) * height - 0.4, values, height, label=of.name,
                color=color_of(number), xerr=errors, error_kw={"lw": 0.8},
            )  # fmt: skip
        axis.set_yticks(places, names, fontsize=7)
        axis.invert_yaxis()
        log_scale(axis, x=True)
        axis.margins(y=0.01)
        axis.tick_params(axis="x", labelsize=7)
        axis.set_xlim(left=1e-5)
        axis.set_xlabel(label)
    axes[0].legend(frameon=False, fontsize=7)
    return figure
