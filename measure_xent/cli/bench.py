"""``measure-xent bench``: cross-entropy on this machine, beside its peers and the limit of its memory."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import random
import re
import secrets
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from . import grid
from .contestants import HEAD_OPERATIONS, OPERATIONS, Case, Figure
from .target import TARGETS, compile_for
from .target import versions as versions_of
from .terminal import CommandError, positive
from .touch import calls, steps

# What is timed without being asked for something else: shapes, dtypes and operations by device and kind.
TABLES: dict[tuple[str, str], tuple[list[str], list[str], list[str]]] = {
    ("cpu", "rows"): (["65536x1000", "2048x32000", "262144x10"], ["float32"], list(OPERATIONS)),
    ("cpu", "head"): (["2048x256x32000"], ["float32"], [o for o in HEAD_OPERATIONS if o not in ("entropy", "master")]),
    ("gpu", "rows"): (["32768x128256"], ["bfloat16"], ["value", "gradient"]),
    ("gpu", "head"): (
        ["32768x2560x128256", "8192x2304x256000", "8192x4096x131072", "16384x2048x248320"],
        ["bfloat16"],
        ["gradient"],
    ),
}
# Errors beside float64 that are a defect and no rounding: of the loss, and of gradients that are rounded to their dtype.
BOUNDS = {"float32": (1e-3, 1e-2), "bfloat16": (1e-2, 2e-2), "float16": (1e-2, 1e-2)}
EPILOG = f"""
"rows" are losses of logits that exist, "head" those of hidden @ weight, whose logits need not; without either both are timed.
"rows --grid" has many shapes, short and long, odd and prime, and prints ratios to optax alone; its plot is a heat map.
"touch" is what a notebook feels: the first call outside of jit, the next ones, and what compiling a step takes.
"head --target" runs nothing: it is what the compiler of an accelerator says that need not be there: temporaries, the peak, and
on TPUs its estimate of cycles, loops as often as they run, without a head's fallbacks. For TPUs pip install libtpu, for GPUs
'jax[cuda13]'; there MEASURE_XENT_MOSAIC_GPU=1 in the environment is with the kernel for Hopper GPUs.
Ratios are ours over theirs, of medians of interleaved runs: under 1 is faster than the peer. The limit is a pure read of the
logits for a value, a read and a write for a gradient, three matmuls for the matmul and the head (one for its value).
Temporaries are the compiler's own count, what the program needs beside its arguments and results; peak is all three together.
The errors are ours beside float64, on rows drawn anew each time; beyond rounding, the command fails.

rows: {"; ".join(map(": ".join, OPERATIONS.items()))}
head: {"; ".join(map(": ".join, HEAD_OPERATIONS.items()))}

Peers that are not installed have no column: torch, on GPUs also cut-cross-entropy and liger-kernel, and tokamax.

examples:
  measure-xent bench
  measure-xent bench rows --shapes 4096x50257 --dtypes bfloat16 --operations value gradient --json
  measure-xent bench head --shapes 1024x512x50257 --plot bench.png
  measure-xent bench rows --grid --plot grid.png
  measure-xent bench --device gpu
  measure-xent bench head --target v5e v6e --operations gradient
  measure-xent bench touch
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="time cross-entropy on this machine beside optax, torch and the limit",
        description="Time cross-entropy on this machine: ours, optax, torch where it is installed, and the limit.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("what", nargs="?", choices=["rows", "head", "touch"], help="one table alone")
    add("--device", choices=["cpu", "gpu"], help="where to run, and whose shapes (JAX's default device)")
    add(
        "--target",
        nargs="+",
        choices=TARGETS,
        metavar="CHIP",
        help=f"compile a head for {', '.join(TARGETS)}, run nothing",
    )
    add("--shapes", nargs="+", type=_shape, metavar="SHAPE", help="ROWSxCLASSES, of the head TOKENSxFEATURESxCLASSES")
    add("--grid", action="store_true", help="rows of many shapes, ratios to optax alone")
    add("--dtypes", nargs="+", choices=list(BOUNDS), help="(float32, on a GPU bfloat16)")
    add("--operations", nargs="+", choices=OPERATIONS | HEAD_OPERATIONS, help="some of those named below")
    add("--repeats", type=positive(int), default=7, help="counted runs of each contestant, in turn (%(default)s)")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--plot", type=Path, metavar="PNG", help="draw times and memory")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measures every case, and prints the table."""
    from rich.console import Console
    from rich.progress import Progress

    # The memory of the GPU is torch's too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    console = Console(stderr=True)
    if arguments.target:
        return compiled(arguments, console)
    device = _device(arguments.device)
    if arguments.what == "touch":
        with jax.default_device(device):
            return touch(arguments, device)
    if arguments.grid and (arguments.what != "rows" or arguments.shapes):
        raise CommandError("--grid: bench rows --grid, without --shapes, which the grid names")
    cases = _cases(arguments, device.platform)
    figures = []
    with Progress(console=console) as progress, jax.default_device(device):
        bar = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(bar, description=f"{case.operation} [{case.shape}] {case.dtype}")
            figures.append(measure(case, arguments.repeats, device.platform))
            progress.advance(bar)
    head = any(case.is_head for case in cases)
    peers = ["torch", *(["tokamax"] if head else [])]
    peers += ["cut_cross_entropy", "liger_kernel"] if head and device.platform == "gpu" else []
    for peer in peers:
        if not importlib.util.find_spec(peer):
            console.print(f"{peer} is not installed: its column is missing")
    installed = ["jax", "optax", *(peer for peer in peers if importlib.util.find_spec(peer))]
    versions = {name: importlib.metadata.version(name.replace("_", "-")) for name in installed}
    versions["device"] = device.device_kind
    if arguments.json:
        print(json.dumps({"versions": versions, "figures": [figure._asdict() for figure in figures]}, indent=1))
    else:
        (grid.print_grid if arguments.grid else print_table)(figures, versions)
    if arguments.plot:
        from .figures import bench_report, grid_report

        try:
            (grid_report if arguments.grid else bench_report)(arguments.plot, figures, versions)
        except (OSError, ValueError) as error:
            raise CommandError(f"--plot {arguments.plot}: cannot be written: {error}") from None
    return 0


