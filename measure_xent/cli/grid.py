"""The grid of ``measure-xent bench rows --grid``: ours beside optax over numbers of rows and of classes."""

import itertools
from typing import Any

from .contestants import Figure

ROWS = (64, 511, 4096, 30011, 262144)
CLASSES = (2, 3, 10, 33, 151, 256, 1000, 1031, 4099, 8192, 32000, 32771, 50257, 65536, 128256, 262144)
LOGITS = 1 << 26  # at most: 256 MiB in float32, as much for their gradient
SHAPES = [f"{n}x{v}" for n in ROWS for v in CLASSES if n * v <= LOGITS]
OPERATIONS = ["value", "gradient"]
NEAR = 1.035  # shapes whose classes differ by no more should take as long a logit


def panels(figures: list[Figure]) -> dict[tuple[str, str], dict[tuple[int, int], Figure]]:
    """By (operation, dtype), figures by (rows, classes)."""
    out: dict[tuple[str, str], dict[tuple[int, int], Figure]] = {}
    for figure in figures:
        rows, classes = map(int, figure.shape.split("x"))
        out.setdefault((figure.operation, figure.dtype), {})[rows, classes] = figure
    return out


def ratio(figure: Figure) -> float:
    """Ours over optax's."""
    return figure.milliseconds["ours"] / figure.milliseconds["optax"]


def cliff(panel: dict[tuple[int, int], Figure]) -> float:
    """The largest factor between the times a logit of two shapes that are near to each other."""
    a_logit = {(n, v): figure.milliseconds["ours"] / (n * v) for (n, v), figure in panel.items()}
    near = [pair for pair in itertools.pairwise(CLASSES) if pair[1] <= NEAR * pair[0]]
    pairs = [(a_logit[n, u], a_logit[n, v]) for n in ROWS for u, v in near if {(n, u), (n, v)} <= a_logit.keys()]
    return max((max(a, b) / min(a, b) for a, b in pairs), default=1.0)


def print_grid(figures: list[Figure], versions: dict[str, str]) -> None:
    """A table for each operation and dtype, and what they come to."""
    from rich.console import Console
    from rich.table import Table

    title: Any = ", ".join(f"{k} {v}" for k, v in versions.items())
    for (operation, dtype), panel in panels(figures).items():
        table = Table(title=f"{operation}, {dtype}: ours / optax. {title}", title_justify="left")
        for column in ("classes", *(f"{n} rows" for n in ROWS)):
            table.add_column(column, justify="right")
        for v in CLASSES:
            table.add_row(str(v), *(f"{ratio(panel[n, v]):.2f}" if (n, v) in panel else "" for n in ROWS))
        ratios = sorted(map(ratio, panel.values()))
        more = max(figure.temporaries["ours"] - figure.temporaries["optax"] for figure in panel.values())
        no_slower = sum(r <= 1 for r in ratios)
        table.caption = (
            f"at most 1.00 at {no_slower} of {len(ratios)} shapes, median {ratios[len(ratios) // 2]:.2f}, at most "
            f"{ratios[-1]:.2f}; temporaries at most {more:.1f} MiB above optax's; near shapes: {cliff(panel):.2f} a logit"
        )
        Console(width=max(90, Console().width)).print(table)
