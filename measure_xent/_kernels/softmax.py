"""Cross-entropy of any finite target against a softmax of materialised logits.

One row is H(P, softmax z) = Σ_c P_c · (lse(z) − z_c). The log-sum-exp is kept as a pair (r, s), lse = r + s: a reference,
one of the row's own logits, and s = log Σ_c exp(z_c − r) = log1p(Σ over the classes but that one). The surprisal of class c
is then

    lse − z_c = (r − z_c) + s,

and where the reference is the maximum, or c itself, these are non-negative terms that never cancel: a confident row keeps
its relative accuracy. The target comes in the normal form Σ_j w_j δ_{i_j} + b·(counting measure) + d, whatever measure it
came from.

Conventions at the edge, each the limit of finite logits:

- a logit −inf is a class of probability 0: infinite surprisal;
- logits +inf share the whole mass equally, every other class has probability 0;
- a row of nothing but −inf is the null measure: every surprisal is +inf, every probability 0;
- a NaN logit makes its row NaN, unless the row's target is null;
- of several maxima the first is the mode.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Shaped

from .blocks import SHORT_ROW, in_row_blocks
from .mesh import AxisName, axes_of, sum_over, vary, varying
from .null import differentiated, null_safe_product


class Target(NamedTuple):
    """A finite measure on the classes 0..V−1 in normal form, Σ_j weights_j δ_{indices_j} + background·# + dense.

    Parts that are absent are None. Leading axes index a family and broadcast against the logits'.
    """

    indices: Int[Array, "*family k"] | None = None
    weights: Float[Array, "*family k"] | None = None
    background: Float[Array, "*family"] | None = None
    dense: Float[Array, "*family V"] | None = None


def split(target: Target, family: tuple[Any, ...]) -> tuple[Target, Target]:
    """The target as the parts that are each row's own, with the family's axes, and those shared by all, with none."""
    own, shared = {}, {}
    for name, x in target._asdict().items():
        if x is not None:
            tail = x.ndim - (name != "background")
            lead, event = x.shape[:tail], x.shape[tail:]
            if math.prod(lead) == 1 < math.prod(family):
                shared[name] = x.reshape(event)
            else:
                own[name] = jnp.broadcast_to(x, (*family, *event))
    return Target(**own), Target(**shared)


def join(own: Target, shared: Target) -> Target:
    return Target(*(a if b is None else b for a, b in zip(own, shared, strict=True)))


class Rows(NamedTuple):
    """What one pass over the logits gives a row; mode and surprisal together, and entropy, where they are asked for."""

    cross_entropy: Float[Array, "*family"]
    reference: Float[Array, "*rows 1"]  # a logit of the row
    log_sum: Float[Array, "*rows 1"]  # lse − reference
    mode: Int[Array, "*rows"] | None = None  # the first class that has the maximum
    surprisal: Float[Array, "*rows"] | None = None  # of the mode
    entropy: Float[Array, "*rows"] | None = None  # of the softmax

    @property
    def log_partition(self) -> Float[Array, "*rows"]:
        """The log-sum-exp; −inf of nothing but −inf."""
        return jnp.where(self.reference == -jnp.inf, self.reference, self.reference + self.log_sum)[..., 0]


def cross_entropy(logits: Float[Array, "*family V"], target: Target) -> Float[Array, "*family"]:
    """H(target, softmax(logits)) in nats, one number a row, in float32 or wider.

    An index outside 0..V−1 with a weight that is not 0 has surprisal +inf and makes its row's gradient NaN.
    """
    return rows(logits, target).cross_entropy


def rows(
    logits: Float[Array, "*family V"],
    target: Target,
    asked: tuple[str, ...] = (),
    axis_name: AxisName | None = None,
) -> Rows:
    """Cross-entropy and log-partition of every row, and what else is ``asked`` for, by name, from the same pass.

    With ``axis_name`` each device of that mesh axis has its part of the logits and of a dense target; a target's indices count
    all classes, and the figures are those of the whole rows, the same on every device.
    """
    dtype = accumulator(logits.dtype)
    indices, *measure = target
    indices = None if indices is None else class_index(indices)
    parts = (None if part is None else part.astype(dtype) for part in measure)
    return _rows(asked, Classes.of(logits, axis_name), logits, indices, *parts)


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


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes, an array's last axis: all of them, or the equal part that each device of a mesh axis has.

    Sums and extrema are over all of them: of parts, by collectives of one number a row. A part is known to shard_map as
    varying over its axis, which is what makes the transposes of these sums, the gradients, right.
    """

    here: int
    axis_name: AxisName | None = None

    @classmethod
    def of(cls, z: Float[Array, "*family V"], axis_name: AxisName | None = None) -> "Classes":
        return cls(z.shape[-1], axis_name)

    @property
    def count(self) -> int:
        """V."""
        return self.here if self.axis_name is None else self.here * lax.axis_size(self.axis_name)

    @property
    def first(self) -> Any:
        """The index of the first class here."""
        return 0 if self.axis_name is None else self.here * lax.axis_index(self.axis_name)

    def all_parts(self, sums: Any) -> Any:
        """The sums over the classes here, summed over all parts."""
        return sum_over(sums, axes_of(self.axis_name))

    def sum(self, f: Callable, z: Float[Array, "*family V"]) -> Float[Array, "*family 1"]:
        """Σ_c f(z_c, c)."""
        return self.all_parts(over_classes(jnp.sum, jnp.add, f, z, self.first))

    def max(self, z: Float[Array, "*family V"]) -> Float[Array, "*family 1"]:
        top = over_classes(jnp.max, jnp.maximum, lambda z, c: z, z)
        if self.axis_name is None:
            return top
        # Not pmax, which has no derivative: JAX 0.10 forgets a custom rule where it linearises a scan, and takes this one's.
        return jnp.max(lax.all_gather(top, self.axis_name, to="invarying"), axis=0)

    def min(self, f: Callable, z: Float[Array, "*family V"]) -> Array:
        """The least f(z_c, c)."""
        least = over_classes(jnp.min, jnp.minimum, f, z, self.first)
        return least if self.axis_name is None else lax.pmin(lax.stop_gradient(least), self.axis_name)

    def take(self, z: Float[Array, "*family V"], indices: Int[Array, "*family k"]) -> Float[Array, "*family k"]:
        """z at class indices, family axes broadcast; an index out of range reads some number."""
        if self.axis_name is None:
            return _take(z, indices)
        at = indices - self.first
        return self.all_parts(jnp.where(_out_of_range(at, self.here), 0, _take(z, at)))

    def part(self, z: Float[Array, "*family V"]) -> Float[Array, "*family here"]:
        """Of all classes, those here."""
        return z if self.axis_name is None else lax.dynamic_slice_in_dim(z, self.first, self.here, -1)

    def gather(self, z: Float[Array, "*family here"]) -> Float[Array, "*family V"]:
        """All of the rows whose classes here are z."""
        if self.axis_name is None:
            return z
        empty = jnp.zeros((*z.shape[:-1], self.count), z.dtype)
        return self.all_parts(lax.dynamic_update_slice_in_dim(empty, z, self.first, -1))

    def excludes(self, indices: Int[Array, "*family k"]) -> Bool[Array, "*family k"]:
        """Whether an index is of no class at all."""
        return _out_of_range(indices, self.count)


