"""``measure-xent score``: how good predictions on disk are, overall, by class and by group, with intervals."""

import argparse
import functools
import json
import math
import queue
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

import measure_xent as mx

from .predictions import Block, Names, Predictions, open_predictions
from .terminal import CommandError, keep_compiled, positive

_T = TypeVar("_T")

SHOWN = 10  # rows of a report of bad ones
BY_CLASS = 4096  # classes at most that are scored one by one
FLOAT_MAX = float(jnp.finfo(jnp.float32).max)
LOOSE = 1e-2  # how far from 1 the sum of a row of probabilities may be, for half precision and printed decimals
EPILOG = """
A file holds an array of predictions [rows, classes] (or more row axes) named logits, log_probs or probs, and labels [rows],
numbers of classes or words; also weights [rows] and groups [rows], if there are. A table has a column of lists, or a numeric
column a class. Words are what the columns are named after, as in prob_setosa, or else the classes in alphabetical order. One
number a row, or one column, is that of the second of two classes.

Every figure is an integral against the rows' empirical measure, weights included. Intervals are of 95 %: for means by their
standard error, for the calibration error by resampling the bins. Rows whose label is --ignore-index, or whose weight is 0, do
not count. If a row that counts holds a NaN, or a label outside the classes, or no probabilities, all such rows are counted and
the first named, there are no figures, and the exit status is 1. The program that a file's shape is compiled to is kept in
~/.cache/measure-xent for the next of its kind, or where JAX_COMPILATION_CACHE_DIR says.

examples:
  measure-xent score predictions.npz
  measure-xent score test.parquet --predictions probs --labels species --groups site --json
  measure-xent score lm.safetensors --top-k 5 --plot calibration.png
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "score",
        help="score predictions in a file: cross-entropy, accuracy, calibration",
        description="Scores predictions in an npz, safetensors, csv or parquet file, a block of rows at a time.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument(
        "--predictions",
        metavar="NAME",
        help="the array or column, or how columns of classes begin (default: logits, log_probs or probs)",
    )
    parser.add_argument(
        "--kind", choices=["logits", "log-probs", "probs"], help="what they are, if their name does not say"
    )
    parser.add_argument("--labels", metavar="NAME", help="the labels (default: labels, label, targets, target or y)")
    parser.add_argument("--weights", metavar="NAME", help="a weight a row (default: weights or weight, if there)")
    parser.add_argument("--groups", metavar="NAME", help="groups to score apart (default: groups or group, if there)")
    parser.add_argument(
        "--ignore-index", type=int, default=-100, help="the label of rows that do not count (default -100)"
    )
    parser.add_argument(
        "--top-k", type=positive(int), default=5, metavar="K", help="right if among the first K (default 5)"
    )
    parser.add_argument(
        "--bins", type=positive(int, at_most=10_000), default=15, help="of the calibration error (default 15)"
    )
    parser.add_argument("--block", type=positive(float), default=16, metavar="MIB", help="read at a time (default 16)")
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="write the reliability diagram")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    keep_compiled()
    names = Names(arguments.predictions, arguments.kind, arguments.labels, arguments.weights, arguments.groups)
    predictions = open_predictions(arguments.file, names, int(arguments.block * 2**20))
    totals = total(predictions, arguments.file, arguments.ignore_index, arguments.top_k, arguments.bins)
    report = {
        "file": str(arguments.file),
        "kind": predictions.kind,
        "classes": totals.classes,
        "top_k": arguments.top_k,
        "rows_ignored": totals.ignored,
        "overall": figures(totals.overall),
        "by_class": {
            predictions.names[c] if predictions.names else str(c): figures(s) for c, s in totals.by_class.items()
        },
        "by_group": {str(g): figures(s) for g, s in totals.by_group.items()},
    }
    if arguments.plot is not None:
        from .figures import reliability_report

        try:
            reliability_report(arguments.plot, totals.overall.bins, report["overall"])
        except (OSError, ValueError) as error:
            raise CommandError(f"--plot {arguments.plot}: cannot be written: {error}") from None
        print(f"wrote {arguments.plot}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)
    return 0


# ---- one row


@functools.partial(jax.jit, static_argnames=("kind", "top_k"))
def of_rows(
    predictions: Float[Array, "n V"], labels: Int[Array, "n"], weights: Float[Array, "n"], kind: str, top_k: int
) -> tuple[Float[Array, "4 n"], Bool[Array, "3 n"]]:
    """([nats, correct, among the first k, probability of the mode], what is wrong with a row, as BAD begins)."""
    P = weights * mx.Dirac(labels)  # a row of weight 0 may hold anything
    Q = mx.Categorical(probs=predictions) if kind == "probs" else mx.Categorical(predictions)
    nats, correct, confidence, log_mass = P.expect((-mx.log(Q), mx.correct(Q), mx.confidence(Q), mx.log_partition(Q)))
    own = jnp.take_along_axis(predictions, jnp.clip(labels, 0, predictions.shape[-1] - 1)[:, None], axis=-1)
    # How many are larger, by arithmetic, which goes into one pass: 0, or 1 for what is larger, be it by the least of floats.
    own = own.astype(jnp.float32)
    above = jnp.maximum(predictions.astype(jnp.float32) - jnp.clip(own, -FLOAT_MAX, FLOAT_MAX), 0)
    among = (jnp.sum(jnp.minimum(above * 2.0**126, 1), axis=-1) < top_k) | (own[:, 0] == jnp.inf)
    counts = weights != 0
    outside = counts & ((labels < 0) | (labels >= predictions.shape[-1]))
    if kind == "probs":
        mass, negative = jnp.sum(predictions.astype(jnp.float32), -1), jnp.any(predictions < 0, -1)
        improper, undefined = (jnp.abs(mass - 1) > LOOSE) | negative, jnp.isnan(mass)
    elif kind == "log-probs":
        improper, undefined = jnp.abs(jnp.expm1(log_mass)) > LOOSE, jnp.isnan(nats + confidence)
    else:
        improper, undefined = jnp.zeros_like(outside), jnp.isnan(nats + confidence)
    undefined &= counts & ~outside
    return (
        jnp.stack([nats, correct, jnp.where(counts & among, 1.0, 0.0), confidence]),
        jnp.stack([outside, undefined, counts & improper & ~undefined & ~outside]),
    )


BAD = (
    "labels outside the classes",
    "NaN in the predictions",
    f"rows that are not probabilities, of sum 1 to {LOOSE:g} and none negative (another --kind?)",
    "weights that are negative or not finite",
)


# ---- sums over rows


@dataclass(frozen=True)
class Sums:
    """What the rows of a part add up to, or of each of several parts on a leading axis; float64 sums, so that blocks add."""

    rows: np.ndarray  # that count
    mass: np.ndarray  # Σ w
    moments: np.ndarray  # [3 figures, (Σ w f, Σ w² f, Σ w² f²)], of nats, correct, among the first k
    square: np.ndarray  # Σ w²
    # [bins, (Σ w, Σ w p, Σ w c, Σ w² (c − p)², Σ w p², Σ w p c)], p the probability of the mode, c correct
    bins: np.ndarray

    def __add__(self, other: "Sums | None") -> "Sums":
        if other is None:
            return self
        return Sums(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __getitem__(self, i: int) -> "Sums":
        return Sums(*(a[i] for a in vars(self).values()))


class Totals(NamedTuple):
    classes: int
    ignored: int  # rows of weight 0, or with the label to ignore
    overall: Sums
    by_class: dict[int, Sums]
    by_group: dict[Any, Sums]


class Scored(NamedTuple):
    """A block's rows: labels, weights of 0 where a row does not count, and what ``of_rows`` gives, perhaps not yet."""

    block: Block
    labels: Int[np.ndarray, "n"]
    weights: Float[np.ndarray, "n"]
    rows: Float[Array, "4 size"]  # the first n of them
    faults: Bool[Array, "3 size"]
    wrong_weights: Bool[np.ndarray, "n"]

    @classmethod
    def of(cls, block: Block, kind: str, ignore_index: int, top_k: int, size: int) -> "Scored":
        """``size`` is that of the largest block: of another one the computation would be compiled again."""
        counts = block.labels != ignore_index
        given = np.ones(len(counts)) if block.weights is None else np.asarray(block.weights, np.float64)
        fine = (given >= 0) & np.isfinite(given)
        labels = np.clip(block.labels, -1, block.predictions.shape[1]).astype(np.int32)  # int64 would wrap without x64
        weights = np.where(counts & fine, given, 0)
        predictions = block.predictions
        if kind == "logits" and predictions.dtype.itemsize > 4:
            # In float32 logits far from 0 lose what they differ by.
            largest = np.max(predictions, axis=-1, keepdims=True)
            with np.errstate(over="ignore"):  # what float32 does not hold is −inf beside the largest
                predictions = (predictions - np.where(np.isfinite(largest), largest, 0)).astype(np.float32)
        n = len(labels)
        full = lambda x: np.pad(x, [(0, size - n), *[(0, 0)] * (x.ndim - 1)]) if n < size else x
        rows, faults = of_rows(*map(full, (predictions, labels, (weights != 0).astype(np.float32))), kind, top_k)
        return cls(block, labels, weights, rows, faults, counts & ~fine)


