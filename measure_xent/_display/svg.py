"""The picture of a measure as SVG, self-contained, in the page's own ink."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .heat import HeatMap
from .picture import BARS, MEMBERS, Picture, top_of

WIDTH, HEIGHT, LEFT, BASE = 320, 110, 20, 92
BLUE, RED, INK = "#2f6fb2", "#c2410c", "currentColor"


def svg(seen: Picture) -> str:
    """The same picture, self-contained, in the page's own ink."""
    if seen.rows is not None:
        return _strip(seen, *seen.rows)
    shown = min(seen.members, MEMBERS)
    panels = [_panel(seen, i) for i in range(shown)]
    more = "" if shown == seen.members else f"<div>… and {seen.members - shown} more</div>"
    return "".join(panels) + more


def svg_of_heat(seen: HeatMap) -> str:
    """A cell's mass or density is how dark it is."""
    left, side, bottom = 44, 200, 204
    top = np.abs(seen.values).max(initial=0) or 1.0
    at = lambda e, x: (x - e[0]) / (e[-1] - e[0])
    across, up = (lambda x: left + side * at(seen.x, x)), (lambda y: bottom - side * at(seen.y, y))
    body = "".join(
        f'<rect x="{across(a):.1f}" y="{up(d):.1f}" width="{across(b) - across(a):.1f}" height="{up(c) - up(d):.1f}" '
        f'fill="{RED if v < 0 else BLUE}" fill-opacity="{abs(v) / top:.2f}"/>'
        for a, b, row in zip(seen.x, seen.x[1:], seen.values, strict=False)
        for c, d, v in zip(seen.y, seen.y[1:], row, strict=False)
        if abs(v) > 0.005 * top
    )
    ends = [centres[[0, -1]] for centres in seen.centres]
    ticks = "".join(
        f'<text x="{across(x):.1f}" y="{bottom + 12}" text-anchor="middle">{x:.3g}</text>' for x in {*ends[0]}
    )
    ticks += "".join(f'<text x="{left - 4}" y="{up(y) + 3:.1f}" text-anchor="end">{y:.3g}</text>' for y in {*ends[1]})
    frame = f'<path d="M{left} 4h{side}v{side}h-{side}z" fill="none" stroke="{INK}" stroke-opacity=".4"/>'
    said = f'<text x="{left + side + 8}" y="14">{seen.what} to {seen.values.max():.3g}</text>'
    size = f'width="{WIDTH}" height="{bottom + 18}" viewBox="0 0 {WIDTH} {bottom + 18}"'
    return f'<svg {size} font-size="10" fill="{INK}" style="margin:2px">{body}{frame}{ticks}{said}</svg>'


def _frame(seen: Picture, body: str, height: int = HEIGHT, base: float = BASE) -> str:
    at = _across(seen)
    text = lambda x: f'<text x="{at(x):.1f}" y="{height - 4}" text-anchor="middle">{x:.3g}</text>'
    ticks = "".join(map(text, dict.fromkeys(seen.ends)))
    line = f'<path d="M{LEFT} {base:.1f}H{WIDTH - LEFT}" stroke="{INK}" stroke-opacity=".4"/>'
    return (
        f'<svg width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-size="10" fill="{INK}" '
        f'style="margin:2px">{line}{body}{ticks}</svg>'
    )


def _across(seen: Picture) -> Callable[[Any], Any]:
    low, high = seen.range
    return lambda x: LEFT + (WIDTH - 2 * LEFT) * (x - low) / (high - low)


def _panel(seen: Picture, i: int) -> str:
    at, body = _across(seen), ""
    tops = np.abs(seen.masses).max(initial=0) or 1.0, top_of(seen)
    parts = [a / top for a, top in zip((seen.masses, seen.density), tops, strict=True)]
    low = max(-1.0, min(part.min(initial=0) for part in parts))  # of signed measures
    up = lambda y: BASE - (BASE - 18) * (np.clip(y, low, 1.05) - low) / (1 - low)
    base = up(0.0)
    if seen.has_density:
        points = " ".join(f"{at(x):.1f},{up(y):.1f}" for x, y in zip(seen.grid, parts[1][i], strict=True))
        ends = f"{at(seen.grid[0]):.1f},{base:.1f} {points} {at(seen.grid[-1]):.1f},{base:.1f}"
        body += f'<polygon points="{ends}" fill="{BLUE}" fill-opacity=".18"/>'
        body += f'<polyline points="{points}" fill="none" stroke="{BLUE}" stroke-width="1.5"/>'
        body += f'<text x="{WIDTH - LEFT}" y="10" text-anchor="end">density to {seen.density[i].max():.3g}</text>'
    if seen.has_atoms:
        wide = 0.8 * (at(1.0) - at(0.0))
        for x, y, w in zip(seen.x[i], parts[0][i], seen.masses[i], strict=True):
            if w == 0:
                continue
            title = f"<title>{x:.4g}: {w:.4g}</title>"
            if seen.bars:
                low_y, high_y = max(base, up(y)), min(base, up(y))
                body += (
                    f'<rect x="{at(x) - wide / 2:.1f}" y="{high_y:.1f}" width="{wide:.1f}" '
                    f'height="{low_y - high_y:.1f}" fill="{BLUE}">{title}</rect>'
                )
            else:
                body += f'<path d="M{at(x):.1f} {base:.1f}V{up(y):.1f}" stroke="{RED}" stroke-width="2">{title}</path>'
                dot = f'<circle cx="{at(x):.1f}" cy="{up(y):.1f}" r="3" fill="{RED}"/>'
                body += dot if seen.x.shape[1] <= BARS else ""
        body += f'<text x="{LEFT}" y="10">mass to {seen.masses[i].max():.3g}</text>'
    return _frame(seen, body, base=base)


def _strip(seen: Picture, x: np.ndarray, rows: np.ndarray) -> str:
    """A row a member, of at most so many cells."""
    at = _across(seen)
    cells = np.linspace(*seen.range, min(len(x), BARS) + 1)
    place = np.clip(np.searchsorted(cells, x, side="right") - 1, 0, len(cells) - 2)
    table = np.zeros((min(len(rows), 4 * MEMBERS), len(cells) - 1))
    for member, row in zip(table, rows, strict=False):
        np.maximum.at(member, place, row)
    top, tall = table.max() or 1, 8
    body = "".join(
        f'<rect x="{at(a):.1f}" y="{i * tall}" width="{at(b) - at(a):.1f}" height="{tall - 1}" '
        f'fill="{BLUE}" fill-opacity="{v / top:.2f}"/>'
        for i, row in enumerate(table)
        for a, b, v in zip(cells, cells[1:], row, strict=False)
        if v > 0.005 * top
    )
    more = "" if len(table) == len(rows) else f"<div>… and {len(rows) - len(table)} more rows</div>"
    return _frame(seen, body, len(table) * tall + 22, len(table) * tall + 4) + more
