"""Matplotlib's drawing of a measure."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._measures.measure import Measure
from .formula import words
from .heat import HeatMap, heat_map
from .picture import LARGEST, Picture, picture, top_of


def plot(P: Measure, ax: Any = None, *, label: str | Sequence[str] | None = None, **keywords: Any) -> Any:
    """A matplotlib picture of a measure: bars or stems of the masses of atoms, a curve of the density; of pairs a heat map.

    Members of a family are drawn on one another, or as rows of colours where they are many. Masses and the density
    have axes of their own, left and right, where a measure has both. What is drawn on axes that have a measure takes the next
    colour, and the axes grow. Needs the ``digits`` extra.

    Args:
        ax: axes to draw on, by default the current ones.
        label: for the legend; of a family one a member, or one that members are counted after.
        keywords: matplotlib's, for lines and bars, such as color, alpha and linewidth; of heat maps, for pcolormesh.

    Returns:
        The axes.

    Raises:
        TypeError: P is no measure on numbers or pairs of them, or has no picture.

    Examples:
        >>> import matplotlib.pyplot as plt, measure_xent as mx
        >>> ax = mx.plot(0.3 * mx.Dirac(0.) + 0.7 * mx.Normal(0., 1.), plt.figure().gca(), label="spike and slab")
        >>> ax.get_ylabel()
        'mass'
    """
    from matplotlib import pyplot as plt

    seen = None
    if isinstance(P, Measure):
        seen = picture(P)
        if seen is None:
            seen = heat_map(P)
    if seen is None:
        what = f"a measure on numbers or pairs of numbers, of at most {LARGEST} parameters"
        raise TypeError(f"plot(P): P must be {what}, got {words(P)}")
    ax = plt.gca() if ax is None else ax
    if isinstance(seen, HeatMap):
        return _draw_heat_map(seen, ax, label, keywords)
    low, high = seen.range
    if ax.has_data():
        low, high = min(low, ax.get_xlim()[0]), max(high, ax.get_xlim()[1])
    if seen.rows is not None:
        extent = (*seen.range, seen.members - 0.5, -0.5)
        shown = ax.imshow(seen.rows[1], **dict(aspect="auto", cmap="Blues", vmin=0, extent=extent) | keywords)
        ax.figure.colorbar(shown, ax=ax, label="mass" if seen.has_atoms else "density")
        ax.set_ylabel("member")
        return ax
    colors = [keywords.pop("color")] * seen.members if "color" in keywords else [_next_color(ax) for _ in seen.masses]
    labels = [label] if isinstance(label, str | None) and seen.members == 1 else _labels(label, seen.members)
    how = [dict(color=color, label=text, **keywords) for color, text in zip(colors, labels, strict=True)]
    if seen.has_atoms:
        _draw_masses(seen, _side(ax, "mass"), how)
        how = [one | {"label": None} for one in how]
    if seen.has_density:
        side = _side(ax, "density")
        bottom, top = _grown(side, min(0, seen.density.min()), 1.1 * top_of(seen))
        for density, one in zip(seen.density, how, strict=True):
            side.plot(seen.grid, density, **one)
            side.fill_between(seen.grid, density, alpha=0.15, color=one["color"], linewidth=0)
        side.set_ylim(bottom, top)
    ax.set_xlim(low, high)
    return ax


def _draw_masses(seen: Picture, ax: Any, how: list[dict[str, Any]]) -> None:
    bottom, top = _grown(ax, min(0, 1.1 * seen.masses.min()), max(0, 1.1 * seen.masses.max()) or 1)
    behind = {"alpha": 0.6} if ax.has_data() else {}
    for i, (x, masses, one) in enumerate(zip(seen.x, seen.masses, how, strict=True)):
        if seen.bars:
            ax.bar(x + 0.8 * (i + 0.5) / seen.members - 0.4, masses, 0.8 / seen.members, **behind | one)
        else:
            ax.vlines(x, 0, masses, **one)
            ax.plot(x, masses, "o", color=one["color"], alpha=one.get("alpha"))
    ax.set_ylim(bottom, top)


def _draw_heat_map(seen: HeatMap, ax: Any, label: Any, keywords: dict[str, Any]) -> Any:
    signed = seen.values.min() < 0
    colors = (
        dict(cmap="RdBu_r", vmin=-abs(seen.values).max(), vmax=abs(seen.values).max())
        if signed
        else dict(cmap="Blues", vmin=0)
    )
    shown = ax.pcolormesh(seen.x, seen.y, seen.values.T, **colors | keywords)
    for axis, centres in zip((ax.xaxis, ax.yaxis), seen.centres, strict=True):
        axis.get_major_locator().set_params(integer=bool((centres == np.round(centres)).all()))
    ax.figure.colorbar(shown, ax=ax, label=seen.what if label is None else label)
    ax.set(xlabel="first coordinate", ylabel="second coordinate")
    return ax


def _labels(label: Any, n: int) -> list[Any]:
    if label is None:
        return [None] * n
    labels = [f"{label} {i}" for i in range(n)] if isinstance(label, str) else list(label)
    if len(labels) != n:
        raise ValueError(f"plot(label): one a member, of {n}, got {len(labels)}")
    return labels


def _next_color(ax: Any) -> Any:
    """The next of the axes' cycle, which moves on."""
    (line,) = ax.plot([], [])
    line.remove()
    return line.get_color()


def _side(ax: Any, what: str) -> Any:
    """The axes, or those beside them, that masses or densities have."""
    is_beside = lambda a: a.bbox.bounds == ax.bbox.bounds and ax.get_shared_x_axes().joined(a, ax)
    twins = [ax, *(a for a in ax.figure.axes if a is not ax and is_beside(a))]
    for side in twins:
        if side.get_ylabel() == what:
            return side
    side = ax.twinx() if any(a.get_ylabel() in ("mass", "density") for a in twins) else ax
    side.set_ylabel(what)
    return side


def _grown(ax: Any, bottom: float, top: float) -> tuple[float, float]:
    """Limits that have what is there, too."""
    return (min(bottom, ax.get_ylim()[0]), max(top, ax.get_ylim()[1])) if ax.has_data() else (bottom, top)