def sums(
    rows: Float[np.ndarray, "4 n"], w: Float[np.ndarray, "n"], part: Int[np.ndarray, "n"], parts: int, bins: int
) -> Sums:
    """The sums of each of several parts of the rows, on a leading axis."""
    count = lambda x, where=part, n=parts: np.bincount(where, x, n)
    *figures_, p = rows
    correct = figures_[1]
    moments = np.stack([np.stack([count(w * f), count(w * w * f), count(w * w * f * f)], -1) for f in figures_], -2)
    bin_of = part * bins + np.minimum((p * bins).astype(int), bins - 1)
    in_bins = (w, w * p, w * correct, (w * (correct - p)) ** 2, w * p * p, w * p * correct)
    binned = np.stack([count(x, bin_of, parts * bins).reshape(parts, bins) for x in in_bins], -1)
    return Sums(count((w != 0).astype(float)), count(w), moments, count(w * w), binned)


def total(predictions: Predictions, path: Path, ignore_index: int, top_k: int, bins: int) -> Totals:
    """Sums over the file, block by block; reading goes on while a block is computed.

    Raises:
        CommandError: the file is broken, or rows of it are; it names the first.
    """
    by_class, by_group, overall = None, {}, None
    bad: dict[str, list[int]] = {name: [] for name in BAD}
    n_bad, first, classes = dict.fromkeys(bad, 0), 0, 0

    def scored_blocks() -> Iterator[Scored]:
        size = 0
        for block in predictions.blocks():
            size = max(size, len(block.labels))
            yield Scored.of(block, predictions.kind, ignore_index, top_k, size)

    with bar(predictions.size) as (progress, task):
        for scored in read_ahead(scored_blocks()):
            n, classes = scored.block.predictions.shape
            rows, faults = (np.asarray(x)[:, :n] for x in (scored.rows, scored.faults))
            for name, where in zip(bad, (*faults, scored.wrong_weights), strict=True):
                n_bad[name] += int(where.sum())
                bad[name] += (first + np.flatnonzero(where)[: SHOWN - len(bad[name])]).tolist()
            if not any(n_bad.values()):
                within = functools.partial(sums, np.asarray(rows, np.float64), scored.weights, bins=bins)
                overall = within(np.zeros(n, int), 1) + overall
                if classes <= BY_CLASS:
                    by_class = within(np.clip(scored.labels, 0, classes - 1), classes) + by_class
                if scored.block.groups is not None:
                    keys, which = np.unique(scored.block.groups, return_inverse=True)
                    of_groups = within(which.ravel(), len(keys))
                    keys = ["nan" if key != key else key for key in keys.tolist()]  # a NaN is no key twice
                    by_group |= {key: of_groups[i] + by_group.get(key) for i, key in enumerate(keys)}
            first += n
            progress.update(task, completed=scored.block.bytes)
    if any(n_bad.values()):
        lines = [
            f"{n_bad[name]} {name}: rows {', '.join(map(str, rows))}{', …' if n_bad[name] > len(rows) else ''}"
            for name, rows in bad.items()
            if rows
        ]
        raise CommandError(f"{path}: of {first} rows, counted from 0,\n  " + "\n  ".join(lines))
    if overall is None or not overall[0].mass:
        raise CommandError(f"{path}: none of its {first} rows counts: all are ignored or weigh 0")
    parts = {} if by_class is None else {c: by_class[c] for c in np.flatnonzero(by_class.rows).tolist()}
    return Totals(classes, first - int(overall[0].rows), overall[0], parts, by_group)


