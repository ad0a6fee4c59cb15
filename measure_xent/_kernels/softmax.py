"""Cross-entropy of any finite target against a softmax of materialised logits.

One row is H(P, softmax z) = Σ_c P_c · (lse(z) − z_c). Written with the pair (max, tail) of the log-sum-exp,
lse = max + log1p(tail), the surprisal of class c is

    lse − z_c = (max − z_c) + log1p(tail),

two non-negative terms that never cancel: a confident row keeps its relative accuracy. The target comes in the
normal form Σ_j w_j δ_{i_j} + b·(counting measure) + d, whatever measure it came from.

Conventions at the edge, each the limit of finite logits:

- a logit −inf is a class of probability 0: infinite surprisal;
- logits +inf share the whole mass equally, every other class has probability 0;
- a row of nothing but −inf is the null measure: every surprisal is +inf, every probability 0;
- a NaN logit makes its row NaN, unless the row's target is null.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Shaped

from .blocks import in_row_blocks
from .null import differentiated, null_safe_product


class Target(NamedTuple):
    """A finite measure on the classes 0..V−1 in normal form, Σ_j weights_j δ_{indices_j} + background·# + dense.

    Parts that are absent are None. Leading axes index a family and broadcast against the logits'.
    """

    indices: Int[Array, "*family k"] | None = None
    weights: Float[Array, "*family k"] | None = None
    background: Float[Array, "*family"] | None = None
    dense: Float[Array, "*family V"] | None = None


class Rows(NamedTuple):
    """What one pass over the logits gives a row: the cross-entropy, the maximum, and log1p(tail) = lse − maximum."""

    cross_entropy: Float[Array, "*family"]
    top: Float[Array, "*family 1"]
    log1p_tail: Float[Array, "*family 1"]


def cross_entropy(logits: Float[Array, "*family V"], target: Target) -> Float[Array, "*family"]:
    """H(target, softmax(logits)) in nats, one number a row, in float32 or wider.

    An index outside 0..V−1 with a weight that is not 0 has surprisal +inf and makes its row's gradient NaN.
    """
    dtype = accumulator(logits.dtype)
    indices, *measure = target
    indices = None if indices is None else class_index(indices)
    return _rows(logits, indices, *(None if part is None else part.astype(dtype) for part in measure)).cross_entropy


def class_index(x: Shaped[Array, "..."]) -> Int[Array, "..."]:
    """x as class indices: integers wide enough that the number of classes fits, or a TypeError."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(
            f"class labels must be integers, got points of dtype {x.dtype}; a soft target is "
            "Categorical(probs=...) or Discrete(indices, weights)"
        )
    return x.astype(jnp.int32) if x.dtype.itemsize < 4 else x


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype sums are kept in: float32 for half precision, else the dtype itself."""
    return jnp.promote_types(dtype, jnp.float32)


def max_and_log1p_tail(
    z: Float[Array, "*family V"], pivot: Int[Array, "*family"] | None = None
) -> tuple[Float[Array, "*family 1"], Float[Array, "*family 1"]]:
    """(max, log1p(tail)) of each row, with tail = Σ exp(z − max) less the one term of the maximum itself.

    The maximum's own term is exactly 1, and 1 + tail would round a tail below 6e-8 away, so it is kept out of the sum.
    Without a pivot the maximum is left out by comparison, and its ties are counted, in one reduction. A pivot is a class
    where log1p(tail) must be exact if it is the maximum: leaving that out instead is the faster by a third in cache.
    """
    if pivot is None:
        top = jnp.max(z, axis=-1, keepdims=True)
        below, ties = _below_and_ties(z, top)
        tail = (below + (ties - 1))[..., None]
    else:
        own = jnp.take_along_axis(z, pivot[..., None], axis=-1)
        # +inf as the largest number: infinite logits then tie as equals, and are told apart from the rest by the gap.
        largest = jnp.finfo(z.dtype).max
        at_pivot = lax.broadcasted_iota(jnp.int32, z.shape, z.ndim - 1) == pivot[..., None]
        others = jnp.where(at_pivot, -jnp.inf, jnp.minimum(z, largest))
        highest = jnp.max(others, axis=-1, keepdims=True)
        rest = jnp.sum(jnp.exp(others - jnp.maximum(highest, -largest)), axis=-1, keepdims=True) - 1
        top, tail = merge((jnp.minimum(own, largest), jnp.zeros_like(own)), (highest, rest))
        top = jnp.where(top == largest, jnp.inf, top)
    log1p_tail = jnp.where(top == -jnp.inf, jnp.inf, jnp.log1p(tail))
    return top, jnp.where(jnp.isnan(top), top, log1p_tail)


MaxTail = tuple[Float[Array, "*family"], Float[Array, "*family"]]


def merge(a: MaxTail, b: MaxTail) -> MaxTail:
    """The (max, tail) of the classes of both: associative, commutative, with (−inf, −1), of no class, for its unit.

    lse = max + log1p(tail), and the maximum's own term is in neither sum: the lesser part's comes back as the 1 in
    (1 + tail)·exp(−gap). No logit may be +inf.
    """
    (m, s), (n, t) = a, b
    first = m >= n
    top, rest, lesser = jnp.maximum(m, n), jnp.where(first, s, t), jnp.where(first, t, s)
    gap = jnp.where(m == n, 0, top - jnp.minimum(m, n))
    return top, rest + (1 + lesser) * jnp.exp(-gap)


def _below_and_ties(z, top):
    """(Σ_{z < top} exp(z − top), how many are the top), in sums of at most 256 terms, then the sum of these.

    A compiler may add a row one by one, which loses digits with its length: half of float32's at 300 000 classes.
    """
    classes = z.shape[-1]
    if classes > 256:
        n = classes // 256
        split = z[..., : n * 256].reshape(*z.shape[:-1], n, 256)
        parts = [_below_and_ties(split, top[..., None])]
        parts += [_below_and_ties(z[..., n * 256 :], top)] if classes % 256 else []
        # The barrier keeps the compiler from merging the two sums into one of all terms.
        parts = [lax.optimization_barrier(part) for part in parts]
        sums = [(below.sum(-1), ties.sum(-1)) if below.ndim == z.ndim else (below, ties) for below, ties in parts]
        return tuple(functools.reduce(jnp.add, column) for column in zip(*sums, strict=True))
    # Not z < top: a NaN, which a compiler's maximum may pass over, has to reach the sum.
    terms = jnp.where(z >= top, 0, jnp.exp(z - top)), (z == top).astype(z.dtype)
    zeros = (jnp.zeros((), z.dtype),) * 2
    return lax.reduce(terms, zeros, lambda a, b: (a[0] + b[0], a[1] + b[1]), (z.ndim - 1,))


@jax.custom_jvp
def log_softmax(z: Float[Array, "*family V"]) -> Float[Array, "*family V"]:
    """log softmax of each row, with the edge conventions of this module and derivatives of every order."""
    top, log1p_tail = in_row_blocks(lambda z, rows, shared, cached: max_and_log1p_tail(z), z)
    return -(_gap(top, z) + log1p_tail)


@log_softmax.defjvp
def _log_softmax_jvp(primals, tangents):
    (z,), (dz,) = primals, tangents
    return log_softmax(z), dz - jnp.sum(softmax(z) * dz, axis=-1, keepdims=True)


@jax.custom_jvp
def softmax(z: Float[Array, "*family V"]) -> Float[Array, "*family V"]:
    """Softmax of each row, with the edge conventions of this module and derivatives of every order."""
    return jnp.exp(log_softmax(z))


@softmax.defjvp
def _softmax_jvp(primals, tangents):
    (z,), (dz,) = primals, tangents
    p = softmax(z)
    return p, p * (dz - jnp.sum(p * dz, axis=-1, keepdims=True))


def _gap(top, z):
    # Equal values are 0 apart, infinite ones too.
    return jnp.where(z == top, 0, top - z)


def _take(z, indices):
    """z at indices along the last axis, family axes broadcast; an index out of range reads some class."""
    indices = jnp.clip(indices, 0, z.shape[-1] - 1)
    if z.ndim == 1:
        return z[indices]
    family = jnp.broadcast_shapes(z.shape[:-1], indices.shape[:-1])
    z = jnp.broadcast_to(z, (*family, z.shape[-1]))
    return jnp.take_along_axis(z, jnp.broadcast_to(indices, (*family, indices.shape[-1])), axis=-1)


def _out_of_range(indices, classes):
    return (indices < 0) | (indices >= classes)


def _pivot(indices, weights, classes):
    """The heaviest atom, the only class where a row's loss may be tiny beside its mass."""
    if indices.shape[-1] > 1:
        indices = jnp.take_along_axis(indices, jnp.argmax(jnp.abs(weights), axis=-1, keepdims=True), axis=-1)
    return jnp.clip(indices[..., 0], 0, classes - 1)


