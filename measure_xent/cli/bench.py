"""``measure-xent bench``: cross-entropy on this machine, beside its peers and the limit of its memory."""

import argparse
import importlib.util
import json
import re
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import measure_xent as mx

from . import CommandError

EPSILON = 0.1  # of label smoothing
WIDTH = 256  # features of the matmul that makes the logits
SHAPES = ["65536x1000", "2048x32000", "262144x10"]
OPERATIONS = {
    "value": "one loss a row",
    "gradient": "the mean loss and its gradient in the logits",
    "smoothed": f"the same with labels smoothed by {EPSILON}",
    "matmul": f"the mean loss and its gradients, logits made by a matmul over {WIDTH} features",
}
HEAD_SHAPES = ["2048x256x32000"]
HEAD_OPERATIONS = {
    "value": "the mean loss",
    "gradient": "the mean loss and its gradients in hidden and weight",
    "smoothed": f"the same with labels smoothed by {EPSILON}",
    "each": "a loss a token and the gradients under a cotangent for each",
}
EPILOG = """
"rows" are losses of logits that exist, "head" those of hidden @ weight, whose logits need not. Ratios are ours over theirs,
of medians of interleaved runs: under 1 is faster than the peer. The limit is a pure read of the logits for a value, a read
and a write for a gradient, three matmuls for the matmul and the head (one for its value). Temporaries are the compiler's
own count, what the program needs beside its arguments and results.

examples:
  measure-xent bench
  measure-xent bench --shapes 4096x50257 --dtypes bfloat16 --operations value gradient --json
  measure-xent bench head --shapes 1024x512x50257
"""


class Figure(NamedTuple):
    """One row of the table: milliseconds by contestant, temporaries in MiB by contestant."""

    operation: str
    shape: str
    dtype: str
    milliseconds: dict[str, float]
    temporaries: dict[str, float]


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="time cross-entropy on this machine beside optax, torch and the limit",
        description="Time cross-entropy on this machine: ours, optax, torch where it is installed, and the limit.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("what", nargs="?", choices=["rows", "head"], default="rows", help="(%(default)s)")
    add(
        "--shapes",
        nargs="+",
        type=_shape,
        metavar="SHAPE",
        help=f"ROWSxCLASSES ({' '.join(SHAPES)}), of the head TOKENSxFEATURESxCLASSES ({' '.join(HEAD_SHAPES)})",
    )
    add("--dtypes", nargs="+", choices=["float32", "bfloat16", "float16"], default=["float32"], help="(float32)")
    add(
        "--operations",
        nargs="+",
        choices=OPERATIONS | HEAD_OPERATIONS,
        help="; ".join(map(": ".join, OPERATIONS.items()))
        + "; of the head "
        + "; ".join(map(": ".join, HEAD_OPERATIONS.items())),
    )
    add("--repeats", type=int, default=7, help="counted runs of each contestant, in turn (%(default)s)")
    add("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measures every combination and prints the table."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    head = arguments.what == "head"
    operations, shapes = (HEAD_OPERATIONS, HEAD_SHAPES) if head else (OPERATIONS, SHAPES)
    asked = arguments.operations or list(operations), arguments.shapes or shapes
    for operation in asked[0]:
        if operation not in operations:
            raise CommandError(f"--operations {operation}: bench {arguments.what} has {', '.join(operations)}")
    for shape in asked[1]:
        if len(shape.split("x")) != 2 + head:
            form = "TOKENSxFEATURESxCLASSES" if head else "ROWSxCLASSES"
            raise CommandError(f"--shapes {shape}: bench {arguments.what} takes {form}")
    cases = [(o, s, d) for o in asked[0] for s in asked[1] for d in arguments.dtypes]
    figures = []
    with Progress(console=console) as progress:
        bar = progress.add_task("", total=len(cases))
        for operation, shape, dtype in cases:
            progress.update(bar, description=f"{operation} [{shape}] {dtype}")
            figures.append((measure_head if head else measure)(operation, shape, dtype, arguments.repeats))
            progress.advance(bar)
    for peer in ["torch", *(["tokamax"] if head else [])]:
        if not importlib.util.find_spec(peer):
            console.print(f"{peer} is not installed: its column is missing")
    device = jax.devices()[0]
    versions = {"jax": jax.__version__, "optax": optax.__version__, "device": f"{device.platform} {device.device_kind}"}
    if arguments.json:
        print(json.dumps({"versions": versions, "figures": [figure._asdict() for figure in figures]}, indent=1))
    else:
        print_table(figures, versions)
    return 0


def measure(operation: str, shape: str, dtype: str, repeats: int) -> Figure:
    """Medians of interleaved runs, and temporaries, of every contestant."""
    rows, classes = map(int, shape.split("x"))
    key = jax.random.key(0)
    labels = jax.random.randint(key, (rows,), 0, classes)
    if operation == "matmul":
        hidden = jax.random.normal(key, (rows, WIDTH), dtype)
        operands = hidden, jax.random.normal(key, (WIDTH, classes), dtype) / WIDTH**0.5
    else:
        operands = (3 * jax.random.normal(key, (rows, classes), dtype),)
    torch = torch_call(operation, [np.asarray(x.astype(jnp.float32)) for x in operands], np.asarray(labels), dtype)
    return Figure(operation, shape, dtype, *race(dict(contestants(operation)), (*operands, labels), torch, repeats))


def measure_head(operation: str, shape: str, dtype: str, repeats: int) -> Figure:
    """The same of the head, whose operands are hidden states and a weight."""
    tokens, features, classes = map(int, shape.split("x"))
    key = jax.random.key(0)
    labels = jax.random.randint(key, (tokens,), 0, classes)
    hidden = jax.random.normal(key, (tokens, features), dtype)
    weight = jax.random.normal(key, (features, classes), dtype) / features**0.5
    torch = torch_head_calls(operation, hidden, weight, labels, dtype)
    contest = head_contestants(operation, jnp.linspace(-1, 1, tokens))
    return Figure(operation, shape, dtype, *race(contest, (hidden, weight, labels), torch, repeats))


def race(
    contestants: dict[str, Callable], operands: tuple, others: dict[str, Callable], repeats: int
) -> tuple[dict[str, float], dict[str, float]]:
    """(milliseconds, temporaries in MiB): medians of interleaved runs of jitted contestants and of others as they are."""
    programs = {name: jax.jit(f).lower(*operands).compile() for name, f in contestants.items()}
    mib = {name: p.memory_analysis().temp_size_in_bytes / 2**20 for name, p in programs.items() if name != "limit"}
    calls = {name: lambda p=p: jax.block_until_ready(p(*operands)) for name, p in programs.items()} | others
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:  # the first warms up
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(t) for name, t in times.items()}, mib