def over_classes(
    reduce: Callable, combine: Callable, f: Callable, z: Float[Array, "*family V"], first: Any = 0
) -> Array:
    """``reduce`` of f(z_c, c) over the classes from ``first`` on, [*family, 1]; ``combine`` is the same for two.

    A compiler vectorises the loop over the classes. Where they are few, written out they vectorise over the rows.
    """
    classes = z.shape[-1]
    if classes <= SHORT_ROW:
        return functools.reduce(combine, [f(z[..., c : c + 1], first + c) for c in range(classes)])
    return reduce(f(z, first + lax.broadcasted_iota(jnp.int32, z.shape, z.ndim - 1)), axis=-1, keepdims=True)


def max_and_log1p_tail(
    z: Float[Array, "*family V"], classes: Classes | None = None
) -> tuple[Float[Array, "*family 1"], Float[Array, "*family 1"]]:
    """(max, log1p(tail)) of each row, with tail = Σ exp(z − max) less the one term of the maximum itself.

    The maximum's own term is exactly 1, and 1 + tail would round a tail below 6e-8 away, so it is kept out of the sum: by
    comparison, and what ties with it is counted.
    """
    classes = classes or Classes.of(z)
    top = classes.max(z)
    # Not z < top: a NaN, which a compiler's maximum may pass over, has to reach the sum.
    below = classes.sum(lambda z, c: jnp.where(z >= top, 0, jnp.exp(z - top)), z)
    ties = classes.sum(lambda z, c: (z == top).astype(z.dtype), z)
    log1p_tail = jnp.where(top == -jnp.inf, jnp.inf, jnp.log1p(below + (ties - 1)))
    return top, jnp.where(jnp.isnan(top), top, log1p_tail)