def read_ahead(blocks: Iterator[_T]) -> Iterator[_T]:
    """The same, of which another thread takes the next meanwhile."""
    ready: queue.Queue = queue.Queue(maxsize=2)
    done = threading.Event()

    def put(item: Any) -> None:
        while not done.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def read() -> None:
        try:
            for block in blocks:
                put(block)
                if done.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    threading.Thread(target=read, daemon=True).start()
    try:
        while (block := ready.get()) is not None:
            if isinstance(block, BaseException):
                raise block
            yield block
    finally:
        done.set()


# ---- figures


def figures(s: Sums) -> dict[str, Any]:
    """Means and calibration with their intervals."""
    z = 1.959964
    with np.errstate(invalid="ignore", over="ignore"):  # an infinite mean has no interval; its exponential is infinite
        mean = s.moments[:, 0] / s.mass
        # Of a ratio of sums, whose weights are random too: Σ w² (f − mean)² / (Σ w)².
        square = s.moments[:, 2] - 2 * mean * s.moments[:, 1] + mean**2 * s.square
        half = z * np.sqrt(np.maximum(square, 0)) / s.mass if s.rows > 1 else np.full(3, math.nan)
        low, high = mean - half, mean + half
        perplexity = [np.exp(x) for x in (mean[0], np.maximum(low[0], 0), high[0])]
    # No figure is less than 0, and no share more than 1.
    bounded = lambda *ends, most=1.0: [_number(np.clip(x, 0, most)) for x in ends]
    gap = (s.bins[:, 2] - s.bins[:, 1]) / s.mass
    noise = np.sqrt(s.bins[:, 3]) / s.mass
    # Noise makes gaps larger: what it adds to them here, it has added to those of the file.
    error = float(np.abs(gap).sum())
    drawn = np.abs(gap + noise * np.random.default_rng(0).normal(size=(2000, len(gap)))).sum(-1)
    score = float(np.sum(s.bins[:, 4] - 2 * s.bins[:, 5] + s.bins[:, 2]) / s.mass)
    return {
        "rows": int(s.rows),
        "mass": float(s.mass),
        "nats": _number(mean[0]),
        "nats_interval": bounded(low[0], high[0], most=math.inf),
        "bits": _number(mean[0] / math.log(2)),
        "perplexity": _number(perplexity[0]),
        "perplexity_interval": [_number(x) for x in perplexity[1:]],
        "accuracy": _number(mean[1]),
        "accuracy_interval": bounded(low[1], high[1]),
        "top_k_accuracy": _number(mean[2]),
        "top_k_accuracy_interval": bounded(low[2], high[2]),
        "calibration_error": error,
        "calibration_error_interval": bounded(*(2 * error - np.quantile(drawn, [0.975, 0.025]))),
        "brier_of_the_mode": score,
    }


