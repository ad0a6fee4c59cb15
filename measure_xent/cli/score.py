"""``measure-xent score``: how good predictions in files are, overall, by class and by group, with intervals."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import DataSet, open_dataset, parts
from .predictions import Names
from .terminal import CommandError, keep_compiled, positive
from .totals import BAD, SHOWN, Faults, Scoring, Sums, Totals

PARTS = 4  # for each worker, so that one that is slower does not keep the others waiting
LARGEST = 256 << 20  # bytes of a part
EPILOG = """
A file holds an array of predictions [rows, classes] (or more row axes) named logits, log_probs or probs, and labels [rows],
numbers of classes or words; also weights [rows] and groups [rows], if there are. A table has a column of lists, or a numeric
column a class. Words are what the columns are named after, as in prob_setosa, or else the classes in alphabetical order. One
number a row, or one column, is that of the second of two classes.

Several files, a glob in quotes, a folder, or URLs of fsspec (s3://, gs://, https://; what the protocol needs has to be
installed) are one data set. --compare scores two models on the same rows in the same order, and their difference row by row.
--workers shares the rows out to processes of this machine, --scheduler to a Dask cluster, whose workers see the same files and
have this package. A part whose worker is lost is done again.

Every figure is an integral against the rows' empirical measure, weights included. Intervals are of 95 %: for means by their
standard error, for the calibration error by resampling the bins. Rows whose label is --ignore-index, or whose weight is 0, do
not count. If a row that counts holds a NaN, or a label outside the classes, or no probabilities, all such rows are counted and
the first named, there are no figures, and the exit status is 1. The program that a file's shape is compiled to is kept in
~/.cache/measure-xent for the next of its kind, or where JAX_COMPILATION_CACHE_DIR says.

examples:
  measure-xent score predictions.npz
  measure-xent score test.parquet --predictions probs --labels species --groups site --json
  measure-xent score lm.safetensors --top-k 5 --plot calibration.png
  measure-xent score 'runs/7/part-*.parquet' --workers 4
  measure-xent score --compare old.npz new.npz
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "score",
        help="score predictions in files: cross-entropy, accuracy, calibration",
        description="Scores predictions in npz, safetensors, csv or parquet files, a block of rows at a time.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="a file, glob, folder or URL; several are one data set"
    )
    parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two models on the same rows, each as FILE")
    parser.add_argument("--workers", type=positive(int, at_most=1024), metavar="N", help="processes of this machine")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster, as in tcp://10.0.0.1:8786")
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
    parser.add_argument(
        "--block", type=positive(float, at_most=1 << 20), default=16, metavar="MIB", help="read at a time (default 16)"
    )
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="write the reliability diagram")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if bool(arguments.files) == bool(arguments.compare):
        raise CommandError("score: either FILE, one or more, or --compare A B")
    if arguments.workers and arguments.scheduler:
        raise CommandError("score: either --workers, of this machine, or --scheduler, whose workers are there")
    keep_compiled()
    names = Names(arguments.predictions, arguments.kind, arguments.labels, arguments.weights, arguments.groups)
    texts = [[text] for text in arguments.compare or ()] or [arguments.files]
    sets = [open_dataset(each, names, int(arguments.block * 2**20)) for each in texts]
    class_names = _one_of(sets)
    scoring = Scoring(
        tuple(s.reading for s in sets),
        tuple(s.kind for s in sets),
        arguments.ignore_index,
        arguments.top_k,
        arguments.bins,
    )
    totals = total(sets, scoring, arguments.workers, arguments.scheduler)
    report = reported(sets, totals, class_names, arguments.top_k)
    if arguments.plot is not None:
        from .figures import reliability_report

        models = [report["overall"]] if len(sets) == 1 else [report["overall"][model] for model in "ab"]
        try:
            reliability_report(arguments.plot, [s.title for s in sets], totals.overall[0].bins, models)
        except (OSError, ValueError) as error:
            raise CommandError(f"--plot {arguments.plot}: cannot be written: {error}") from None
        print(f"wrote {arguments.plot}", file=sys.stderr)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)
    return 0


def _one_of(sets: Sequence[DataSet]) -> tuple[str, ...] | None:
    """The names of the classes, which two models share.

    Raises:
        CommandError: they have other classes, or another number of rows.
    """
    a, b = sets[0], sets[-1]
    if a.classes != b.classes:
        raise CommandError(f"{a.title} has {a.classes} classes, {b.title} {b.classes}")
    named, others = a.reading.class_names, b.reading.class_names
    if named and others and named != others:
        raise CommandError(f"{a.title} and {b.title}: classes are not the same, or in another order")
    return named or others