def _relative_to_class(
    z: Float[Array, "*family V"], pivot: Int[Array, "*family"]
) -> tuple[Float[Array, "*family 1"], Float[Array, "*family 1"]]:
    """(z_pivot, log Σ_c exp(z_c − z_pivot)) of each row: one pass, for no maximum has to be known first.

    The sum overflows where the pivot is too far below the maximum, or −inf.
    """
    own = jnp.take_along_axis(z, pivot[..., None], axis=-1)
    # e^16 larger: terms too small for a float32 one by one may add up to a number that it holds.
    term = lambda z, c: jnp.where(c == pivot[..., None], 0, jnp.exp((z - own) + 16))
    return own, jnp.log1p(math.exp(-16) * over_classes(jnp.sum, jnp.add, term, z))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def log_softmax(classes: Classes, z: Float[Array, "*family V"]) -> Float[Array, "*family V"]:
    """log softmax of each row, with the edge conventions of this module and derivatives of every order."""
    top, log1p_tail = _tops(classes, z)
    return -(_gap(top, z) + log1p_tail)


@log_softmax.defjvp
def _log_softmax_jvp(classes, primals, tangents):
    (z,), (dz,) = primals, tangents
    return log_softmax(classes, z), dz - _inner(classes, softmax(z, classes), dz)


def softmax(z: Float[Array, "*family V"], classes: Classes | None = None) -> Float[Array, "*family V"]:
    """Softmax of each row, with the edge conventions of this module and derivatives of every order."""
    classes = classes or Classes.of(z)
    return _probabilities(classes, z, *_tops(classes, lax.stop_gradient(z)))


def _tops(classes, z):
    return in_row_blocks(lambda z, rows, shared: max_and_log1p_tail(z, classes), z)


def _inner(classes, a, b):
    return classes.all_parts(jnp.sum(a * b, axis=-1, keepdims=True))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _probabilities(classes, z, reference, log_sum):
    """softmax(z), where the log-sum-exp is known already."""
    return jnp.exp(-(_gap(reference, z) + log_sum))


@_probabilities.defjvp
def _probabilities_jvp(classes, primals, tangents):
    p, dz = _probabilities(classes, *primals), tangents[0]
    return p, p * (dz - _inner(classes, p, dz))