def compiled(arguments: argparse.Namespace, console: Any) -> int:
    """The table of what compilers say of a head."""
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    if arguments.what != "head" or arguments.device or arguments.plot:
        raise CommandError("--target: bench head --target CHIP, without --device and --plot; rows are memory's alone")
    cases = _cases(arguments, "gpu")
    figures = []
    with Progress(console=console) as progress:
        bar = progress.add_task("", total=len(cases) * len(arguments.target))
        for target in arguments.target:
            for case in cases:
                progress.update(bar, description=f"{target}: {case.operation} [{case.shape}] {case.dtype}")
                figures.append(compile_for(target, case))
                progress.advance(bar)
    known = {k: v for target in arguments.target for k, v in versions_of(target).items()}
    if arguments.json:
        print(json.dumps({"versions": known, "figures": [figure._asdict() for figure in figures]}, indent=1))
        return 0
    table = Table(title=", ".join(f"{k} {v}" for k, v in known.items()), title_justify="left")
    names = list(dict.fromkeys(name for figure in figures for name in figure.temporaries))
    for column in ("target", "operation", "shape", "dtype"):
        table.add_column(column)
    cycles = names if any(figure.megacycles for figure in figures) else []
    columns = [*(f"{n} Mcycles" for n in cycles), *(["/ optax"] if cycles else []), *(f"{n} MiB" for n in names)]
    for column in (*columns, "/ optax", "peak", "optax's"):
        table.add_column(column, justify="right")
    number = lambda figures, name, form: format(figures[name], form) if name in figures else ""
    ratio = lambda figures: f"{figures['ours'] / figures['optax']:.2f}" if {"ours", "optax"} <= set(figures) else ""
    for figure in figures:
        table.add_row(
            figure.target,
            figure.operation,
            figure.shape,
            figure.dtype,
            *(number(figure.megacycles, name, ".1f") for name in cycles),
            *([ratio(figure.megacycles)] if cycles else []),
            *(number(figure.temporaries, name, ".0f") for name in names),
            ratio(figure.temporaries),
            *(number(figure.peak, name, ".0f") for name in ("ours", "optax")),
        )
    Console(width=max(12 * len(table.columns), Console().width)).print(table)
    return 0


def touch(arguments: argparse.Namespace, device: Any) -> int:
    """The table of first calls."""
    from rich.console import Console
    from rich.table import Table

    for flag in ("shapes", "dtypes", "operations", "plot", "target"):
        if getattr(arguments, flag):
            raise CommandError(f"--{flag}: bench touch has one table")
    figures = [*calls(arguments.repeats), *steps()]
    versions = {name: importlib.metadata.version(name) for name in ("jax", "optax")} | {"device": device.device_kind}
    if arguments.json:
        print(json.dumps({"versions": versions, "figures": [figure._asdict() for figure in figures]}, indent=1))
        return 0
    table = Table(title=", ".join(f"{k} {v}" for k, v in versions.items()), title_justify="left")
    table.add_column("ms")
    for column in ("first", "again", "peer", "first", "again", "again / peer"):
        table.add_column(column, justify="right")
    for name, first, again, peer, peer_first, peer_again in figures:
        row = (
            f"{first:.0f}",
            f"{again:.1f}",
            peer,
            f"{peer_first:.0f}",
            f"{peer_again:.1f}",
            f"{again / peer_again:.1f}",
        )
        table.add_row(name, *row)
    Console(width=max(100, Console().width)).print(table)
    return 0


def _device(platform: str | None) -> Any:
    try:
        return jax.devices(platform)[0]
    except RuntimeError:
        found = ", ".join(sorted({d.platform for d in jax.devices()}))
        raise CommandError(
            f"--device {platform}: JAX sees none here, only {found}; for NVIDIA's, pip install 'jax[cuda13]'"
        ) from None


