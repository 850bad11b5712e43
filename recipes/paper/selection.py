"""Write a selection of a set of texts, to train on: section 2.2, Table 13, Figures 4B and 12.

python recipes/paper/selection.py dsir --pool FILE --target FILE --keep N --output NEW.jsonl
python recipes/paper/selection.py perplexity --pool FILE --prior NAME --keep N --output NEW.jsonl
python recipes/paper/selection.py density --pool FILE --keep N --output NEW.jsonl --figure NEW.png
python recipes/paper/selection.py classifier --pool FILE --keep N --output NEW.jsonl

FILE is whatever `toedit` commands read, with a column `text`. It is read two or three times.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # recipes: `common`, `paper`

import numpy as np
import numpy.typing as npt
import torch
from common.figures import new_figure, save_figure
from common.ngrams import NUM_BUCKETS, bucket_of

from paper.perplexity import token_losses
from toedit_collate.config.console import run_guarded
from toedit_collate.config.options import Group, add_prior, add_seed, positive, prior_options
from toedit_collate.config.priors import open_prior
from toedit_collate.data import open_data
from toedit_collate.data.files import whole
from toedit_collate.errors import UnusableError, first_line

Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]
Documents = Callable[[], Iterable[Ids]]  # reads the n-grams of all documents again

EDU_CLASSIFIER = "HuggingFaceFW/fineweb-edu-classifier"
ROWS, BUCKETS = 1000, 20_000  # of the sketch, as in section 2.2
HASHES_IN_ROW = 3
WIDTH = 1.0  # of a hash's cells, for rows of length 1
BATCH = 8


def ngrams_of(ids: Ids) -> Ids:
    """Uni- and bigrams of a document as buckets: (T,) whole numbers -> (2 T - 1,) int64."""
    return np.concatenate([bucket_of(ids), bucket_of((ids[:-1] << 32) | ids[1:])])


def words_of(text: str) -> Ids:
    """A number below 2^31 for each word and mark of a text."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    return np.array([zlib.crc32(word.encode()) >> 1 for word in words], dtype=np.int64)


def dsir(target: Documents, pool: Documents, seed: int = 0) -> Scores:
    """Data selection by importance resampling: the highest scores are a draw without replacement.

    Source: Xie et al., 2023, arXiv:2302.03169. An importance weight is the ratio of two models of
    hashed n-grams, that of the target and that of the pool.

    Args:
        target: n-grams of human text.
        pool: n-grams of the documents to select from.
        seed: of the draw.

    Returns:
        (n,) log weights plus Gumbel noise.
    """
    ours, theirs = (_frequencies(one()) for one in (target, pool))
    ratio = np.log(ours) - np.log(theirs)
    weights = np.array([ratio[grams].sum() for grams in pool()])
    return weights + np.random.default_rng(seed).gumbel(size=len(weights))


def _frequencies(documents: Iterable[Ids]) -> Scores:
    counts = np.ones(NUM_BUCKETS)
    for grams in documents:
        counts += np.bincount(grams, minlength=NUM_BUCKETS)
    return counts / counts.sum()


def density(pool: Documents, *, rows: int = ROWS, buckets: int = BUCKETS, seed: int = 0) -> Scores:
    """How dense a set is around each of its documents: the response values of Figure 12.

    Source: density sampling of Sachdeva et al., 2024, arXiv:2402.09668: a sketch of counts by
    locality-sensitive hashes (of Gaussian projections) estimates a kernel density.

    Args:
        pool: n-grams of n documents.
        rows: hash functions of the sketch.
        buckets: of each.
        seed: of the hash functions.

    Returns:
        (n,) the share of the documents in a document's bucket, averaged over the rows.
    """
    rng = np.random.default_rng(seed)
    shape = (rows, HASHES_IN_ROW)
    directions = rng.standard_normal((NUM_BUCKETS, *shape), dtype=np.float32)
    offsets = rng.random(shape)
    mixing = rng.integers(1, 2**31, size=shape) | 1

    def hashed(grams: Ids) -> Ids:
        found, counts = np.unique(grams, return_counts=True)
        length = np.sqrt((counts**2).sum()) or 1.0
        point = np.tensordot((counts / length).astype(np.float32), directions[found], 1)
        cells = np.floor(point / WIDTH + offsets).astype(np.int64)
        return ((cells * mixing).sum(-1) >> 3) % buckets

    every = np.arange(rows)
    sketch = np.zeros((rows, buckets), dtype=np.int64)
    number = 0
    for grams in pool():
        sketch[every, hashed(grams)] += 1
        number += 1
    return np.array([sketch[every, hashed(grams)].mean() for grams in pool()]) / max(number, 1)


def rare_first(densities: Scores, seed: int = 0) -> Scores:
    """Scores whose highest are a draw without replacement, inverse to the density."""
    return np.random.default_rng(seed).gumbel(size=len(densities)) - np.log(densities)


