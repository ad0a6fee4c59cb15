"""What there is to see of a measure on pairs of numbers: the mass or the density of cells of the plane."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._forms.normal_form import NormalForm
from .._integrands.density import log
from .._measures.measure import Measure
from .._measures.shapes import arity
from .picture import can_be_looked_at

CELLS, DRAWS = 40, 4096


class HeatMap(NamedTuple):
    """The edges of cells in either coordinate, and what is in each."""

    x: np.ndarray  # [n + 1]
    y: np.ndarray  # [m + 1]
    values: np.ndarray  # [n, m]
    what: str  # "mass" or "density"

    @property
    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        return tuple((e[1:] + e[:-1]) / 2 for e in (self.x, self.y))  # type: ignore[return-value]


def heat_map(P: Measure) -> HeatMap | None:
    """Of one measure of positive mass on pairs of numbers or vectors of two; None of another, or of one that is being traced.

    Atoms are counted in their cells, of integers one each. Else cells are where 4096 draws are, with the density amid each.
    """
    if P.shape or not can_be_looked_at(P):
        return None
    try:
        pairs = _is_on_pairs(P)
        return None if pairs is None else _of_atoms(P, pairs) or _of_density(P, pairs)
    except (NotImplementedError, TypeError, ValueError):
        return None


def _is_on_pairs(P: Measure) -> bool | None:
    """Whether points are tuples (x, y), or vectors; None of other spaces."""
    if arity(P) == 2:
        return True
    shapes = {form.event_shape for form in P.forms()}
    return False if shapes == {(2,)} else None


def _coordinates(points: Any, pairs: bool) -> tuple[np.ndarray, np.ndarray] | None:
    x, y = map(np.asarray, points if pairs else (points[..., 0], points[..., 1]))
    numbers = x.ndim == y.ndim == 1 and all(a.dtype.kind in "iuf" for a in (x, y))
    return (x, y) if numbers else None


def _of_atoms(P: Measure, pairs: bool) -> HeatMap | None:
    lists = [atoms for form in P.forms() if isinstance(form, NormalForm) for atoms in form.atom_lists()]
    if len(lists) != len(P.forms()):
        return None
    each = [_coordinates(points, pairs) for points, _, _ in lists]
    if any(c is None for c in each):
        return None
    x, y = (np.concatenate([c[i] for c in each if c is not None]) for i in (0, 1))
    masses = np.concatenate([np.asarray(w).ravel() for _, w, _ in lists])
    x, y, masses = (a[masses != 0] for a in (x, y, masses))
    if not masses.size or not np.isfinite(np.concatenate([x, y, masses])).all():
        return None
    across, up = (_edges(a.min(), a.max(), bool((a == np.round(a)).all())) for a in (x, y))
    return HeatMap(across, up, np.histogram2d(x, y, bins=(across, up), weights=masses)[0], "mass")


def _of_density(P: Measure, pairs: bool) -> HeatMap | None:
    drawn = _coordinates(P.sample(jax.random.key(0), (DRAWS,)), pairs)
    if drawn is None or not all(np.isfinite(a).all() for a in drawn):
        return None
    whole = [a.dtype.kind in "iu" for a in drawn]

    def edges_of(a, integers):
        low, high = np.quantile(a, [0.002, 0.998])
        room = 0 if integers else 0.1 * (high - low)
        return _edges(low - room, high + room, integers)

    across, up = map(edges_of, drawn, whole)
    seen = HeatMap(across, up, np.zeros((0, 0)), "mass" if all(whole) else "density")
    points = [jnp.asarray(a, int if w else float) for a, w in zip(seen.centres, whole, strict=True)]
    x, y = jnp.meshgrid(*points, indexing="ij")
    log_density = log(P)
    at = (lambda x, y: log_density(x, y)) if pairs else lambda x, y: log_density(jnp.stack([x, y]))
    values = np.exp(np.asarray(jax.vmap(jax.vmap(at))(x, y)))
    if np.isnan(values).any():
        return None
    return seen._replace(values=np.where(np.isfinite(values), values, values.max(where=np.isfinite(values), initial=0)))


def _edges(low: float, high: float, integers: bool) -> np.ndarray:
    if integers and high - low < 2 * CELLS:
        return np.arange(np.floor(low), np.ceil(high) + 2) - 0.5
    room = 0 if low < high else 0.5
    return np.linspace(low - room, np.nextafter(high + room, np.inf), CELLS + 1)
