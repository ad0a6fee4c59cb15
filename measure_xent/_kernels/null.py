"""Null atoms: of weight 0, they contribute exactly 0, whatever they hold; the derivative in the weight is their value.

Both at once want two looks at an atom. What it holds must not be read, for 0 · ±inf = NaN, in a value or on the way back of a
derivative: another atom stands in for it. The derivative in its weight, with all further ones, is that of its own value. So
which null atoms are *absent* depends on what is asked: all of them, until a derivative in the weights is taken. Then those
whose value, or a derivative of it that is taken too, is not finite. A product of 0 and a finite number needs no care, and
has every derivative. A derivative's own rule is where this shows, so a loss whose weights stay as they are never computes it.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer, eval_jaxpr
from jaxtyping import Array, Bool, PyTree, Shaped

from .._program import equations
from .._strict import custom_jvp
from .mesh import vary, varying, zeros
from .partition import explicit_mesh, placed_as


def null_safe_product(weight: Shaped[Array, "..."], value: Shaped[Array, "..."]) -> Array:
    """weight · value, with 0 · ±inf = 0 · NaN = 0, and the derivative in a weight of 0 the value where that is finite."""
    weight, value = jnp.broadcast_arrays(weight, value)
    absent, held = _null_atoms(_identity, False, 0, weight, (value,))
    return weight * jnp.where(absent, held, value)


def _identity(value):
    return value


_identity.for_reverse_mode_alone = False  # type: ignore[attr-defined]


def values_at(function: Callable, weight: Shaped[Array, "*atoms"], points: tuple, stand_in: Callable) -> PyTree:
    """``function(*points)`` as factors of the weights: a product with them is 0 at null atoms, with all derivatives.

    Args:
        function: the atoms' values, a pytree of arrays with the atoms' axes, or broadcasting with them, in front.
        weight: the atoms' weights, with all of their axes.
        points: what the function takes.
        stand_in: ``stand_in(absent, *points)`` are points without what the absent atoms hold.
    """
    absent, held = null_atoms(function, weight, points)
    return without(absent, function(*stand_in(absent, *points)), held)


def null_atoms(
    function: Callable, weight: Shaped[Array, "*atoms"], points: tuple
) -> tuple[Bool[Array, "*atoms"], PyTree]:
    """(which null atoms are absent, what the function's values are to be replaced by there)."""
    function, closed = _with_arguments(function, *points)
    arguments = (*points, *closed)
    # Inside shard_map the mask varies as weights and values do; not as the arguments, which values may be sums over parts of.
    like = jax.tree.map(zeros, jax.eval_shape(function, *arguments))
    return _null_atoms(function, False, 0, vary(weight, varying(weight, like)), arguments)


def _with_arguments(function: Callable, *points: PyTree) -> tuple[Callable, list]:
    """The function with all that it closes over as further arguments, and those. ``jax.closure_convert`` leaves integers in it,
    such as labels, which a derivative that is taken outside of the trace would look for in vain."""
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*points)
    n, tree = len(points), jax.tree.structure(shapes)

    def with_arguments(*arguments):
        return tree.unflatten(eval_jaxpr(jaxpr.jaxpr, arguments[n:], *jax.tree.leaves(arguments[:n])))

    # Whether somewhere in it there is a function with a rule of its own for reverse mode alone.
    with_arguments.for_reverse_mode_alone = any(  # type: ignore[attr-defined]
        eqn.primitive.name.startswith("custom_vjp") for eqn in equations(jaxpr.jaxpr)
    )
    return with_arguments, jaxpr.consts


def without(absent: Bool[Array, "*atoms"], values: PyTree, held: PyTree) -> PyTree:
    """The values, those of absent atoms replaced by what they held: their derivative in the weight, and no other."""

    def one(value, held):
        which = absent.reshape(absent.shape + (1,) * max(0, jnp.ndim(value) - absent.ndim))
        # A selection wants all where the atoms are, along explicit axes.
        place = lambda x: placed_as(x, which) if jnp.shape(x) == which.shape else x
        return jnp.where(which, place(held), place(value))

    return jax.tree.map(one, values, held)


@functools.partial(custom_jvp, nondiff_argnums=(0, 1, 2))
def _null_atoms(function, weighed, order, weight, arguments):
    """``weighed`` says that a derivative in the weights is taken, ``order`` how many are in the arguments."""
    null, no = weight == 0, _no(weight, arguments)
    if not weighed:
        return null | no, jax.tree.map(lambda v: zeros(v) + no.astype(v.dtype), jax.eval_shape(function, *arguments))
    value = function(*arguments)
    fit = _finite(value, weight.shape)
    along = jax.tree.map(_ones, arguments)
    for _ in range(0 if function.for_reverse_mode_alone else order):
        function = functools.partial(_along, function, along)
        fit &= _finite(function(*arguments), weight.shape)
    return (null & ~fit) | no, jax.tree.map(
        lambda v: jnp.where(jnp.isfinite(v) & ~no, v, jnp.zeros((), v.dtype)), value
    )


@functools.partial(_null_atoms.defjvp, symbolic_zeros=True)
def _null_atoms_jvp(function, weighed, order, primals, tangents):
    dweight, dpoints = ([differentiated(t) is not None for t in jax.tree.leaves(t)] for t in tangents)
    out = _null_atoms(function, weighed or any(dweight), order + any(dpoints), *primals)
    return out, jax.tree.map(functools.partial(jax.custom_derivatives.zero_from_primal, symbolic_zeros=True), out)


def _no(weight, arguments):
    """False, one a member under vmap of any of these. A rule's results must not be batched where its function's are not."""
    seen = [x for x in jax.tree.leaves((weight, arguments)) if isinstance(x, Tracer)]
    one = lambda x: x.ravel()[:1] if explicit_mesh(x) is None else x  # a part of a sharded array has no type
    seen = [one(x) for x in seen if varying(x) <= varying(weight)]
    return functools.reduce(jnp.logical_or, (jnp.any(x != x) for x in seen), jnp.array(False)) & False


def _along(function, tangents, *arguments):
    return jax.jvp(function, arguments, tangents)[1]


def _ones(x):
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return np.zeros(x.shape, jax.dtypes.float0)
    return zeros(jax.typeof(x)) + jnp.ones((), x.dtype)


def _finite(values, shape):
    """Where all values of an atom are finite, one answer for atoms with one weight."""
    fit = jnp.ones((1,) * len(shape), bool)
    for x in jax.tree.leaves(values):
        if x.dtype != jax.dtypes.float0:
            x = jnp.isfinite(x).reshape((1,) * (len(shape) - x.ndim) + x.shape)
            x = jnp.all(x, axis=tuple(range(len(shape), x.ndim)))
            one = tuple(i for i, n in enumerate(shape) if n == 1)
            fit &= jnp.all(x, axis=one, keepdims=True)
    return fit


def differentiated(tangent):
    """The tangent, or None where its argument is absent or not differentiated."""
    return None if isinstance(tangent, jax.custom_derivatives.SymbolicZero) else tangent


def nan_where(failed: Bool[Array, "..."], value: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """The value, NaN with all its derivatives where something failed. A selection would have derivative 0 there."""
    return value * jnp.where(failed, jnp.nan, 1.0)


@custom_jvp
def where_supported(valid: Bool[Array, "..."], density: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """The density, but 0 at points outside a measure's space, with derivative NaN there so that no run trains on."""
    return jnp.where(valid, density, 0)


@where_supported.defjvp
def _where_supported_jvp(primals, tangents):
    valid, density = primals
    return where_supported(valid, density), jnp.where(valid, 1, jnp.nan) * tangents[1]