def _number(x: Any) -> float | str | None:
    """x for JSON, which has no infinity: "inf"; None where there is no interval."""
    return float(x) if math.isfinite(x) else None if math.isnan(x) else "inf"


# ---- the terminal


def bar(size: int) -> Any:
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    @contextmanager
    def started():
        columns = BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            yield progress, progress.add_task("reading", total=size)

    return started()


def show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=f"{report['file']}: {report['classes']} classes, {report['kind']}, 95 % intervals", title_justify="left"
    )
    heads = ("", "rows", "nats", "bits", "perplexity", "accuracy", f"top {report['top_k']}", "calibration error")
    for head in heads:
        table.add_column(head, justify="left" if head == "" else "right", overflow="fold")

    def number(x: Any, percent: bool = False) -> str:
        return "–" if x is None else x if isinstance(x, str) else f"{x:.1%}" if percent else f"{x:.4g}"

    def ranged(part: dict[str, Any], name: str, percent: bool = False) -> str:
        low, high = part[f"{name}_interval"]
        half = max(high - part[name], part[name] - low) if isinstance(high, float) else math.nan
        digits = f"{half:.1%}" if percent else f"{half:.2g}"
        return number(part[name], percent) + (f" [dim]± {digits}[/]" if math.isfinite(half) else "")

    def add(name: str, part: dict[str, Any]) -> None:
        table.add_row(
            name,
            f"{part['rows']}",
            ranged(part, "nats"),
            number(part["bits"]),
            number(part["perplexity"]),
            ranged(part, "accuracy", True),
            ranged(part, "top_k_accuracy", True),
            number(part["calibration_error"])
            + " [dim]"
            + "–".join(map("{:.2g}".format, part["calibration_error_interval"]))
            + "[/]",
        )

    add("overall", report["overall"])
    for title, parts in (("group", report["by_group"]), ("class", report["by_class"])):
        table.add_section()
        worst = sorted(parts.items(), key=lambda item: -_sortable(item[1]["nats"]))
        for name, part in worst if len(worst) <= 2 * SHOWN else worst[:SHOWN]:
            add(escape(f"{title} {name}"), part)
        if len(worst) > 2 * SHOWN:
            table.add_row(f"[dim]… {len(worst) - SHOWN} more with fewer nats; all in --json[/]")
    if report["rows_ignored"]:
        table.caption = f"{report['rows_ignored']} more rows do not count: ignored, or of weight 0"
        table.caption_justify = "left"
    console = Console(file=sys.stdout)
    Console(file=sys.stdout, width=console.width if console.is_terminal else 120).print(table)


def _sortable(nats: Any) -> float:
    return math.inf if isinstance(nats, str) else nats
