"""The members of a family of measures, or of functions of measures: which of its arrays have a row for each."""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from .._program import parts_of
from .._pytree import pytree, replaced, static


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


def by_members(function: Callable, *nodes: Any) -> Any:
    """``function(*nodes)``, a value for each member, of a family whose dense form exists a block of members at a time.

    Nodes are measures and functions of them, or arrays, with the family's axes in front or shared by all. Families that exist
    in blocks have ``in_blocks(function, others, own, shared)``: ``function(dense, own, shared)`` of every member, of the dense
    forms of this family and the others, arrays with a row for each member, and arrays that all share; and ``dense_like(n)``, a
    dense family of n. NotImplemented where there is none among the nodes, or members cannot be told apart.
    """
    deferred = deferred_families(nodes)
    if not deferred:
        return NotImplemented
    family = deferred[0].shape
    measures: list[Any] = [node for node in nodes if dataclasses.is_dataclass(type(node))]
    shapes = [node.shape for node in measures if hasattr(node, "shape")]
    if any(Q.shape != family for Q in deferred) or jnp.broadcast_shapes(family, *shapes) != family or _has_forms(nodes):
        return NotImplemented
    own: list[Any] = []
    is_row = lambda x: isinstance(x, jax.Array | np.ndarray) and x.shape[: len(family)] == family != ()
    template = [_own(node, own) if is_row(node) else _template(node, deferred, family, own) for node in nodes]
    if (parts := parts_of(template)) is None:
        return NotImplemented
    of_block = lambda dense, own, shared: function(*_filled(parts.make(shared), dense, own))
    # A user's function may have a value for each member, by arrays of its own.
    if parts.of_user and not _takes_few(of_block, deferred, own, parts.arrays):
        return NotImplemented
    return deferred[0].in_blocks(of_block, deferred[1:], own, parts.arrays)


def _takes_few(of_block: Callable, deferred: list[Any], own: list[Any], shared: list[Any], n: int = 1009) -> bool:
    """Whether a function of so many members, as no family has them, has a value for each."""
    lead, few = len(deferred[0].shape), lambda x, lead: jnp.zeros((n, *x.shape[lead:]), x.dtype)

    def of_few(shared):
        return of_block([Q.dense_like(n) for Q in deferred], [few(x, lead) for x in own], shared)

    try:
        values = jax.tree.leaves(jax.eval_shape(of_few, shared))
    except Exception:  # whatever it is, the dense family has it too
        return False
    return all(x.shape[:1] == (n,) for x in values)


@pytree
class _Place:
    """Stands for a family of the list, or for an array of a member."""

    kind: str = static()
    index: int = static()


def deferred_families(nodes: Any) -> list[Any]:
    """The families among the nodes that exist in blocks, each once."""
    found = [node for node in jax.tree.leaves(nodes, is_leaf=_is_deferred) if _is_deferred(node)]
    return list({identity(node): node for node in found}.values())


def _has_forms(nodes: Any) -> bool:
    """Whether a family is there by its forms already, whose parts have axes of their own."""
    return any(getattr(x, "deferred", ()) for x in jax.tree.leaves(nodes, is_leaf=lambda x: hasattr(x, "deferred")))


def _is_deferred(node: Any) -> bool:
    return hasattr(node, "in_blocks")


def identity(node: Any) -> Any:
    """What two nodes have in common that are made of the same arrays."""
    leaves, tree = jax.tree.flatten(node)
    return tree, *map(id, leaves)


def _template(node: Any, deferred: list[Any], family: tuple[int, ...], own: list[Any]) -> Any:
    """The node with places for what is a member's, whose arrays are put in a list."""
    if _is_deferred(node):
        return _Place("family", [identity(Q) for Q in deferred].index(identity(node)))
    if isinstance(node, tuple | list | dict):
        inner = lambda child: _template(child, deferred, family, own)
        return jax.tree.map(inner, node, is_leaf=lambda child: child is not node)
    if not dataclasses.is_dataclass(node):
        return node
    events = _event_ranks(type(node))

    def changed(name: str, field: Any) -> Any:
        if not isinstance(field, jax.Array | np.ndarray) or name not in events:
            return _template(field, deferred, family, own)
        lead = field.ndim - events[name]
        event = field.shape[lead:]
        if math.prod(field.shape[:lead]) == 1:
            return field.reshape(event)
        return _own(jnp.broadcast_to(field, (*family, *event)), own)

    return replaced(node, **{name: changed(name, field) for name, field in node.__dict__.items()})


def _own(x: Any, own: list[Any]) -> _Place:
    own.append(jnp.asarray(x))
    return _Place("array", len(own) - 1)


def _filled(template: Any, dense: list[Any], own: list[Any]) -> Any:
    is_place = lambda node: isinstance(node, _Place)
    fill = lambda node: {"family": dense, "array": own}[node.kind][node.index] if is_place(node) else node
    return jax.tree.map(fill, template, is_leaf=is_place)


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