def perplexity(prior: Any, texts: Iterable[str]) -> Scores:
    """Mean -log P of each text's first tokens, as many as the prior reads, in nats; NaN: none."""
    found = []
    limit = min(prior.max_length or 2048, 2048)
    for some in _batches(texts):
        rows = prior.tokenizer(some, truncation=True, max_length=limit)["input_ids"]
        found += [float(losses.nanmean()) for losses in token_losses(prior, rows)]
    return np.array(found)


@torch.no_grad()
def educational(name: str, texts: Iterable[str]) -> Scores:
    """The score that a classifier gives each text, such as FineWeb-Edu's: 0 to 5.

    Args:
        name: of a sequence classifier; with several labels, the last one's log-odds count.
        texts: to score.

    Raises:
        UnusableError: it can't be loaded.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForSequenceClassification.from_pretrained(name).eval()
    except (OSError, ValueError) as error:
        raise UnusableError(
            f"--classifier {name}: can't be loaded ({first_line(error)}); name a folder or hub id "
            "of a sequence classifier with its tokenizer"
        ) from None
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    found: list[float] = []
    for some in _batches(texts):
        batch = tokenizer(some, padding=True, truncation=True, return_tensors="pt")
        logits = model(**batch.to(model.device)).logits.float()
        found += (logits[:, -1] - (logits[:, 0] if logits.shape[1] > 1 else 0)).tolist()
    return np.array(found)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    source = iter(texts)
    while some := list(islice(source, BATCH)):
        yield some


def highest(scores: Scores, number: int) -> npt.NDArray[np.bool_]:
    """Which documents have the highest scores, (n,) bool; a document with NaN is never kept."""
    order = np.argsort(-scores, kind="stable")[:number]  # NaN comes last
    kept = np.zeros(len(scores), dtype=bool)
    kept[order[~np.isnan(scores[order])]] = True
    return kept


def make_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        prog="selection.py", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("method", choices=("dsir", "perplexity", "density", "classifier"))
    parser.add_argument("--pool", required=True, metavar="FILE", help="texts to select from")
    parser.add_argument("--target", metavar="FILE", help="dsir: human texts")
    parser.add_argument("--keep", type=positive, required=True, metavar="N", help="documents")
    parser.add_argument("--output", type=Path, required=True, metavar="NEW.jsonl")
    parser.add_argument("--figure", type=Path, metavar="NEW.png", help="of the scores; and an SVG")
    parser.add_argument(
        "--easy", action="store_true",
        help="perplexity: keep the lowest; the authors keep the highest (their folder is `hard`)",
    )  # fmt: skip
    parser.add_argument(
        "--classifier", default=EDU_CLASSIFIER, metavar="NAME", help="default: %(default)s"
    )
    add_prior(parser)
    add_seed(Group(parser, "random numbers"), "draws and hash functions")
    return parser


def texts_in(path: str) -> Iterator[str]:
    """The column `text` of a file.

    Raises:
        UnusableError: a row has none.
    """
    for row, name in _rows(path):
        if not isinstance(row.get("text"), str):
            raise UnusableError(f"{path}, {name}: has no column `text`; name a file of texts")
        yield row["text"]


def _rows(path: str) -> Iterator[tuple[dict[str, Any], str]]:
    for batch in open_data(path).batches():
        yield from zip(batch.rows, batch.names, strict=True)


def select(args: argparse.Namespace) -> None:
    """Score all documents, and write those with the highest scores, in their order.

    Raises:
        UnusableError: an argument can't be used, or the data can't.
    """

    def ngrams(path: str) -> Documents:
        return lambda: (ngrams_of(words_of(text)) for text in texts_in(path))

    shown = None
    if args.method == "dsir":
        if args.target is None:
            raise UnusableError("dsir needs --target FILE, the human texts to come close to")
        scores = dsir(ngrams(args.target), ngrams(args.pool), args.seed)
    elif args.method == "density":
        shown = density(ngrams(args.pool), seed=args.seed)
        scores = rare_first(shown, args.seed)
    elif args.method == "perplexity":
        if args.prior is None:
            raise UnusableError("perplexity needs --prior NAME, the model that measures it")
        prior = open_prior(args.prior, **prior_options(args))
        scores = perplexity(prior, texts_in(args.pool)) * (-1 if args.easy else 1)
    else:
        scores = educational(args.classifier, texts_in(args.pool))
    kept = highest(scores, args.keep)
    with whole(args.output, "--output") as place, open(place, "w", encoding="utf-8") as file:
        for (row, _), keep in zip(_rows(args.pool), kept, strict=True):
            if keep:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{args.output}: {kept.sum():,} of {len(kept):,} documents, by {args.method}")
    if args.figure is not None:
        figure, (axis,) = new_figure()
        axis.hist(scores if shown is None else shown, bins=50)
        axis.set_xlabel("response value" if shown is not None else f"score ({args.method})")
        axis.set_ylabel("documents")
        save_figure(figure, args.figure.parent, args.figure.stem)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit status."""
    args = make_parser().parse_args(argv)
    return run_guarded("selection.py", lambda: select(args))


if __name__ == "__main__":
    sys.exit(main())
