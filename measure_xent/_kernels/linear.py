"""Linear functions whose transpose is written by hand: ``jax.custom_derivatives.linear_call``, in batches too."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, PyTree

from .._strict import promoting
from .partition import placed_as


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """A function of (known, moving), linear in the pytree of arrays that moves.

    Args:
        function: of (known, moving), gives a list of arrays.
        transpose: of (known, cotangents), which are None where there are none, gives the cotangents of what moves.
        of_batch: of (known, moving), with whether it has an axis of a batch in front in the place of each array: the linear
            function of the batch and, in the places of known and moving, where it takes that axis; or None if the function
            of each member is as good.
    """

    function: Callable[[Any, Any], list[Array]]
    transpose: Callable[[Any, list[Array | None]], Any]
    of_batch: Callable[[Any, Any], "tuple[Linear, Any, Any] | None"]

    def __call__(self, known: PyTree, moving: PyTree, like: list[Any]) -> list[Array]:
        """Arrays of the types of others."""
        leaves, tree = jax.tree.flatten((known, moving))
        out = tuple(jax.typeof(x).to_tangent_aval() for x in like)
        return _linear_p.bind(*leaves, linear=self, tree=tree, known=len(jax.tree.leaves(known)), out=out)


@promoting
def _apply(*leaves, linear, tree, known, out):
    del known
    return [placed_as(x, like) for x, like in zip(linear.function(*tree.unflatten(leaves)), out, strict=True)]


_linear_p = Primitive("linear")
_linear_p.multiple_results = True
_linear_p.def_impl(lambda *leaves, **of: jax.jit(functools.partial(_apply, **of))(*leaves))
_linear_p.def_abstract_eval(lambda *_, out, **__: list(out))
mlir.register_lowering(_linear_p, mlir.lower_fun(_apply, multiple_results=True))


@functools.partial(ad.primitive_jvps.__setitem__, _linear_p)
def _jvp(primals, tangents, *, known, **of):
    still = lambda t: isinstance(t, ad.Zero)
    out = _linear_p.bind(*primals, known=known, **of)
    parts = []
    if not all(map(still, tangents[known:])):
        parts.append(_linear_p.bind(*primals[:known], *map(ad.instantiate_zeros, tangents[known:]), known=known, **of))
    if moved := {i: t for i, t in enumerate(tangents[:known]) if not still(t)}:

        def along(*new):
            new = dict(zip(moved, new, strict=True))
            return _apply(*(new.get(i, x) for i, x in enumerate(primals)), known=known, **of)

        parts.append(jax.jvp(along, [primals[i] for i in moved], list(moved.values()))[1])
    return out, [functools.reduce(jnp.add, terms) for terms in zip(*parts, strict=True)]


@functools.partial(ad.primitive_transposes.__setitem__, _linear_p)
@promoting
def _transpose(cotangents, *leaves, linear, tree, known, out):
    del out
    arguments, _ = tree.unflatten(leaves)
    found = jax.tree.leaves(linear.transpose(arguments, [None if isinstance(ct, ad.Zero) else ct for ct in cotangents]))
    return [None] * known + [
        x if ad.is_undefined_primal(leaf) else None for x, leaf in zip(found, leaves[known:], strict=True)
    ]


@functools.partial(batching.primitive_batchers.__setitem__, _linear_p)
@promoting
def _batch(leaves, axes, *, linear, tree, known, out):
    here = [axis is not None for axis in axes]
    size = next(x.shape[axis] for x, axis in zip(leaves, axes, strict=True) if axis is not None)
    leaves = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(leaves, axes, strict=True)]
    of_batch = linear.of_batch(*tree.unflatten(here))
    if of_batch is None:
        each = functools.partial(_apply, linear=linear, tree=tree, known=known, out=out)
        result = jax.vmap(each, in_axes=[0 if axis else None for axis in here])(*leaves)
        return result, [0] * len(result)
    linear, *wanted = of_batch
    spread = lambda x, here, wanted: jnp.broadcast_to(x, (size, *x.shape)) if wanted and not here else x
    leaves = [spread(*each) for each in zip(leaves, here, jax.tree.leaves(tuple(wanted)), strict=True)]
    program = jax.make_jaxpr(lambda *leaves: linear.function(*tree.unflatten(leaves)))(*leaves)
    result = _linear_p.bind(*leaves, linear=linear, tree=tree, known=known, out=tuple(program.out_avals))
    return result, [0] * len(result)
