"""Gradients as integrals, which micro-batches, devices and processes add up and divide once."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from ._integrands.integral import Integral
from ._kernels.mesh import vary, varying
from ._strict import of_user, promoting


def value_and_grad(
    integral: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., tuple[Any, Integral]]:
    """``jax.value_and_grad`` of a function that gives an Integral: (the integral, the integral of its gradient).

    The gradient of ∫ f dP is an integral against P too: over micro-batches in a scan, over devices by ``jax.lax.psum``, both
    add up, and ``mean`` divides by the mass once. A mean of gradients of means is not the gradient of the mean where masses
    differ, as they do under masks. The mass counts as a constant. Parts are ``Atoms``, or restrictions of one measure:
    an ``Empirical`` has mass 1 however few its rows are.

    Args:
        integral: of parameters and data; its value is a number.
        argnums: of the arguments to differentiate, as ``jax.grad`` takes it.
        has_aux: the function gives (integral, anything else), such as an Integral of other figures to add up.

    Returns:
        A function of the same arguments. The gradient's value is like the arguments, its mass that of the integral. With
        ``has_aux`` it gives ((integral, anything else), gradient).

    Raises:
        TypeError: the function gives no Integral of a number.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> def loss(logits, labels, mask):
        ...     return mx.Atoms(labels, weights=mask).integrate(-mx.log(mx.Categorical(logits)))
        >>> parts = [(jnp.array([0, 1]), jnp.array([1., 1.])), (jnp.array([1, 1]), jnp.array([1., 0.]))]
        >>> value, gradient = map(sum, zip(*(mx.value_and_grad(loss)(jnp.zeros(2), *part) for part in parts)))
        >>> value.mean.item(), gradient.mean.tolist()  # log 2; softmax − (1, 2)/3
        (0.693147, [0.166667, -0.166667])
    """

    def of_value(*args):
        given = of_user(integral)(*args)
        result = given[0] if has_aux else given
        if not isinstance(result, Integral) or jax.tree.map(jnp.shape, result.value) != ():
            raise TypeError(
                "value_and_grad(integral): a function that gives an Integral of one number, as P.integrate(f) does, got a "
                f"{type(result).__name__} of {jax.tree.map(jnp.shape, getattr(result, 'value', ''))}; other figures go beside "
                "it, with has_aux=True"
            )
        return result.checked, (result, given)

    def both(*args):
        if jax.sharding.get_abstract_mesh().manual_axes:
            args = _each_device_its_own(of_value, args, argnums)
        (_, (total, given)), gradient = jax.value_and_grad(of_value, argnums, has_aux=True)(*args)
        slope = Integral(gradient, jax.tree.map(lambda _: 0.0, gradient), total.status, total.mass)
        return given, slope

    return both


def _each_device_its_own(of_value: Callable, args: tuple, argnums: int | Sequence[int]) -> tuple:
    """The arguments inside shard_map as what varies over the axes that the integral does: JAX sums the gradient of what does
    not over devices, and the integral itself it does not."""
    axes = varying(jax.eval_shape(lambda: of_value(*args)[0]))
    chosen = {i % len(args) for i in ((argnums,) if isinstance(argnums, int) else argnums)}
    own = lambda x: vary(jnp.asarray(x), axes)
    return tuple(jax.tree.map(own, x) if i in chosen else x for i, x in enumerate(args))


class Accumulated(NamedTuple):
    """What ``accumulate`` keeps: the gradient so far, in float32 or wider, its mass, and how many parts there were."""

    gradient: PyTree[Float[Array, "..."]]
    mass: Float[Array, ""]
    parts: Int[Array, ""]
    inner: Any


def accumulate(optimizer: optax.GradientTransformation, steps: int) -> optax.GradientTransformationExtraArgs:
    """``optax.MultiSteps`` for integrals: the optimizer sees the mean gradient of every so many micro-batches taken together.

    ``optax.MultiSteps`` averages the micro-batches' means, which weighs a token of a short batch more than one of a long batch.
    Transformations of the gradient, such as clipping, go inside: ``accumulate(optax.chain(clip, adam), steps)``.

    Args:
        optimizer: any optimizer of optax.
        steps: how many updates make one of the optimizer's; the others are 0.

    Returns:
        A transformation whose ``update`` takes the gradient as an Integral: ``value_and_grad(…)`` gives it.

    Raises:
        ValueError: steps is no positive int.
        TypeError: ``update`` got gradients that are no Integral.
        ValueError: ``update`` got gradients of another structure than the parameters'.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx, optax
        >>> optimizer = mx.accumulate(optax.sgd(1.0), steps=2)
        >>> state = optimizer.init(jnp.zeros(1))
        >>> for total, mass in ((3., 3.), (5., 1.)):
        ...     update, state = optimizer.update(mx.Integral(jnp.array([total]), 0., mass=mass), state)
        ...     print(update)
        [0.]
        [-2.]
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"accumulate(steps): a positive int, got {steps!r}")
    inner = optax.with_extra_args_support(optimizer)

    @promoting
    def init(params):
        wide = lambda x: jnp.zeros(jnp.shape(x), jnp.promote_types(jnp.result_type(x), jnp.float32))
        return Accumulated(
            jax.tree.map(wide, params), jnp.zeros(()), jnp.zeros((), jnp.int32), of_user(inner.init)(params)
        )

    @promoting
    def update(updates, state, params=None, **extra):
        if not isinstance(updates, Integral) or updates.mass is None:
            raise TypeError(
                f"accumulate: update takes the gradient as an Integral with its mass, got {type(updates).__name__}; "
                "mx.value_and_grad(lambda params, …: P.integrate(f)) gives it"
            )
        given, kept = map(jax.tree.structure, (updates.value, state.gradient))
        if given != kept:
            raise ValueError(f"accumulate: update takes a gradient like the parameters, {kept}, got {given}")
        gradient = jax.tree.map(lambda a, g: a + g, state.gradient, updates.checked)
        mass, count = state.mass + updates.mass, state.parts + 1
        cast = functools.partial(jax.tree.map, lambda x, like: x.astype(jnp.result_type(like)))

        def step(_):
            mean = cast(Integral(gradient, 0.0, mass=mass).mean, updates.value)
            new, after = of_user(inner.update)(mean, state.inner, params, **extra)
            zero = functools.partial(jax.tree.map, jnp.zeros_like)
            return new, Accumulated(zero(gradient), zero(mass), zero(count), after)

        def wait(_):
            shapes = jax.eval_shape(step, None)[0]
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), Accumulated(
                gradient, mass, count, state.inner
            )

        return jax.lax.cond(count == steps, step, wait, None)

    return optax.GradientTransformationExtraArgs(init, update)