@jax.custom_jvp
def _rows(z, indices, weights, background, dense) -> Rows:
    if indices is not None:
        indices, weights = jnp.broadcast_arrays(indices, weights)
    target = Target(indices, weights, background, dense)
    family = _family(z, indices, background, dense)
    if family != z.shape[:-1]:  # several targets a row of logits
        return _pass(z, target, Target(), cached=False)
    own, shared = {}, {}
    for name, x in target._asdict().items():
        if x is not None:
            tail = x.ndim - (name != "background")
            lead, event = x.shape[:tail], x.shape[tail:]
            if math.prod(lead) == 1 < math.prod(family):
                shared[name] = x.reshape(event)
            else:
                own[name] = jnp.broadcast_to(x, (*family, *event))
    return in_row_blocks(_pass, z, Target(**own), Target(**shared))


def _pass(z, own, shared, *, cached) -> Rows:
    """The rows of a target whose parts are each row's own, or shared by all rows."""
    indices, weights, background, dense = (a if b is None else b for a, b in zip(own, shared, strict=True))
    z = z.astype(accumulator(z.dtype))
    aligned = indices is not None and indices.shape[:-1] == z.shape[:-1]
    pivot = _pivot(indices, weights, z.shape[-1]) if cached and aligned else None
    top, log1p_tail = max_and_log1p_tail(z, pivot)
    total = jnp.zeros((), z.dtype)
    if weights is not None:
        surprisal = _gap(top, _take(z, indices)) + log1p_tail
        surprisal = jnp.where(_out_of_range(indices, z.shape[-1]), jnp.inf, surprisal)
        total += jnp.sum(_pair(weights, surprisal), axis=-1)
    if background is not None:
        total += _pair(background, jnp.sum(_gap(top, z), axis=-1) + z.shape[-1] * log1p_tail[..., 0])
    if dense is not None:
        total += jnp.sum(_pair(dense, _gap(top, z) + log1p_tail), axis=-1)
    return Rows(jnp.broadcast_to(total, _family(z, indices, background, dense)), top, log1p_tail)


