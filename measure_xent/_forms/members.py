"""The members of a family of measures, or of functions of measures: which of its arrays have a row for each."""

import dataclasses
import functools
import typing
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from .._pytree import replaced


def without_null(node: Any, null: Bool[Array, "*family"]) -> Any:
    """The same family with a stand-in for each null member, whose parameters may be NaN or of a degenerate law.

    Weight 0 keeps a null member out of a value, but 0 times the infinite derivative of a member that is not there is NaN. So
    no derivative is taken there: the double ``where`` of the JAX FAQ, once for all functions of measures. The stand-in has ½
    for each of its numbers, which is a logit, a probability, a point and a scale. A row that several members share stands for
    itself as long as one of them is not null.
    """
    if isinstance(node, tuple | list | dict):
        return jax.tree.map(lambda child: without_null(child, null), node, is_leaf=lambda child: child is not node)
    if not hasattr(node, "shape") or not dataclasses.is_dataclass(node):
        return node
    events = _event_ranks(type(node))

    def changed(name: str, field: Any) -> Any:
        own = isinstance(field, jax.Array) and name in events
        return _with_stand_ins(field, null, events[name]) if own else without_null(field, null)

    return replaced(node, **{name: changed(name, field) for name, field in node.__dict__.items()})


@functools.cache
def _event_ranks(cls: type) -> dict[str, int]:
    """The fields whose leading axes are the family's, and how many axes follow, as jaxtyping's annotation says: "*family V"."""
    kinds: Any = {field.name: (field.type, *typing.get_args(field.type)) for field in dataclasses.fields(cls)}
    names: Any = {name: [kind.dim_str.split() for kind in of if hasattr(kind, "dim_str")] for name, of in kinds.items()}
    return {name: len(dims[0]) - 1 for name, dims in names.items() if dims and dims[0][:1] == ["*family"]}


def _with_stand_ins(x, null, event):
    family = x.shape[: x.ndim - event]
    null = jnp.reshape(null, (1,) * (len(family) - null.ndim) + null.shape)
    rest = null.ndim - len(family)
    shared = tuple(range(rest)) + tuple(rest + i for i, n in enumerate(family) if n == 1)
    null = jnp.all(null, axis=shared, keepdims=True)
    return jnp.where(null.reshape(null.shape[rest:] + (1,) * event), jnp.asarray(0.5, x.dtype), x)
