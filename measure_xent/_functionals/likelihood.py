"""Likelihood and the geometry of families: projections, the score, and the curvature of a cross-entropy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._conditionals.conditional import AbstractConditional, Conditional
from .._conditionals.joint import joint
from .._integrands.density import log
from .._measures.atoms import Atoms
from .._measures.measure import Measure
from .._pytree import as_node, pytree, set_fields
from .._strict import of_user, promoting
from .divergences import cumulant
from .information import cross_entropy


def log_likelihood(
    Q: Measure | AbstractConditional, data: Any, *, base: float | None = None
) -> Float[Array, "*family"]:
    """Σ log q(xᵢ) = −n · H(P̂, Q), in nats or units of ``base``: the integral of log q over the data's atoms.

    Maximising it is minimising the cross-entropy from the empirical measure P̂.

    Args:
        Q: the model; a Conditional for data of tuples (x, y).
        data: samples along the leading axis of every array, as of ``Atoms``; or a measure, such as Atoms with weights.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> x = jnp.array([0, 0, 1, 0])
        >>> Q = mx.Bernoulli(probs=0.25)
        >>> mx.log_likelihood(Q, x).item(), -4 * mx.cross_entropy(mx.Empirical(x), Q).item()  # 3 log ¾ + log ¼
        (-2.2493, -2.2493)
    """
    return (data if isinstance(data, Measure) else Atoms(data)).expect(log(Q, base))


def project(P: Measure, Q: Any, start: PyTree | None = None, *, steps: int = 500, tolerance: float = 1e-4) -> Any:
    """The member of Q's family closest to P, argmin H(P, Q): the maximum of likelihood, if P is empirical.

    Of an exponential family it is the one whose statistics have P's means, in closed form or by Newton's method, and
    differentiable. Of anything else it is found by optax's L-BFGS over Q's parameters, which then have to be free to be any
    numbers, and has no derivative. Source: Csiszár & Shields (2004), §3; Amari (2016), *Information Geometry*, §2.8.

    Args:
        P: the measure to be matched, or a family, one projection each.
        Q: a member of the family, a Measure or a Conditional, which L-BFGS starts from; or with ``start`` a function of
            parameters into either.
        start: the parameters to start from.
        steps: of L-BFGS at most.
        tolerance: of the gradient's norm, against that at the start.

    Returns:
        A member like Q; a Conditional that closes over its parameters has them at ``function.parameters``. They are NaN where
        no member has a finite H, or L-BFGS came to no tolerable gradient.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.project(mx.Empirical(jnp.array([1., 2., 3.])), mx.Normal(0., 1.))
        Normal(loc=Array(2., dtype=float32), scale=Array(0.8164966, dtype=float32))
        >>> mx.project(mx.Normal(0., 1.), mx.Laplace(0., 1.)).scale.item()  # E|x|
        0.7979
        >>> P = mx.Empirical((jnp.array([[3., 0.], [3., 0.], [3., 0.]]), jnp.array([0, 0, 1])))
        >>> softened = mx.project(P, lambda T: mx.Conditional(lambda z: mx.Categorical(z / T)), 1.)
        >>> softened.function.parameters.item()  # the temperature at which σ(3 / T) is ⅔: 3 / log 2
        4.328
    """
    if not isinstance(P, Measure):
        raise TypeError(f"project(P, Q): P must be a Measure, got {type(P).__name__}")
    if start is None:
        if not isinstance(Q, Measure | AbstractConditional):
            raise TypeError(
                f"project(P, Q): Q must be a Measure or a Conditional, got {type(Q).__name__}; of a function, pass its start"
            )
        known = getattr(Q, "closest_to", lambda P: NotImplemented)(P)
        if known is not NotImplemented:
            return _where(jnp.isfinite(cross_entropy(P, known)) & (P.mass != 0), known)
    if P.shape:
        raise ValueError(f"project(P, Q): L-BFGS takes one measure P, got a family {P.shape}; vmap over it")
    if start is None:
        if not jax.tree.leaves(Q):
            raise TypeError(
                "project(P, Q): Q has no parameters to see; of a Conditional whose function holds them, pass the function "
                "that makes it and their start: project(P, lambda T: Conditional(…), 1.)"
            )
        return _descend(lambda Q: cross_entropy(P, Q), Q, steps, tolerance)
    family: Any = Q
    best = _descend(lambda parameters: cross_entropy(P, of_user(family)(parameters)), start, steps, tolerance)
    member = of_user(family)(best)
    # Two closures are two structures: what such a Conditional closes over nobody could read, nor jit let out.
    hidden = isinstance(member, AbstractConditional) and jax.tree.structure(member) != jax.tree.structure(
        of_user(family)(best)
    )
    return Conditional(Member(family, best)) if hidden else member


@pytree
class Member:
    """x ↦ K(x) for the Conditional K that a family gives for its parameters, which are leaves of the node."""

    family: Any
    parameters: Any

    def __post_init__(self):
        set_fields(self, family=as_node(self.family))

    def __call__(self, *x):
        return of_user(self.family)(self.parameters)(*x)


def _descend(loss: Callable, start: PyTree, steps: int, tolerance: float) -> PyTree:
    """The parameters that L-BFGS comes to, NaN if it does not converge."""
    start = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x, float)), start)
    solver = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(loss)
    norm = lambda parameters: optax.tree.norm(jax.grad(loss)(parameters))
    enough = tolerance * jnp.maximum(norm(start), 1e-3)

    def step(carry):
        parameters, state, i, _ = carry
        value, gradient = value_and_gradient(parameters, state=state)
        update, state = solver.update(gradient, state, parameters, value=value, grad=gradient, value_fn=loss)
        parameters = optax.apply_updates(parameters, update)
        return parameters, state, i + 1, optax.tree.norm(optax.tree.get(state, "grad"))

    unfinished = lambda carry: (carry[2] < steps) & (carry[3] > enough)
    best, _, _, left = jax.lax.while_loop(unfinished, step, (start, solver.init(start), 0, norm(start)))
    return _where(left <= enough, best)


def _where(found: Array, parameters: PyTree) -> PyTree:
    """The parameters, NaN for those members of a family that were not found."""
    return jax.tree.map(lambda x: jnp.where(jnp.expand_dims(found, range(found.ndim, x.ndim)), x, jnp.nan), parameters)


def information_projection(
    P: Measure, T: Callable, moments: Float[ArrayLike, "*d"], *, steps: int = 50, tolerance: float = 1e-4
) -> Measure:
    """The measure closest to P with given means, argmin KL(Q‖P) over E_Q[T] = t: exp(θ·T − A(θ)) · P.

    Found by Newton's method on the dual, A(θ) − θ·t with A the cumulant, and differentiable in the means. Source: Csiszár
    (1975), *I-divergence geometry of probability distributions and minimization problems*.

    Args:
        P: one probability measure.
        T: a function of a point with a number or a vector for a value.
        moments: t, its mean under what is sought.

    Returns:
        P reweighted; its density is NaN where no θ has the means.

    Raises:
        ValueError: P is a family, or T's numbers are not as many as the moments.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> die = mx.DiscreteUniform(6)  # Jaynes: faces 1…6 whose mean is 4.5
        >>> Q = mx.information_projection(die, lambda face: face + 1.0, 4.5)
        >>> Q.expect(lambda face: face + 1.0).item(), mx.log(Q)(5).item()
        (4.5, -1.057)
    """
    t = jnp.atleast_1d(jnp.asarray(moments, float))
    if t.ndim != 1 or P.shape:
        raise ValueError(
            f"information_projection(P, T, moments): one measure P and a vector, one entry a statistic, got a family {P.shape} "
            f"and shape {t.shape}; vmap over them"
        )
    T = as_node(T)
    if (given := jax.eval_shape(lambda: P.expect(T)).size) != len(t):
        raise ValueError(f"information_projection(T, moments): T gives {given} numbers, moments are {len(t)}")

    @jax.jit  # called eagerly it is one program, too
    def solution(P, t):
        A = lambda theta: cumulant(P, Partial(_along, T, theta))
        gap = lambda theta: jax.grad(A)(theta) - t

        def newton(gap, theta):
            # Damped by the decrement, the step stays where the second order holds (Nesterov & Nemirovskii).
            rate = gap(theta)
            step = _inverse(jax.jacfwd(gap)(theta)) @ rate
            return step / (1 + jnp.sqrt(jnp.maximum(step @ rate, 0)))

        solve = lambda gap, start: jax.lax.fori_loop(0, steps, lambda _, theta: theta - newton(gap, theta), start)
        linear = lambda g, y: _inverse(jax.jacfwd(g)(y)) @ y
        # Differentiated as a root, implicitly and to any order, whatever found it.
        theta = jax.lax.custom_root(gap, jnp.zeros_like(t), solve, linear)
        met = jnp.linalg.norm(jax.lax.stop_gradient(gap(theta))) <= tolerance * (1 + jnp.linalg.norm(t))
        theta = jnp.where(met, theta, jnp.nan)
        return theta, A(theta)

    return P.reweight(Partial(_tilt, T, *solution(P, t)))


def _inverse(hessian: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """On the statistics that vary, should one be made of the others."""
    return jnp.linalg.pinv(hessian, hermitian=True)


def _along(T, theta, *x):
    return theta @ jnp.ravel(of_user(T)(*x))


def _tilt(T, theta, log_partition, *x):
    return jnp.exp(_along(T, theta, *x) - log_partition)


def score(family: Callable, theta: PyTree) -> Callable:
    """x ↦ ∇_θ log q_θ(x), whose mean under q_θ is 0. Source: Fisher (1922).

    Args:
        family: a function of parameters into a Measure, or a Conditional for points (x…, y).
        theta: the parameters, any pytree of arrays.

    Examples:
        >>> import measure_xent as mx
        >>> mx.score(lambda m: mx.Normal(m, 2.), 0.)(3.).item()  # x/σ²
        0.75
    """
    return lambda *x: jax.grad(lambda theta: log(of_user(family)(theta))(*x))(theta)


def fisher_information(family: Callable, theta: PyTree, P: Measure | None = None) -> Float[Array, "d d"]:
    """E[∇log q ∇log qᵀ] under q_θ, θ in the order of ``ravel_pytree``; of a family of Conditionals, under P ⊗ q_θ.

    Examples:
        >>> import measure_xent as mx
        >>> mx.fisher_information(lambda theta: mx.Normal(*theta), (0., 2.)).tolist()  # 1/σ², 2/σ²
        [[0.25, 0.0], [0.0, 0.5]]
    """
    flat, unravel = ravel_pytree(theta)
    gradient = score(lambda flat: family(unravel(flat)), flat)
    return _model_measure(family, theta, P).expect(lambda *x: jnp.outer(g := gradient(*x), g))


def _model_measure(family: Callable, theta: PyTree, P: Measure | None) -> Measure:
    """The measure that the family says the points are from."""
    Q = of_user(family)(jax.lax.stop_gradient(theta))
    if isinstance(Q, Measure):
        return Q
    if P is None:
        raise TypeError("a family of Conditionals needs the measure P of x")
    return joint(P, Q)


def fisher_vector_product(family: Callable, theta: PyTree, P: Measure | None = None) -> Callable[[PyTree], PyTree]:
    """v ↦ F v without the matrix F, the Fisher information: the Hessian at θ of θ′ ↦ H(q_θ, q_θ′). Arguments as of
    ``fisher_information``.

    Source: Martens (2020), *New insights and perspectives on the natural gradient method*, §5.

    Examples:
        >>> import measure_xent as mx
        >>> F = mx.fisher_vector_product(lambda theta: mx.Normal(*theta), (0., 2.))
        >>> [x.item() for x in F((1., 1.))]
        [0.25, 0.5]
    """
    loss = lambda theta: cross_entropy(model, of_user(family)(theta))
    model = _model_measure(family, theta, P)
    return lambda v: jax.jvp(jax.grad(loss), (theta,), (v,))[1]


def gauss_newton(P: Measure, family: Callable, theta: PyTree) -> Callable[[PyTree], PyTree]:
    """v ↦ Jᵀ H J v, the generalised Gauss–Newton matrix of θ ↦ H(P, q_θ): H is the Hessian in the parameters z of the measure
    ``family(θ)``, J = dz/dθ.

    Of logits it is the Fisher information at P's inputs, and never negative. Source: Schraudolph (2002).

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> family = lambda w: mx.Categorical(jnp.stack([jnp.zeros(()), w]))
        >>> mx.gauss_newton(mx.Dirac(1), family, 0.)(1.).item()  # ½ · ½
        0.25
    """
    Q, pull = jax.vjp(of_user(family), theta)
    if jax.tree.structure(of_user(family)(theta)) != jax.tree.structure(of_user(family)(theta)):
        raise TypeError(
            "gauss_newton(family): its measure must hold its parameters as leaves, such as Conditional(Partial(f, logits)), "
            "not close over them"
        )

    def product(v):
        dz = jax.jvp(of_user(family), (theta,), (v,))[1]
        return pull(jax.jvp(jax.grad(lambda Q: cross_entropy(P, Q)), (Q,), (dz,))[1])[0]

    return product


def natural_gradient(damping: float = 1e-3, iterations: int = 20) -> optax.GradientTransformationExtraArgs:
    """An optax transformation: the gradient g becomes (C + damping)⁻¹ g, by conjugate gradients, with the C that ``update``
    gets as ``curvature``, such as ``fisher_vector_product`` at the parameters. Source: Amari (1998); Martens (2010).

    Args:
        damping: what is added to the curvature in every direction.
        iterations: of conjugate gradients at most, one product with C each; they start from the last solution.

    Examples:
        >>> import jax, jax.numpy as jnp, optax, measure_xent as mx
        >>> family, P = lambda theta: mx.Normal(theta["loc"], jnp.exp(theta["log_scale"])), mx.Normal(3., 0.5)
        >>> optimizer = optax.chain(mx.natural_gradient(1e-6), optax.scale_by_learning_rate(1.0))
        >>> theta = {"loc": jnp.array(2.5), "log_scale": jnp.array(-0.5)}
        >>> state = optimizer.init(theta)
        >>> for _ in range(4):
        ...     gradient = jax.grad(lambda theta: mx.cross_entropy(P, family(theta)))(theta)
        ...     update, state = optimizer.update(gradient, state, theta, curvature=mx.fisher_vector_product(family, theta))
        ...     theta = optax.apply_updates(theta, update)
        >>> theta["loc"].item(), jnp.exp(theta["log_scale"]).item()
        (3.0, 0.5)
    """

    @promoting
    def init(params):
        return optax.tree.zeros_like(params)

    @promoting
    def update(
        updates: Any, state: Any, params: Any = None, *, curvature: Callable | None = None, **others: Any
    ) -> Any:
        del params, others
        if curvature is None:
            raise TypeError(
                "natural_gradient: update(…, curvature=C), such as C = fisher_vector_product(family, params, P)"
            )
        damped = lambda v: optax.tree.add_scale(of_user(curvature)(v), damping, v)
        solution, _ = jax.scipy.sparse.linalg.cg(damped, updates, x0=state, maxiter=iterations)
        return solution, solution

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]
