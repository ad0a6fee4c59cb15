"""How the arrays of a kernel are spread over the devices of a mesh.

Rows are spread as the first array that is, classes over axes that no rows are on. A weight that is split over the rows' axes
(FSDP) is gathered once, before the kernel, in its dtype; what sums over rows is summed once, after it, by a reduce-scatter
where it is a gradient of such a weight.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array

from .mesh import sum_over, vary, varying

ROWS, CLASSES = "rows", "classes"
Dims = tuple[str | None, ...]  # the names of an array's axes: "rows…", "classes", any other, or None
Entries = tuple[tuple[str, ...], ...]  # the mesh axes of each of an array's axes


def rows_of(rank: int) -> Dims:
    """The names of so many axes of rows."""
    return tuple(f"{ROWS}{i}" for i in range(rank))


def are_rows(name: str | None) -> bool:
    return name is not None and name.startswith(ROWS)


def of_equal_length(shapes: Sequence[tuple[int, ...]], dims: Sequence[Dims]) -> list[Dims]:
    """The names of axes, made different where their lengths are, as rows of 1 that all rows share."""
    lengths: dict = {}

    def named(n, name):
        first = lengths.setdefault(name, n)
        return name if name is None or n == first else f"{n} of {name}"

    return [tuple(map(named, shape, names)) for shape, names in zip(shapes, dims, strict=True)]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The mesh axes of rows and of classes, of each operand's axes, and those over which a device gathers an operand."""

    mesh: Any
    axes: dict[str, tuple[str, ...]]
    operands: tuple[Entries, ...]
    gathered: tuple[dict[int, tuple[str, ...]], ...]  # of each operand, by its axis
    split: dict[Dims, Entries]  # of sums over rows that have such axes

    @classmethod
    def of(cls, mesh: Any, specs: Sequence[Any], dims: Sequence[Dims], shapes: Sequence[tuple[int, ...]]) -> "Layout":
        given = [_entries(spec, len(names)) for spec, names in zip(specs, dims, strict=True)]
        kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
        fits = lambda n, entry: entry and n % math.prod(mesh.shape[a] for a in entry) == 0

        def of_name(name) -> Iterator[tuple[tuple[str, ...], int]]:
            for names, entries, shape in zip(dims, given, shapes, strict=True):
                yield from ((entry, n) for other, entry, n in zip(names, entries, shape, strict=True) if other == name)

        axes: dict[str, tuple[str, ...]] = {}
        names = [name for name in dict.fromkeys(itertools.chain(*dims)) if name is not None]
        for name in (*filter(are_rows, names), *({CLASSES} & set(names))):
            taken = _union(axes.values())
            left = lambda entry, taken=taken: tuple(a for a in entry if a not in taken and kinds[a] != AxisType.Manual)
            axes[name] = next((left(entry) for entry, n in of_name(name) if fits(n, left(entry))), ())
        operands, gathered, split = [], [], {}
        for names, entries, shape in zip(dims, given, shapes, strict=True):
            spread = tuple(axes.get(name or "", ()) for name in names)
            over_rows = {
                i: entry
                for i, (entry, n) in enumerate(zip(entries, shape, strict=True))
                if not spread[i] and set(entry) <= _rows_of(axes) and fits(n, entry) and not any(map(are_rows, names))
            }
            spread = tuple(over_rows.get(i, entry) for i, entry in enumerate(spread))
            operands.append(spread)
            gathered.append(over_rows)
            if over_rows:
                split.setdefault(names, spread)
        return cls(mesh, axes, tuple(operands), tuple(gathered), split)

    @property
    def rows(self) -> frozenset[str]:
        """The mesh axes of all rows."""
        return _rows_of(self.axes)

    def result(self, names: Dims) -> Entries:
        """The mesh axes of a result's axes."""
        return self.split.get(names) or tuple(self.axes.get(name or "", ()) for name in names)

    def gather(self, operands: Sequence[Array]) -> list[Array]:
        """The operands as a device's kernel takes them."""

        def one(x, over_rows):
            for axis, entry in over_rows.items():
                x = lax.all_gather(x, entry, axis=axis, tiled=True)
            # A sum over rows is a device's own until it is summed, and so are its derivatives.
            return vary(x, self.rows)

        return [one(x, over_rows) for x, over_rows in zip(operands, self.gathered, strict=True)]

    def sum(self, result: Array, names: Dims) -> Array:
        """A device's part of a result, with the sums over rows taken, in float32 or wider."""
        dtype = result.dtype
        if jnp.issubdtype(dtype, jnp.floating) and varying(result) - _union(
            self.axes.get(name or "") for name in names
        ):
            result = result.astype(jnp.promote_types(dtype, jnp.float32))
        if names in self.split:
            for axis, (entry, name) in enumerate(zip(self.split[names], names, strict=True)):
                if entry and entry != self.axes.get(name or ""):
                    result = vary(result, frozenset(entry))
                    result = lax.psum_scatter(result, entry, scatter_dimension=axis, tiled=True)
        return sum_over(result, varying(result) - _union(self.result(names))).astype(dtype)


def _union(entries: Iterable[tuple[str, ...] | None]) -> frozenset[str]:
    return frozenset(itertools.chain(*filter(None, entries)))


def _rows_of(axes: dict[str, tuple[str, ...]]) -> frozenset[str]:
    return _union(entry for name, entry in axes.items() if are_rows(name))


def spec(entries: Entries) -> PartitionSpec:
    return PartitionSpec(*(entry or None for entry in entries))


def _entries(spec: Any, rank: int) -> Entries:
    one = lambda entry: (entry,) if isinstance(entry, str) else tuple(entry) if isinstance(entry, tuple) else ()
    return (*map(one, spec), *((),) * (rank - len(spec)))