def _cases(arguments: argparse.Namespace, platform: str) -> list[Case]:
    kinds = [arguments.what] if arguments.what else ["rows", "head"]
    cases = []
    for kind in kinds:
        shapes, dtypes, operations = TABLES["gpu" if platform == "gpu" else "cpu", kind]
        known = HEAD_OPERATIONS if kind == "head" else OPERATIONS
        if arguments.shapes:
            shapes = [s for s in arguments.shapes if (s.count("x") == 2) == (kind == "head")]
        if arguments.grid:
            shapes, operations = grid.SHAPES, grid.OPERATIONS
        if arguments.operations:
            operations = [o for o in arguments.operations if o in known]
        cases += [Case(o, s, d) for o in operations for s in shapes for d in arguments.dtypes or dtypes]
    for flag, asked, taken in (
        ("--operations", arguments.operations, {case.operation for case in cases}),
        ("--shapes", arguments.shapes, {case.shape for case in cases}),
    ):
        for unused in [x for x in asked or [] if x not in taken]:
            of = " ".join(kinds)
            forms = {"rows": "ROWSxCLASSES", "head": "TOKENSxFEATURESxCLASSES"}
            known = {"rows": ", ".join(OPERATIONS), "head": ", ".join(HEAD_OPERATIONS)}
            takes = " or ".join((forms if flag == "--shapes" else known)[kind] for kind in kinds)
            raise CommandError(f"{flag} {unused}: bench {of} takes {takes}")
    return cases


def measure(case: Case, repeats: int, platform: str = "cpu") -> Figure:
    """Medians of interleaved runs, memory, and errors, of every contestant on the default device."""
    seed = secrets.randbits(31)
    off = case.errors(seed)
    for error, bound, what in zip(off, BOUNDS[case.dtype], ("loss", "gradient"), strict=True):
        if not error <= bound:
            raise CommandError(
                f"{case.operation} [{case.shape}] {case.dtype}: the {what} is off by {error:.2g}, seed {seed}"
            )
    operands = case.operands(0)
    programs = {name: jax.jit(f).lower(*operands).compile() for name, f in case.contestants().items()}
    temporaries, peak = {}, {}
    for name, program in programs.items():
        if name != "limit":
            m = program.memory_analysis()
            temporaries[name] = m.temp_size_in_bytes / 2**20
            everything = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
            peak[name] = (everything - m.alias_size_in_bytes) / 2**20
    calls: dict[str, tuple[Callable, Callable]] = {
        name: (lambda p=p: p(*operands), jax.block_until_ready) for name, p in programs.items()
    }
    on_torch = case.torch_calls(operands, platform)
    if platform == "gpu" and on_torch:
        import torch  # pyright: ignore[reportMissingImports]

        for name, call in on_torch.items():
            torch.cuda.reset_peak_memory_stats()
            call()
            # The operands are JAX's memory.
            peak[name] = (torch.cuda.max_memory_allocated() + sum(x.nbytes for x in operands)) / 2**20
        wait = lambda _: torch.cuda.synchronize()
    else:
        wait = lambda _: None
    calls |= {name: (call, wait) for name, call in on_torch.items()}
    # A queue of calls hides what it takes to start one: the time is the device's. Short ones are nothing to a clock.
    short = 10**6 // (case.sizes[0] * case.sizes[-1])
    times = race(calls, repeats, in_a_row=5 if platform == "gpu" else min(max(short, 1), 100))
    return Figure(*case, times, temporaries, peak, *off)


def race(calls: dict[str, tuple[Callable, Callable]], repeats: int, in_a_row: int) -> dict[str, float]:
    """Milliseconds a call: medians of interleaved runs, each of so many calls and one wait."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    shuffled = random.Random(0)
    for turn in range(repeats + 1):
        # In an order of its own each turn: a peer's threads may spin for a while after it, on the next one's time.
        for name in shuffled.sample(list(calls), len(calls)):
            call, wait = calls[name]
            start, result = time.perf_counter(), None
            for _ in range(in_a_row):
                result = call()
            wait(result)
            if turn:  # the first warms up
                times[name].append(1e3 * (time.perf_counter() - start) / in_a_row)
    return {name: statistics.median(t) for name, t in times.items()}


def print_table(figures: list[Figure], versions: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=", ".join(f"{k} {v}" for k, v in versions.items()), title_justify="left")
    seen = dict.fromkeys(name for figure in figures for name in figure.milliseconds if name != "limit")
    names = [*seen, "limit"]
    peers = [name for name in names if any(name in figure.peak for figure in figures)]
    for column in ["operation", "shape", "dtype"]:
        table.add_column(column)
    memory = ["temporaries MiB", "optax's", *(f"peak MiB {n}" for n in peers)]
    for column in [*(f"{n} ms" for n in names), *(f"/ {n}" for n in names[1:]), *memory, "loss off by", "gradient"]:
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
            *(f"{figure.peak[n]:.0f}" if n in figure.peak else "" for n in peers),
            f"{figure.loss_error:.0e}",
            f"{figure.gradient_error:.0e}" if figure.operation != "value" else "",
        )
    Console(width=max(12 * len(table.columns), Console().width)).print(table)


def _shape(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", text):
        raise argparse.ArgumentTypeError(f"such as 65536x1000, of the head such as 2048x256x32000, got {text}")
    return text