def _rows_jvp(primals, tangents):
    z, indices, weights, background, dense = primals
    dz, _, dweights, dbackground, ddense = (differentiated(t) for t in tangents)
    out = _rows(*primals)
    tangent = jnp.zeros((), out.cross_entropy.dtype)
    if dz is not None:
        residual = _residual(*primals, out.top, out.log1p_tail)
        tangent += jnp.sum(residual * dz.astype(residual.dtype), axis=-1)
    undefined = jnp.isnan(out.top) & _null(weights, background, dense)
    surprisals = lambda: jnp.where(undefined, 0, -log_softmax(jnp.where(undefined, 0, z.astype(tangent.dtype))))
    if dweights is not None:
        surprisal = jnp.where(_out_of_range(indices, z.shape[-1]), jnp.inf, _take(surprisals(), indices))
        tangent += jnp.sum(_at_weight(weights, surprisal) * dweights, axis=-1)
    if dbackground is not None:
        tangent += _at_weight(background, jnp.sum(surprisals(), axis=-1)) * dbackground
    if ddense is not None:
        tangent += jnp.sum(_at_weight(dense, surprisals()) * ddense, axis=-1)
    # Only this module's rules read the last two, and they take their derivative with that of the logits.
    still = jnp.zeros_like(out.top)
    return out, Rows(jnp.broadcast_to(tangent, out.cross_entropy.shape), still, still)


_rows.defjvp(_rows_jvp, symbolic_zeros=True)


