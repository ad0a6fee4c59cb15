"""How measures show themselves: a picture and a formula, in notebooks by themselves, for matplotlib by ``plot``."""

import functools
import html
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ._conditional import AbstractConditional
from ._density import LogDensity, RadonNikodym
from ._integrand import Composed, Function, Integrand, Multiple, Product
from ._integrand import Sum as SumOfFunctions
from ._joint import Bind, Joint, ProductMeasure
from ._measure import Indicator, Measure, Normalized, Pushforward, Scaled, Sum, Weighted
from ._measures.atoms import Atoms
from ._measures.finite import Dirac
from ._measures.laws import Integers, Line
from ._normal_form import NormalForm
from ._smooth_form import Smooth

MEMBERS, BARS, LARGEST = 6, 48, 1 << 18  # small multiples; bars rather than a strip; numbers that are worth a picture
GRID = 161


class Picture(NamedTuple):
    """What there is to see of a family of measures on numbers: atoms and a density, a row a member, either of length 0."""

    x: np.ndarray  # [members, atoms]
    masses: np.ndarray
    grid: np.ndarray  # [points]
    density: np.ndarray  # [members, points]

    @property
    def members(self) -> int:
        return len(self.masses)

    @property
    def has_atoms(self) -> bool:
        return self.masses.shape[1] > 0

    @property
    def has_density(self) -> bool:
        return self.grid.size > 0

    @property
    def rows(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(points, their masses or densities) where members are many, each then a row of colours, and have points in common."""
        if self.members <= MEMBERS or (self.has_atoms and (self.has_density or (self.x != self.x[:1]).any())):
            return None
        return (self.x[0], self.masses) if self.has_atoms else (self.grid, self.density)

    @property
    def bars(self) -> bool:
        return not self.has_density and self.x.shape[1] <= BARS and bool((self.x == np.round(self.x)).all())

    @property
    def ends(self) -> tuple[float, float]:
        points = np.concatenate([self.x.ravel(), self.grid])
        return float(points.min()), float(points.max())

    @property
    def range(self) -> tuple[float, float]:
        low, high = self.ends
        room = 0.03 * (high - low) if self.has_density and low < high else 0.5
        return low - room, high + room


def picture(P: Measure) -> Picture | None:
    """The picture of a measure on numbers; None of another, of one that is being traced, or of one too large to look at."""
    arrays = [x for x in jax.tree.leaves(P) if hasattr(x, "shape")]
    if any(isinstance(x, Tracer) for x in arrays) or sum(x.size for x in arrays) > LARGEST:
        return None
    try:
        forms = P.forms()
        if P.coordinates != 1 or not all(map(_on_numbers, forms)):
            return None
        atoms = [pair for form in forms for pair in _atoms(form)]
        x, masses = (_members(P, [pair[i] for pair in atoms]) for i in (0, 1))
        grid, density = _density(P, [f for f in forms if isinstance(f, Smooth) and not isinstance(f.law, Integers)])
    except (NotImplementedError, TypeError):  # such as the density of an image without an inverse
        return None
    return Picture(x, masses, grid, density) if masses.size + grid.size else None


def _on_numbers(form: Any) -> bool:
    if isinstance(form, Smooth):
        return not form.event_rank and isinstance(form.law, Line)
    return isinstance(form, NormalForm) and (form.weights is None or np.ndim(form.points) == form.weights.ndim)


def _members(P: Measure, parts: list[Any]) -> np.ndarray:
    """Arrays [*family, n] as one with a row a member."""
    rows = [np.broadcast_to(np.asarray(a, float), (*P.shape, a.shape[-1])) for a in parts]
    return np.concatenate([np.zeros((*P.shape, 0)), *rows], axis=-1).reshape(math.prod(P.shape), -1)


def _atoms(form: Any) -> list[tuple[Any, Any]]:
    """Atoms [*family, n] and their masses."""
    if isinstance(form, NormalForm):
        return [(jnp.broadcast_to(points, weights.shape), weights) for points, weights, _ in form.parts()]
    if not isinstance(form.law, Integers):
        return []
    low, high = (np.asarray(form.law.centre + s * (5 * form.law.width + 3)) for s in (-1, 1))
    first = max(0, math.floor(low.min()))
    k = jnp.arange(first, min(math.ceil(high.max()), first + 4 * GRID) + 1)
    masses = jnp.moveaxis(jax.vmap(lambda k: jnp.exp(form.law.log_density(k)))(k), 0, -1)
    masses = jnp.asarray(form.c)[..., None] * masses
    return [(jnp.broadcast_to(k, masses.shape), masses)]


def _density(P: Measure, smooth: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """A grid where the density has its bulk, and its values there, a row a member."""
    pieces = [np.zeros(0)]
    for form in smooth:
        low, high = (np.clip(form.law.centre + s * 4 * form.law.width, *form.law.support) for s in (-1, 1))
        for a, b in {*zip(np.ravel(low).tolist(), np.ravel(high).tolist(), strict=True)}:
            x = np.linspace(a + 1e-3 * (b - a), b - 1e-3 * (b - a), GRID)  # at the ends a density may be infinite
            seen = x if form.transform is None else np.asarray(jax.vmap(form.transform)(jnp.asarray(x)))
            pieces.append(seen[np.isfinite(seen)])
    everywhere = np.concatenate(pieces)
    if not everywhere.size:
        return everywhere, _members(P, [])
    grid = np.unique(np.concatenate([everywhere, np.linspace(everywhere.min(), everywhere.max(), GRID)]))
    grid = grid[:: -(-grid.size // (8 * GRID))]
    log_scale, factor = jax.vmap(P.split()[1].scaled_density)(jnp.asarray(grid))
    return grid, np.nan_to_num(_members(P, [jnp.moveaxis(factor * jnp.exp(log_scale), 0, -1)]), posinf=0, neginf=0)


def plot(P: Measure, ax: Any = None) -> Any:
    """A matplotlib picture of a measure on numbers: bars or stems of the masses of atoms, a curve of the density.

    Members of a family are drawn on one another, or as rows of colours where they are many. Masses and the density
    have axes of their own, left and right, where a measure has both. Needs the ``examples`` extra.

    Args:
        ax: axes to draw on, by default the current ones.

    Returns:
        The axes.

    Raises:
        TypeError: P is no measure on numbers, or has no picture.

    Examples:
        >>> import measure_xent as mx
        >>> ax = mx.plot(0.3 * mx.Dirac(0.) + 0.7 * mx.Normal(0., 1.))
        >>> ax.get_ylabel()
        'mass'
    """
    from matplotlib import pyplot as plt

    seen = picture(P) if isinstance(P, Measure) else None
    if seen is None:
        raise TypeError(f"plot(P): P must be a measure on numbers, of at most {LARGEST} parameters, got {words(P)}")
    ax = plt.gca() if ax is None else ax
    ax.set_xlim(*seen.range)
    if seen.rows is not None:
        extent = (*seen.range, seen.members - 0.5, -0.5)
        shown = ax.imshow(seen.rows[1], aspect="auto", cmap="Blues", vmin=0, extent=extent)
        ax.figure.colorbar(shown, ax=ax, label="mass" if seen.has_atoms else "density")
        ax.set_ylabel("member")
        return ax
    if seen.has_atoms:
        for i, (x, masses) in enumerate(zip(seen.x, seen.masses, strict=True)):
            if seen.bars:
                ax.bar(x + 0.8 * (i + 0.5) / seen.members - 0.4, masses, 0.8 / seen.members, color=f"C{i}")
            else:
                ax.stem(x, masses, linefmt=f"C{i}", basefmt=" ")
        ax.set_ylabel("mass")
        ax.set_ylim(min(0, 1.1 * seen.masses.min()), 1.1 * seen.masses.max() or 1)
    if seen.has_density:
        side = ax.twinx() if seen.has_atoms else ax
        for i, density in enumerate(seen.density):
            side.plot(seen.grid, density, color=f"C{i}")
            side.fill_between(seen.grid, density, alpha=0.15, color=f"C{i}", linewidth=0)
        side.set_ylabel("density")
        side.set_ylim(min(0, seen.density.min()), 1.1 * _top(seen))
    return ax


def _top(seen: Picture) -> float:
    """The height of the picture: that of the density, but for a pole at an end."""
    inner = np.abs(seen.density[:, 2:-2])
    return min(float(np.abs(seen.density).max(initial=0)), 2 * float(inner.max(initial=0))) or 1.0


# ---- SVG

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
    tops = np.abs(seen.masses).max(initial=0) or 1.0, _top(seen)
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


# ---- words and formulas


def words(P: Any) -> str:
    """What P is, where it lives and how much of it there is."""
    if not isinstance(P, Measure):
        return f"a {type(P).__name__}"
    family = f"a family of shape {P.shape} of measures" if P.shape else "a measure"
    try:
        mass = np.asarray(P.mass)
        total = f"mass {mass.min():.4g}" + (f" to {mass.max():.4g}" if mass.min() != mass.max() else "")
    except (TypeError, NotImplementedError, jax.errors.JAXTypeError):
        total = "mass not known here"
    return f"{family} {_space(P)}, {total}"


def _space(P: Measure) -> str:
    try:
        forms, n = P.forms(), P.coordinates
    except (TypeError, NotImplementedError, jax.errors.JAXTypeError):
        return "on a space not known here"
    if n > 1:
        return f"on tuples of {n} coordinates"
    classes = {form.classes for form in forms if isinstance(form, NormalForm) and form.classes}
    if classes and all(isinstance(form, NormalForm) for form in forms):
        return f"on the {max(classes)} classes 0…{max(classes) - 1}"
    vectors = any(form.event_rank for form in forms if isinstance(form, Smooth))
    density = f"with a density on {'vectors' if vectors else 'the line'}"
    kinds = ["on the integers" if isinstance(f.law, Integers) else density for f in forms if isinstance(f, Smooth)]
    atoms = ["made of atoms"] if any(not isinstance(form, Smooth) for form in forms) else []
    return " and ".join(dict.fromkeys(atoms + kinds))


@functools.singledispatch
def formula(P: Any) -> str:
    """P in LaTeX."""
    parts = [_value(v) for k, v in getattr(P, "__dict__", {}).items() if _is_parameter(P, k, v)]
    return rf"\mathrm{{{type(P).__name__}}}" + (f"({', '.join(parts)})" if parts else "")


def _is_parameter(P: Any, name: str, value: Any) -> bool:
    return value is not None and not name.startswith("_") and name not in {"axis_name", "axes", "event", "class_axis"}


def _value(x: Any) -> str:
    """A parameter: a formula, a number, the shape of an array, or a function's name."""
    if isinstance(x, Sum | SumOfFunctions):
        return rf"\left({formula(x)}\right)"
    if isinstance(x, Measure | Integrand | AbstractConditional):
        return formula(x)
    if isinstance(x, Tracer) or getattr(x, "shape", ()):
        return rf"\text{{{np.dtype(x.dtype).name}[{', '.join(map(str, x.shape))}]}}"
    if isinstance(x, int | float | np.ndarray | jax.Array):
        return f"{float(x):.4g}".replace("inf", r"\infty")
    name = getattr(getattr(x, "func", x), "__name__", type(x).__name__)
    return r"\text{" + name.strip("<>").replace("_", r"\_") + "}"


def _written(kind: type, template: str) -> None:
    formula.register(kind, lambda P: template.format(**{k: _value(v) for k, v in P.__dict__.items()}))


_written(Dirac, r"\delta_{{{point}}}")
_written(Scaled, r"{c} \cdot {P}")
_written(Weighted, r"{f} \cdot {P}")
_written(Normalized, r"\overline{{{P}}}")
_written(ProductMeasure, r"{P} \otimes {Q}")
_written(Joint, r"{P} \otimes {K}")
_written(Bind, r"\text{{last of }} {joint}")
_written(Pushforward, r"{T}_* {P}")
_written(Function, "{f}")
_written(Multiple, r"{c} \cdot {f}")
_written(Composed, r"{g}({f})")
_written(Indicator, r"\mathbf{{1}}_{{{A}}}")
_written(LogDensity, r"\log {Q}")
_written(RadonNikodym, r"\frac{{d {P}}}{{d {Q}}}")
for kind in (Sum, SumOfFunctions):
    formula.register(kind, lambda P: " + ".join(map(formula, P.terms)).replace("+ -", "- ").replace(r"- 1 \cdot", "-"))
formula.register(Product, lambda f: r" \cdot ".join(map(formula, f.factors)))
formula.register(
    Atoms,
    lambda P: rf"\sum_{{i < {math.prod(P.atoms)}}} " + ("" if P.weights is None else "w_i ") + r"\delta_{x_i}",
)

_PLAIN = {
    r"\\(?:mathrm|text|overline|mathbf)\{((?:[^{}]|\{[^{}]*\})*)\}": r"\1",
    r"\\delta_\{([^{}]*)\}": r"δ(\1)",
    r"_\{([^{}]*)\}": r"_\1",
    r"\\frac\{d ([^{}]*)\}\{d ([^{}]*)\}": r"d \1 / d \2",
    r"\\left|\\right": "",
    r"\\cdot": "·",
    r"\\otimes": "⊗",
    r"\\infty": "∞",
    r"\\sum": "Σ",
    r"\\log": "log",
    r"\\_": "_",
}


def _plain(tex: str) -> str:
    """The formula for a page that has no mathematics."""
    for pattern, text in _PLAIN.items():
        tex = re.sub(pattern, text, tex)
    return tex


def mimebundle(P: Measure) -> dict[str, str]:
    """What Jupyter shows: ``text/plain``, ``text/html`` and ``text/latex``."""
    seen = picture(P)
    tex = formula(P)
    drawing = "" if seen is None else f"<div>{svg(seen)}</div>"
    page = f'<div style="line-height:1.5">{html.escape(_plain(tex))}<br><small>{html.escape(words(P))}</small>{drawing}</div>'
    return {"text/plain": repr(P), "text/html": page, "text/latex": f"${tex}$"}