def _gap(reference, z):
    # Equal values are 0 apart, infinite ones too.
    return jnp.where(z == reference, 0, reference - z)


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
    """The heaviest atom."""
    if indices.shape[-1] > 1:
        indices = jnp.take_along_axis(indices, jnp.argmax(jnp.abs(weights), axis=-1, keepdims=True), axis=-1)
    return jnp.clip(indices[..., 0], 0, classes - 1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _rows(asked, classes, z, indices, weights, background, dense) -> Rows:
    if indices is not None:
        indices, weights = jnp.broadcast_arrays(indices, weights)
    target = Target(indices, weights, background, dense)
    family = _family(z, indices, background, dense)
    if family != z.shape[:-1]:  # several targets a row of logits
        return _pass(z, target, Target(), classes=classes, asked=asked)
    own, shared = split(target, family)
    operands = z, own, shared
    exact = lambda *operands: in_row_blocks(functools.partial(_pass, classes=classes, asked=asked), *operands)
    few = own.indices is not None and own.indices.shape[-1] <= 2 and dense is None
    if not few or asked or classes.axis_name is not None or z.shape[-1] <= SHORT_ROW:
        return exact(*operands)

    def fast(*operands):
        out = in_row_blocks(functools.partial(_pass, classes=classes, by_class=True), *operands)
        # The heaviest atom is the only class where the loss may be tiny beside the row's mass if that is half of it.
        heaviest = jnp.max(jnp.abs(weights), axis=-1)
        rest = jnp.sum(jnp.abs(weights), axis=-1) - heaviest
        rest = rest if background is None else rest + z.shape[-1] * jnp.abs(background)
        likely = out.log_sum[..., 0] <= math.log(2)
        fine = jnp.isfinite(out.log_sum[..., 0]) & (likely | (heaviest >= rest))
        return lax.cond(_all(fine), lambda: out, lambda: exact(*operands))

    return lax.platform_dependent(*operands, cpu=fast, default=exact)


@jax.custom_batching.custom_vmap
def _all(x):
    return jnp.all(x)


@_all.def_vmap
def _all_of_a_batch(axis_size, in_batched, x):
    # One answer for the whole batch keeps a cond one: under vmap, with an answer for each, it would always run both sides.
    return _all(x), False


def _pass(z, own, shared, *, classes, by_class=False, asked=()) -> Rows:
    """The rows of a target whose parts are each row's own, or shared by all rows."""
    indices, weights, background, dense = join(own, shared)
    z = z.astype(accumulator(z.dtype))
    if by_class:
        reference, log_sum = _relative_to_class(z, _pivot(indices, weights, z.shape[-1]))
    else:
        reference, log_sum = max_and_log1p_tail(z, classes)
    gap = functools.partial(_gap, reference)
    total = jnp.zeros((), z.dtype)
    if weights is not None:
        surprisal = gap(classes.take(z, indices)) + log_sum
        surprisal = jnp.where(classes.excludes(indices), jnp.inf, surprisal)
        total += jnp.sum(_pair(weights, surprisal), axis=-1)
    if background is not None:
        # Without the barrier XLA's CPU compiler pulls columns written out apart, into a later sum over the rows.
        gaps = lax.optimization_barrier(classes.sum(lambda z, c: gap(z), z))
        total += _pair(background, (gaps + classes.count * log_sum)[..., 0])
    if dense is not None:
        total += classes.all_parts(jnp.sum(_pair(dense, gap(z) + log_sum), axis=-1))
    total = vary(total, varying(reference))  # where the target is empty too
    out = Rows(jnp.broadcast_to(total, _family(z, indices, background, dense)), reference, log_sum)
    if "mode" in asked:
        mode = classes.min(lambda z, c: jnp.where(z == reference, c, jnp.iinfo(jnp.int32).max), z)
        out = out._replace(mode=mode[..., 0], surprisal=log_sum[..., 0])
    if "entropy" in asked:
        entropy = log_sum + classes.sum(lambda z, c: _pair(jnp.exp(-(gap(z) + log_sum)), gap(z)), z)
        out = out._replace(entropy=entropy[..., 0])
    return out


def _rows_jvp(asked, classes, primals, tangents):
    z, indices, weights, background, dense = primals
    dz, _, dweights, dbackground, ddense = (differentiated(t) for t in tangents)
    out = _rows(asked, classes, *primals)
    tangent = jnp.zeros((), out.cross_entropy.dtype)
    undefined = jnp.isnan(out.log_sum) & _null(classes, weights, background, dense)
    # Only this module's rules read reference and log_sum by themselves; the sum's derivative stands with the second.
    d = jax.tree.map(jnp.zeros_like, out._replace(mode=None))
    if dz is not None:
        dz = dz.astype(tangent.dtype)
        along = lambda gradient: _inner(classes, gradient, dz)[..., 0]
        tangent += along(_residual(classes, *primals, out.reference, out.log_sum))
        # Where several targets share a row, it is not for one null target to say that the row is of no account.
        absent = undefined if undefined.shape == out.log_sum.shape else jnp.zeros_like(out.log_sum, bool)
        defined = jnp.where(absent, 0, z.astype(tangent.dtype))
        p = _probabilities(classes, defined, *(jnp.where(absent, 0, x) for x in (out.reference, out.log_sum)))
        d = d._replace(log_sum=along(p)[..., None])
        if out.mode is not None:
            is_mode = classes.first + jnp.arange(z.shape[-1]) == out.mode[..., None]
            d = d._replace(surprisal=along(p - is_mode))
        if out.entropy is not None:
            information = null_safe_product(p, *[-log_softmax(classes, defined)] * 2)
            entropy = classes.all_parts(jnp.sum(information, axis=-1, keepdims=True))
            d = d._replace(entropy=along(information - entropy * p))
    clean = lambda: jnp.where(undefined, 0, z.astype(tangent.dtype))
    surprisals = lambda: jnp.where(undefined, 0, -log_softmax(classes, clean()))
    if dweights is not None:
        surprisal = jnp.where(classes.excludes(indices), jnp.inf, classes.take(surprisals(), indices))
        tangent += jnp.sum(_at_weight(weights, surprisal) * dweights, axis=-1)
    if dbackground is not None:
        surprisal = classes.all_parts(jnp.sum(surprisals(), axis=-1))
        tangent += _at_weight(background, surprisal) * dbackground
    if ddense is not None:
        tangent += _inner(classes, _at_weight(dense, surprisals()), ddense)[..., 0]
    d = d._replace(cross_entropy=jnp.broadcast_to(tangent, out.cross_entropy.shape))
    if out.mode is not None:
        d = d._replace(mode=jax.custom_derivatives.zero_from_primal(out.mode, symbolic_zeros=True))
    return out, d


_rows.defjvp(_rows_jvp, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _residual(classes, z, indices, weights, background, dense, reference, log_sum):
    """The gradient in the logits, mass·softmax(z) − P. Null rows are exactly 0, infeasible points make a row NaN."""
    z = z.astype(reference.dtype)
    total, target = expand(classes, indices, weights, background, dense)
    if weights is not None:
        infeasible = jnp.any(classes.excludes(indices) & (weights != 0), axis=-1, keepdims=True)
        total = jnp.where(infeasible, jnp.nan, total)
    # At a class of probability above 1/2, p − 1 comes from the tail and P from its complement: mass·p − P would cancel.
    # Only the reference can be one where P has as much elsewhere.
    confident = jnp.where(log_sum < jnp.log(2.0), reference, jnp.nan)
    # Once a row: a compiler that fuses these with what follows computes them again for every class.
    rows = reference, log_sum, confident, jnp.expm1(-log_sum)
    reference, log_sum, confident, p_less_1 = lax.optimization_barrier(rows)
    p = jnp.exp(-(_gap(reference, z) + log_sum))
    residual = jnp.where(z == confident, total * p_less_1 + (total - target), total * p - target)
    return jnp.where(_null(classes, weights, background, dense), 0, residual)


def _residual_jvp(classes, primals, tangents):
    z, indices, *measure, _, log_sum = primals
    dz, _, *dmeasure, _, _ = (differentiated(t) for t in tangents)
    value = _residual(classes, *primals)
    total, _ = expand(classes, indices, *measure)
    null = _null(classes, *measure)
    p = softmax(jnp.where(null & jnp.isnan(log_sum), 0, z.astype(log_sum.dtype)), classes)
    tangent = jnp.zeros_like(value)
    if dz is not None:
        dz = dz.astype(log_sum.dtype)
        dp = p * (dz - _inner(classes, p, dz))
        tangent += jnp.where(null, 0, total * dp)
    if any(d is not None for d in dmeasure):
        # The parts that are not differentiated have tangent 0.
        still = lambda m: m if m is None else jnp.zeros_like(m)
        parts = [still(m) if d is None else d for m, d in zip(measure, dmeasure, strict=True)]
        dtotal, dtarget = expand(classes, indices, *parts)
        tangent += jnp.where(null & ~jnp.isfinite(p), 0, dtotal * p - dtarget)
    return value, tangent


_residual.defjvp(_residual_jvp, symbolic_zeros=True)


def mass(target: Target, classes: Classes) -> Float[Array, "*family"]:
    """The target's mass, a row."""
    total = jnp.asarray(0.0)
    if target.weights is not None:
        total += jnp.sum(target.weights, axis=-1)
    if target.background is not None:
        total += classes.count * target.background
    if target.dense is not None:
        total += classes.all_parts(jnp.sum(target.dense, axis=-1))
    return total


def mass_at(target: Target, index: Int[Array, "*family"], classes: Classes) -> Float[Array, "*family"]:
    """The target's mass at one class a row."""
    total = jnp.zeros(index.shape)
    if target.weights is not None:
        total += jnp.sum(jnp.where(target.indices == index[..., None], target.weights, 0), axis=-1)
    if target.background is not None:
        total += target.background
    if target.dense is not None:
        total += classes.take(target.dense, index[..., None])[..., 0]
    return total


def expand(classes: Classes, *target: Any) -> tuple[Array, Array]:
    """(mass [*, 1], target as a vector over the classes here [*, V]), linear in the measure."""
    indices, weights, background, dense = target
    vector = jnp.asarray(0.0)[None]
    if weights is not None:
        vector += _scatter(indices - classes.first, weights, classes.here)
    if background is not None:
        vector += background[..., None]
    if dense is not None:
        vector += dense
    return mass(Target(*target), classes)[..., None], vector


def _null(classes, weights, background, dense):
    """Whether each row's target is the null measure, [*, 1]."""
    null = jnp.ones((1,), bool)
    if weights is not None:
        null &= jnp.all(weights == 0, axis=-1, keepdims=True)
    if background is not None:
        null &= background[..., None] == 0
    if dense is not None:
        null &= classes.all_parts(jnp.sum(dense != 0, axis=-1, keepdims=True)) == 0
    return null


def _scatter(indices, weights, classes):
    if indices.shape[-1] <= 4:  # comparisons fuse into the loop that writes the gradient, a scatter would not
        at = jnp.arange(classes)
        atoms = range(indices.shape[-1])
        return sum(jnp.where(at == indices[..., j : j + 1], weights[..., j : j + 1], 0) for j in atoms)
    indices, weights = jnp.broadcast_arrays(indices, weights)
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
