"""What there is to see of a measure, as numbers, and matplotlib's drawing of it."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._forms.disintegration import Disintegration
from .._forms.law_form import LawForm
from .._forms.normal_form import NormalForm
from .._measures.laws import Integers, Line
from .._measures.measure import Measure
from .._measures.shapes import arity

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
        room = 0.03 * (high - low) if self.has_density and low < high else max(0.5, 1e-6 * abs(low))
        return low - room, high + room


def picture(P: Measure) -> Picture | None:
    """The picture of a measure on numbers; None of another, of one that is being traced, or of one too large to look at."""
    if not can_be_looked_at(P):
        return None
    try:
        forms = P.forms()
        classes = sum(form.classes or 0 for form in forms if isinstance(form, NormalForm))
        if arity(P) != 1 or not all(map(_on_numbers, forms)) or not 0 < math.prod(P.shape) * max(1, classes) <= LARGEST:
            return None
        atoms = [pair for form in forms for pair in _atoms(form)]
        x, masses = (_members(P, [pair[i] for pair in atoms]) for i in (0, 1))
        laws = [form.target if isinstance(form, Disintegration) else form for form in forms]
        grid, density = _density(P, [f for f in laws if isinstance(f, LawForm) and not isinstance(f.law, Integers)])
    except (NotImplementedError, TypeError):  # such as the density of an image without an inverse
        return None
    fine = np.isfinite(x).all(where=masses != 0) and np.isfinite(masses).all() and not np.isnan(density).any()
    if not fine or not masses.size + density.size:
        return None
    inside = x[np.isfinite(x)]
    return Picture(np.where(np.isfinite(x), x, inside.min(initial=0.0)), masses, grid, density)


def can_be_looked_at(P: Measure) -> bool:
    """Whether its numbers are here, and not too many."""
    arrays = [x for x in jax.tree.leaves(P) if hasattr(x, "shape")]
    return not any(isinstance(x, Tracer) for x in arrays) and sum(x.size for x in arrays) <= LARGEST


def _on_numbers(form: Any) -> bool:
    if isinstance(form, LawForm):
        return not form.event_rank and isinstance(form.law, Line)
    if isinstance(form, Disintegration):
        return not form.points and _on_numbers(form.target)
    return isinstance(form, NormalForm) and (form.weights is None or np.ndim(form.points) == form.weights.ndim)


def _members(P: Measure, parts: list[Any]) -> np.ndarray:
    """Arrays [*family, n] as one with a row a member."""
    rows = [np.broadcast_to(np.asarray(a, float), (*P.shape, a.shape[-1])) for a in parts]
    return np.concatenate([np.zeros((*P.shape, 0)), *rows], axis=-1).reshape(math.prod(P.shape), -1)


def _atoms(form: Any) -> list[tuple[Any, Any]]:
    """Atoms [*family, n] and their masses."""
    if isinstance(form, NormalForm):
        return [(jnp.broadcast_to(points, weights.shape), weights) for points, weights, _ in form.atom_lists()]
    if isinstance(form, Disintegration):  # of one law for each of the atoms
        weighed = [(x, form.weights[..., None] * masses) for x, masses in _atoms(form.target)]
        return [(x[..., 0, :], masses.sum(-2)) for x, masses in weighed]
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
    density = P.parts()[False,].scaled_density

    def at(x):
        log_scale, factor = density(x)
        return factor * jnp.exp(log_scale)

    values = jnp.moveaxis(jax.vmap(at)(jnp.asarray(grid)), 0, -1)
    return grid, np.nan_to_num(_members(P, [values]), posinf=0, neginf=0)


def top_of(seen: Picture) -> float:
    """The height of the picture: that of the density, but for a pole at an end."""
    inner = np.abs(seen.density[:, 2:-2])
    return min(float(np.abs(seen.density).max(initial=0)), 2 * float(inner.max(initial=0))) or 1.0
