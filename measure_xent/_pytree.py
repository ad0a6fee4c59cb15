"""Frozen dataclasses that are pytrees."""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

from ._strict import settled

_C = TypeVar("_C")
_T = TypeVar("_T")


def static(default: Any = dataclasses.MISSING) -> Any:
    """A field that is part of the tree's structure: hashable, never traced.

    Examples:
        >>> import jax, measure_xent as mx
        >>> @mx.pytree
        ... class Grid:
        ...     step: float
        ...     size: int = mx.static()
        >>> jax.tree.map(lambda x: 2 * x, Grid(0.5, 10))
        Grid(step=1.0, size=10)
    """
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(static, dataclasses.field))
def pytree(cls: type[_C]) -> type[_C]:
    """Class decorator: a frozen dataclass whose fields are the children of a pytree node.

    Unflattening skips ``__init__`` and ``__post_init__``: transformations rebuild nodes around tracers,
    axis specifications and placeholders, which a constructor's checks would refuse.

    Examples:
        >>> import jax, measure_xent as mx
        >>> @mx.pytree
        ... class Line:
        ...     slope: float
        ...     def __call__(self, x):
        ...         return self.slope * x
        >>> jax.grad(lambda line: line(3.0))(Line(2.0))
        Line(slope=Array(3., dtype=float32, weak_type=True))
    """
    settled(cls)
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    children = [f.name for f in fields if not f.metadata.get("static")]
    structure = [f.name for f in fields if f.metadata.get("static")]

    def flatten(node):
        return [getattr(node, n) for n in children], tuple(getattr(node, n) for n in structure)

    def flatten_with_keys(node):
        return [(jax.tree_util.GetAttrKey(n), getattr(node, n)) for n in children], flatten(node)[1]

    def unflatten(aux, leaves):
        node = object.__new__(cls)
        set_fields(node, **dict(zip(children, leaves, strict=True)), **dict(zip(structure, aux, strict=True)))
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def set_fields(node: Any, **values: Any) -> None:
    """Sets fields of a frozen node, for its own constructor only."""
    for name, value in values.items():
        object.__setattr__(node, name, value)


def replaced(node: _T, **changes: Any) -> _T:
    """The node with some fields changed, without what its constructor does."""
    new = object.__new__(type(node))
    set_fields(new, **{**node.__dict__, **changes})
    return new


def as_node(f: Any) -> Any:
    """A callable as a child of a node: one that is a pytree keeps its leaves, any other becomes part of the structure."""
    return jax.tree_util.Partial(f) if jax.tree_util.all_leaves([f]) else f