def contestants(operation: str) -> Iterator[tuple[str, Callable]]:
    """(name, function of the operands and labels): ours, optax's, and the limit."""

    def ours(z, y):
        return mx.cross_entropy(mx.Dirac(y), mx.Categorical(z))

    def ours_smoothed(z, y):
        target = (1 - EPSILON) * mx.Dirac(y) + EPSILON * mx.DiscreteUniform(z.shape[-1])
        return mx.cross_entropy(target, mx.Categorical(z))

    optax_s = optax.losses.softmax_cross_entropy_with_integer_labels

    def optax_smoothed(z, y):
        return optax.losses.softmax_cross_entropy(
            z, optax.losses.smooth_labels(jax.nn.one_hot(y, z.shape[-1]), EPSILON)
        )

    def with_gradient(loss):
        return lambda z, y: jax.value_and_grad(lambda z: loss(z, y).mean())(z)

    def with_matmul(loss):
        return lambda h, w, y: jax.value_and_grad(lambda h, w: loss(h @ w, y).mean(), (0, 1))(h, w)

    match operation:
        case "value":
            yield from {"ours": ours, "optax": optax_s, "limit": lambda z, y: z.max(-1)}.items()
        case "gradient":
            yield from {
                "ours": with_gradient(ours),
                "optax": with_gradient(optax_s),
                "limit": lambda z, y: 2 * z,
            }.items()
        case "smoothed":
            yield "ours", with_gradient(ours_smoothed)
            yield "optax", with_gradient(optax_smoothed)
            yield "limit", lambda z, y: 2 * z
        case "matmul":
            yield "ours", with_matmul(ours)
            yield "optax", with_matmul(optax_s)
            yield "limit", lambda h, w, y: ((h @ w) @ w.T, h.T @ (h @ w))


def torch_call(operation: str, operands: list[np.ndarray], labels: np.ndarray, dtype: str) -> dict[str, Callable]:
    """torch's cross_entropy on the same numbers, or nothing where torch is not installed."""
    if not importlib.util.find_spec("torch"):
        return {}
    import torch  # pyright: ignore[reportMissingImports]

    tensors = [
        torch.from_numpy(x.copy()).to(getattr(torch, dtype)).requires_grad_(operation != "value") for x in operands
    ]
    target = torch.from_numpy(labels.copy()).long()
    smoothing = EPSILON if operation == "smoothed" else 0.0

    def call():
        logits = tensors[0] @ tensors[1] if operation == "matmul" else tensors[0]
        reduction = "none" if operation == "value" else "mean"
        loss = torch.nn.functional.cross_entropy(logits, target, reduction=reduction, label_smoothing=smoothing)
        if operation != "value":
            torch.autograd.grad(loss, tensors)

    return {"torch": call}