@jax.custom_jvp
def _residual(z, indices, weights, background, dense, top, log1p_tail):
    """The gradient in the logits, mass·softmax(z) − P. Null rows are exactly 0, infeasible points make a row NaN."""
    z = z.astype(top.dtype)
    gap = _gap(top, z)
    mass, target = _expand(z, indices, weights, background, dense)
    # At a class of probability above 1/2, p − 1 comes from the tail and P from its complement: mass·p − P would cancel.
    confident = (gap == 0) & (log1p_tail < jnp.log(2.0))
    excess = mass * jnp.expm1(-log1p_tail) + (mass - target)
    residual = jnp.where(confident, excess, mass * jnp.exp(-(gap + log1p_tail)) - target)
    if weights is not None:
        infeasible = jnp.any(_out_of_range(indices, z.shape[-1]) & (weights != 0), axis=-1, keepdims=True)
        residual = jnp.where(infeasible, jnp.nan, residual)
    return jnp.where(_null(weights, background, dense), 0, residual)


def _residual_jvp(primals, tangents):
    z, indices, *measure, top, _ = primals
    dz, _, *dmeasure, _, _ = (differentiated(t) for t in tangents)
    value = _residual(*primals)
    mass, _ = _expand(z, indices, *measure)
    null = _null(*measure)
    p = softmax(jnp.where(null & jnp.isnan(top), 0, z.astype(top.dtype)))
    tangent = jnp.zeros_like(value)
    if dz is not None:
        dz = dz.astype(top.dtype)
        dp = p * (dz - jnp.sum(p * dz, axis=-1, keepdims=True))
        tangent += jnp.where(null, 0, mass * dp)
    if any(d is not None for d in dmeasure):
        # The parts that are not differentiated have tangent 0.
        still = lambda m: m if m is None else jnp.zeros_like(m)
        parts = [still(m) if d is None else d for m, d in zip(measure, dmeasure, strict=True)]
        dmass, dtarget = _expand(z, indices, *parts)
        tangent += jnp.where(null & ~jnp.isfinite(p), 0, dmass * p - dtarget)
    return value, tangent


_residual.defjvp(_residual_jvp, symbolic_zeros=True)


def _expand(z, indices, weights, background, dense):
    """(mass [*, 1], target as a vector over the classes [*, V]), linear in the measure."""
    classes = z.shape[-1]
    mass, target = jnp.asarray(0.0)[None], jnp.asarray(0.0)[None]
    if weights is not None:
        mass += jnp.sum(weights, axis=-1, keepdims=True)
        target += _scatter(indices, weights, classes)
    if background is not None:
        mass += classes * background[..., None]
        target += background[..., None]
    if dense is not None:
        mass += jnp.sum(dense, axis=-1, keepdims=True)
        target += dense
    return mass, target


def _null(weights, background, dense):
    """Whether each row's target is the null measure, [*, 1]."""
    null = jnp.ones((1,), bool)
    for part in (weights, None if background is None else background[..., None], dense):
        null = null if part is None else null & jnp.all(part == 0, axis=-1, keepdims=True)
    return null


def _scatter(indices, weights, classes):
    if indices.shape[-1] <= 4:  # comparisons fuse into the loop that writes the gradient, a scatter would not
        at = jnp.arange(classes)
        atoms = range(indices.shape[-1])
        return sum(jnp.where(at == indices[..., j : j + 1], weights[..., j : j + 1], 0) for j in atoms)
    indices = jnp.broadcast_to(indices, weights.shape)
    indices = jnp.where(_out_of_range(indices, classes), classes, indices).reshape(-1, indices.shape[-1])
    rows = jnp.arange(indices.shape[0])[:, None]
    flat = weights.reshape(indices.shape)
    out = jnp.zeros((indices.shape[0], classes), weights.dtype).at[rows, indices].add(flat, mode="drop")
    return out.reshape(*weights.shape[:-1], classes)


def _pair(weight, surprisal):
    return null_safe_product(weight, surprisal, surprisal)


def _at_weight(weight, surprisal):
    """∂/∂w of w·surprisal: the surprisal, but at a null atom 0 where it is not finite."""
    return jnp.where((weight == 0) & ~jnp.isfinite(surprisal), 0, surprisal)


def _family(z, indices, background, dense):
    parts = [z.shape[:-1]]
    parts += [] if indices is None else [indices.shape[:-1]]
    parts += [] if background is None else [background.shape]
    parts += [] if dense is None else [dense.shape[:-1]]
    return jnp.broadcast_shapes(*parts)