def total(sets: Sequence[DataSet], scoring: Scoring, workers: int | None, scheduler: str | None) -> Totals:
    """The sums over all rows, by this process or by several.

    Raises:
        CommandError: a file is broken, or rows of it are; it names the first. Or none counts.
    """
    size = sum(s.size for s in sets)
    with bar(size) as done:
        if workers is None and scheduler is None:
            ((_, part),) = parts(sets, 1)
            totals = scoring.total(part, done)
        else:
            from . import cluster

            with cluster.cluster(workers, scheduler) as client:
                n = max(PARTS * sum(client.nthreads().values()), -(-size // LARGEST))
                at_least = max(s.reading.block_bytes for s in sets)
                shares = parts(sets, max(1, min(n, size // at_least)))
                totals = cluster.total(client, scoring, shares, done)
    if wrong := [
        _told(s, totals.rows, faults)
        for s, faults in zip(sets, totals.bad, strict=False)
        if any(f.count for f in faults)
    ]:
        raise CommandError("\n".join(wrong))
    if totals.overall is None or not totals.overall[0].mass:
        title = " and ".join(s.title for s in sets)
        if not totals.rows:
            raise CommandError(f"{title}: no rows")
        raise CommandError(f"{title}: none of its {totals.rows} rows counts: all are ignored or weigh 0")
    return totals


def _told(data: DataSet, rows: int, faults: Sequence[Faults]) -> str:
    """The bad rows of a model."""
    lines = []
    for name, fault in zip(BAD, faults, strict=True):
        if fault.count:
            by_file: dict[str, list[int]] = {}
            for path, row in fault.first:
                by_file.setdefault(path, []).append(row)
            more = ", …" if fault.count > len(fault.first) else ""
            within = lambda path: f"{path} " if len(data.files) > 1 else ""
            where = "; ".join(f"{within(path)}rows {', '.join(map(str, found))}" for path, found in by_file.items())
            lines.append(f"{fault.count} {name}: {where}{more}")
    each = " in each file" if len(data.files) > 1 else ""
    return f"{data.title}: of {rows} rows, counted from 0{each},\n  " + "\n  ".join(lines)


# ---- figures


def reported(sets: Sequence[DataSet], totals: Totals, names: tuple[str, ...] | None, top_k: int) -> dict[str, Any]:
    """What ``--json`` prints."""
    by_class = (
        {}
        if totals.by_class is None
        else {c: totals.by_class[c] for c in np.flatnonzero(totals.by_class.rows).tolist()}
    )
    of = figures if len(sets) == 1 else compared
    files = [[str(file.path) for file in s.files] for s in sets]
    overall = totals.overall[0]
    return {
        **(
            {"files": files[0], "kind": sets[0].kind}
            if len(sets) == 1
            else {"compare": dict(zip("ab", files, strict=True))}
        ),
        "classes": sets[0].classes,
        "top_k": top_k,
        "rows_ignored": totals.rows - int(overall.rows),
        "overall": of(overall),
        "by_class": {names[c] if names else str(c): of(s) for c, s in by_class.items()},
        "by_group": {g: of(s) for g, s in (totals.by_group or {}).items() if s.rows},
    }


MEANS = ("nats", "accuracy", "top_k_accuracy")


def compared(s: Sums) -> dict[str, Any]:
    """Figures of two models, and the differences of their means, by rows: the second's less the first's."""
    mean, low, high = means(s, 2)
    numbers = zip(MEANS, mean, low, high, strict=True)
    difference = {k: v for name, m, a, b in numbers for k, v in ((name, _number(m)), (f"{name}_interval", _ends(a, b)))}
    return {
        "rows": int(s.rows),
        "mass": float(s.mass),
        "a": figures(s, 0),
        "b": figures(s, 1),
        "difference": difference,
    }


def means(s: Sums, model: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The means of a model's figures, and the ends of their 95 % intervals."""
    moments = s.moments[model]
    with np.errstate(invalid="ignore", over="ignore"):  # an infinite mean has no interval
        mean = moments[:, 0] / s.mass
        # Of a ratio of sums, whose weights are random too: Σ w² (f − mean)² / (Σ w)².
        square = moments[:, 2] - 2 * mean * moments[:, 1] + mean**2 * s.square
        half = 1.959964 * np.sqrt(np.maximum(square, 0)) / s.mass if s.rows > 1 else np.full(3, math.nan)
        return mean, mean - half, mean + half


def figures(s: Sums, model: int = 0) -> dict[str, Any]:
    """Means and calibration with their intervals."""
    mean, low, high = means(s, model)
    with np.errstate(invalid="ignore", over="ignore"):  # of an infinite mean the exponential is infinite
        perplexity = [np.exp(x) for x in (mean[0], np.maximum(low[0], 0), high[0])]
    bins = s.bins[model]
    # No figure is less than 0, and no share more than 1.
    bounded = lambda *ends, most=1.0: _ends(*np.clip(ends, 0, most))
    gap = (bins[:, 2] - bins[:, 1]) / s.mass
    noise = np.sqrt(bins[:, 3]) / s.mass
    # Noise makes gaps larger: what it adds to them here, it has added to those of the file.
    error = float(np.abs(gap).sum())
    drawn = np.abs(gap + noise * np.random.default_rng(0).normal(size=(2000, len(gap)))).sum(-1)
    score = float(np.sum(bins[:, 4] - 2 * bins[:, 5] + bins[:, 2]) / s.mass)
    return {
        "rows": int(s.rows),
        "mass": float(s.mass),
        "nats": _number(mean[0]),
        "nats_interval": bounded(low[0], high[0], most=math.inf),
        "bits": _number(mean[0] / math.log(2)),
        "perplexity": _number(perplexity[0]),
        "perplexity_interval": _ends(*perplexity[1:]),
        "accuracy": _number(mean[1]),
        "accuracy_interval": bounded(low[1], high[1]),
        "top_k_accuracy": _number(mean[2]),
        "top_k_accuracy_interval": bounded(low[2], high[2]),
        "calibration_error": _number(error),
        "calibration_error_interval": bounded(*(2 * error - np.quantile(drawn, [0.975, 0.025]))),
        "brier_of_the_mode": _number(score),
    }


def _ends(*ends: Any) -> list[float | str | None]:
    return [_number(x) for x in ends]


def _number(x: Any) -> float | str | None:
    """x for JSON, which has no infinity: "inf"; None where there is no interval."""
    return float(x) if math.isfinite(x) else None if math.isnan(x) else str(float(x))


# ---- the terminal


@contextmanager
def bar(size: int) -> Iterator[Callable[[int], None]]:
    """A progress bar of so many bytes; what it gives is called with those that are done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading", total=size)
        yield lambda n: progress.advance(task, n)


def show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    both = "compare" in report
    if both:
        what = "; ".join(f"{model.upper()}: {_files(files)}" for model, files in report["compare"].items())
    else:
        what = f"{_files(report['files'])}: {report['kind']}"
    table = Table(title=f"{escape(what)}; {report['classes']} classes, 95 % intervals", title_justify="left")
    top = f"top {report['top_k']}"
    if both:
        of_two = [f"{name} {model}" for name in ("nats", "accuracy") for model in ("A", "B", "B − A")]
        heads, cells, key = ["", "rows", *of_two], _cells_of_two, lambda part: part["difference"]["nats"]
    else:
        heads = ["", "rows", "nats", "bits", "perplexity", "accuracy", top, "calibration error"]
        cells, key = _cells, lambda part: part["nats"]
    for head in heads:
        table.add_column(head, justify="left" if head == "" else "right", overflow="fold")
    add = lambda name, part: table.add_row(name, f"{part['rows']}", *cells(part))
    add("overall", report["overall"])
    for title, of_parts in (("group", report["by_group"]), ("class", report["by_class"])):
        table.add_section()
        worst = sorted(of_parts.items(), key=lambda item: -_sortable(key(item[1])))
        for name, part in worst if len(worst) <= 2 * SHOWN else worst[:SHOWN]:
            add(escape(f"{title} {name}"), part)
        if len(worst) > 2 * SHOWN:
            less = "a smaller difference" if both else "fewer nats"
            table.add_row(f"[dim]… {len(worst) - SHOWN} more with {less}; all in --json[/]")
    if report["rows_ignored"]:
        table.caption = f"{report['rows_ignored']} more rows do not count: ignored, or of weight 0"
        table.caption_justify = "left"
    console = Console(file=sys.stdout)
    Console(file=sys.stdout, width=console.width if console.is_terminal else 120).print(table)


def _files(files: Sequence[str]) -> str:
    return files[0] if len(files) == 1 else f"{len(files)} files, {files[0]} to {Path(files[-1]).name}"


def _cells(part: dict[str, Any]) -> Sequence[str]:
    interval = part["calibration_error_interval"]
    return (
        _ranged(part, "nats"),
        _said(part["bits"]),
        _said(part["perplexity"]),
        _ranged(part, "accuracy", "{:.1%}"),
        _ranged(part, "top_k_accuracy", "{:.1%}"),
        f"{_said(part['calibration_error'])} [dim]{'–'.join(map('{:.2g}'.format, interval))}[/]",
    )


def _cells_of_two(part: dict[str, Any]) -> Iterator[str]:
    for name in MEANS[:2]:
        shown = "{:.4g}" if name == "nats" else "{:.1%}"
        yield from (_said(part[model][name], shown) for model in "ab")
        yield _ranged(part["difference"], name, shown.replace(":", ":+"))


def _said(x: Any, shown: str = "{:.4g}") -> str:
    return "–" if x is None else x if isinstance(x, str) else shown.format(x)


def _ranged(part: dict[str, Any], name: str, shown: str = "{:.4g}") -> str:
    """The figure with the larger half of its interval."""
    low, high = part[f"{name}_interval"]
    if not (isinstance(low, float) and isinstance(high, float)):
        return _said(part[name], shown)
    digits = "{:.1%}" if "%" in shown else "{:.2g}"
    return f"{_said(part[name], shown)} [dim]± {digits.format(max(high - part[name], part[name] - low))}[/]"


def _sortable(nats: Any) -> float:
    return -math.inf if nats is None else float(nats)