def head_contestants(operation: str, cotangent: jax.Array) -> dict[str, Callable]:
    """Functions of (hidden, weight, labels): ours, optax's on all the logits, tokamax's where it is installed, the limit."""

    def target(y, classes):
        smoothed = (1 - EPSILON) * mx.Dirac(y) + EPSILON * mx.DiscreteUniform(classes)
        return smoothed if operation == "smoothed" else mx.Dirac(y)

    def ours(h, w, y):
        Q = mx.LinearSoftmax(w)
        if operation == "each":
            return jnp.vdot(mx.cross_entropy(mx.Dirac(y), Q(h)), cotangent)
        return mx.cross_entropy(mx.joint(mx.Empirical(h), target(y, w.shape[1])), Q)

    def theirs(h, w, y):
        logits = h @ w
        if operation == "smoothed":
            targets = optax.losses.smooth_labels(jax.nn.one_hot(y, w.shape[1]), EPSILON)
            return optax.losses.softmax_cross_entropy(logits, targets).mean()
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.vdot(losses, cotangent) if operation == "each" else losses.mean()

    losses = {"ours": ours, "optax": theirs}
    if operation in ("value", "gradient") and importlib.util.find_spec("tokamax"):
        import tokamax  # pyright: ignore[reportMissingImports]
        from absl import flags

        flags.FLAGS.mark_as_parsed()  # else tokamax reads this command's line as its own
        losses["tokamax"] = lambda h, w, y: tokamax.linear_softmax_cross_entropy_loss(
            h, y, w, reduction="mean", implementation="xla"
        )
    if operation == "value":
        return losses | {"limit": lambda h, w, y: h @ w}
    gradients = {name: lambda h, w, y, f=f: jax.value_and_grad(f, (0, 1))(h, w, y) for name, f in losses.items()}
    return gradients | {"limit": lambda h, w, y: ((h @ w) @ w.T, h.T @ (h @ w))}


def torch_head_calls(operation: str, hidden: Any, weight: Any, labels: Any, dtype: str) -> dict[str, Callable]:
    """torch on all the logits, and its chunked linear_cross_entropy where it has one, on the same numbers."""
    if not importlib.util.find_spec("torch"):
        return {}
    import torch  # pyright: ignore[reportMissingImports]

    F = torch.nn.functional
    tensor = lambda x: torch.from_numpy(np.array(x.astype(jnp.float32))).to(getattr(torch, dtype))
    h, w = (tensor(x).requires_grad_(operation != "value") for x in (hidden, weight.T))
    y = torch.from_numpy(np.array(labels)).long()
    smoothing = EPSILON if operation == "smoothed" else 0.0
    cotangent = torch.linspace(-1, 1, len(y))

    def gradients(loss):
        if operation != "value":
            torch.autograd.grad(loss, (h, w))

    def dense():
        reduction = "none" if operation == "each" else "mean"
        loss = F.cross_entropy(h @ w.T, y, reduction=reduction, label_smoothing=smoothing)
        gradients(loss @ cotangent.to(loss.dtype) if operation == "each" else loss)

    calls = {"torch": dense}
    if hasattr(F, "linear_cross_entropy") and operation in ("value", "gradient"):
        options = torch.nn.LinearCrossEntropyOptions()
        calls["torch chunked"] = lambda: gradients(F.linear_cross_entropy(h, w, y, options=options))
    return calls


def print_table(figures: list[Figure], versions: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=", ".join(f"{k} {v}" for k, v in versions.items()), title_justify="left")
    seen = dict.fromkeys(name for figure in figures for name in figure.milliseconds if name != "limit")
    names = [*seen, "limit"]
    for column in ["operation", "shape", "dtype"]:
        table.add_column(column)
    for column in [*(f"{n} ms" for n in names), *(f"/ {n}" for n in names[1:]), "temporaries MiB", "optax's"]:
        table.add_column(column, justify="right")
    for figure in figures:
        ms = figure.milliseconds
        table.add_row(
            figure.operation,
            figure.shape,
            figure.dtype,
            *(f"{ms[n]:.1f}" if n in ms else "" for n in names),
            *(f"{ms['ours'] / ms[n]:.2f}" if n in ms else "" for n in names[1:]),
            *(f"{figure.temporaries[n]:.1f}" for n in ("ours", "optax")),
        )
    Console(width=max(14 * len(table.columns), Console().width)).print(table)


def _shape(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", text):
        raise argparse.ArgumentTypeError(f"such as 65536x1000, of the head such as 2048x256x32000, got {text}")
    return text
