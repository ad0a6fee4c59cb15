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

# Measured on an H200: half precision waits for arithmetic as much as for memory, and from here on one reduction is faster than
# a maximum and a sum. A merge of pieces costs more than a term: a piece is of one class in each of so many parts of the row.
LONG_ROW, PARTS = 512, 8


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
    mode: Int[Array, "*rows"] | None = None  # the first class that has the maximum; V in a row with a NaN
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
        # A compiler vectorises the loop over the classes. Where they are few, written out they vectorise over the rows.
        if self.here <= SHORT_ROW:
            total = sum(f(z[..., c : c + 1], self.first + c) for c in range(self.here))
        else:
            total = jnp.sum(f(z, self.first + jnp.arange(self.here)), axis=-1, keepdims=True)
        return self.all_parts(total)

    def top(
        self, z: Float[Array, "*family V"], platform: str
    ) -> tuple[Float[Array, "*family 1"], Int[Array, "*family 1"]]:
        """(the largest logit, the first class that has it)."""
        top, at = _top(z, platform)
        if self.axis_name is None:
            return top, at
        # Not pmax, which has no derivative: JAX 0.10 forgets a custom rule where it linearises a scan, and takes this one's.
        tops, at = lax.all_gather((top, at + self.first), self.axis_name, to="invarying")
        top = jnp.max(tops, axis=0)
        return top, jnp.min(jnp.where(tops == top, at, jnp.iinfo(at.dtype).max), axis=0)

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


def _top(z, platform):
    if z.shape[-1] <= SHORT_ROW:
        columns = [z[..., c : c + 1] for c in range(z.shape[-1])]
        larger = lambda a, b: jax.tree.map(functools.partial(jnp.where, b[0] > a[0]), b, a)
        return functools.reduce(larger, [(x, jnp.full(x.shape, c, jnp.int32)) for c, x in enumerate(columns)])
    argmax = lambda z: jnp.argmax(z, axis=-1, keepdims=True).astype(jnp.int32)
    size = _divisor(z.shape[-1]) if platform == "cpu" else 1
    if size == 1:
        at = argmax(z)
    else:
        # XLA's CPU compiler makes a maximum at the speed of memory, an argmax ten times as slowly: that of a part has to do.
        parts = z.reshape(*z.shape[:-1], -1, size)
        part = argmax(jnp.max(parts, axis=-1))
        at = part * size + argmax(jnp.take_along_axis(parts, part[..., None], axis=-2)[..., 0, :])
    return jnp.take_along_axis(z, at, axis=-1), at


@functools.cache
def _divisor(n):
    """The largest one up to the square root."""
    return next(k for k in range(math.isqrt(n), 0, -1) if n % k == 0)


class Relative(NamedTuple):
    """A row's log-sum-exp as one of its logits and what is more, log Σ_c exp(z_c − reference)."""

    reference: Float[Array, "*family 1"]
    log_sum: Float[Array, "*family 1"]
    at: Int[Array, "*family 1"]  # the class of the reference, V in a row with a NaN


def _relative_to_top(classes: Classes, z: Float[Array, "*family V"], platform: str) -> Relative:
    """Relative to the first maximum.

    Its own term is exactly 1, and 1 + tail would round a tail below 6e-8 away, so it is kept out of the sum: by its index, for
    logits that a compiler makes again in every loop that reads them may differ in the last bit.
    """
    if platform == "cuda":
        top, tail, at = _in_one_pass(z)
    else:
        top, at = classes.top(z, platform)
        # Infinities that are alike count alike. Not z < top: a NaN, which an order may pass over, has to reach the sum.
        tail = classes.sum(lambda z, c: jnp.where(c == at, 0, jnp.where(z == top, 1, jnp.exp(z - top))), z)
    undefined = jnp.isnan(top) | jnp.isnan(tail)
    log_sum = jnp.where(top == -jnp.inf, jnp.inf, jnp.log1p(tail))
    top, log_sum = (jnp.where(undefined, jnp.nan, x) for x in (top, log_sum))
    return Relative(top, log_sum, jnp.where(undefined, classes.count, at))


def _in_one_pass(z: Float[Array, "*family V"]) -> tuple[Array, Array, Array]:
    """(maximum, Σ over the other classes of exp(z_c − maximum), the maximum's class) by one reduction, of pieces of a row that
    are each relative to their own maximum (Milakov & Gimelshein 2018, "Online normalizer calculation for softmax")."""

    def merge(a, b):
        first = (a[0] > b[0]) | ((a[0] == b[0]) & (a[2] < b[2]))
        (top, tail, at), (lower, more, _) = (
            jax.tree.map(functools.partial(jnp.where, first), *ab) for ab in ((a, b), (b, a))
        )
        return top, tail + jnp.where(lower == top, 1, jnp.exp(lower - top)) * (1 + more), at

    axis = z.ndim - 1
    size = -(-z.shape[-1] // PARTS)
    z = jnp.pad(z, [(0, 0)] * axis + [(0, PARTS * size - z.shape[-1])], constant_values=-jnp.inf)
    pieces = [z[..., part * size : (part + 1) * size] for part in range(PARTS)]
    top = functools.reduce(jnp.maximum, pieces)
    part, alike, tail = jnp.full(top.shape, PARTS, jnp.int32), jnp.full_like(top, -1), jnp.zeros_like(top)
    for k, piece in reversed(list(enumerate(pieces))):
        part = jnp.where(piece == top, k, part)
        alike += piece == top
        tail += jnp.where(piece == top, 0, jnp.exp(piece - top))
    at = part * size + lax.broadcasted_iota(jnp.int32, top.shape, axis)
    nothing = jnp.full((), -jnp.inf, z.dtype), jnp.zeros((), z.dtype), jnp.int32(PARTS * size)
    out = lax.reduce((top, tail + alike, at), nothing, merge, (axis,))
    return tuple(x[..., None] for x in out)


def _relative_to_class(z: Float[Array, "*family V"], at: Int[Array, "*family 1"]) -> Relative:
    """Relative to any class, in one pass, of plain arithmetic: NaN or infinite where that fails.

    The sum overflows where the class is too far below the maximum, or −inf.
    """
    own = jnp.take_along_axis(z, at, axis=-1)
    # e^16 larger: terms too small for a float32 one by one may add up to a number that it holds.
    lower = _apart(own - 16)
    larger = _apart(jnp.sum(jnp.exp(z - lower) * _others(z, at), axis=-1, keepdims=True))
    return Relative(own, jnp.log1p(jnp.exp(lower - own) * larger), at)


def _others(z: Float[Array, "*family V"], at: Int[Array, "*family 1"], of: str = "tail") -> Float[Array, "*family V"]:
    """0 for the class ``at``, 1 for the others, by arithmetic: integers are apart."""
    index = _apart(at.astype(z.dtype), of)
    one = _apart(0 * index + 1)  # of constants, one that others use would be written out
    return jnp.minimum(jnp.abs(jnp.arange(z.shape[-1], dtype=z.dtype) - index), one)


def _apart(row, of: str = "tail"):
    """The same, of one number a row, kept out of the loops over the classes before and after it, where it would be slow.

    What several sums have in common would be written out, a number a logit: each has its own, that ``of`` the sum.
    """
    # A selection that changes nothing: such a loop does not take it in. A barrier does not keep JAX 0.10 from it.
    return jnp.where(jnp.isnan(row), {"tail": jnp.nan, "background": 0, "dense": 1, "entropy": 2}[of], row)


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
    out = _rows((), classes, z, *Target())
    return out.reference, out.log_sum


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
    return jnp.clip(indices, 0, classes - 1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _rows(asked, classes, z, indices, weights, background, dense) -> Rows:
    if indices is not None:
        indices, weights = jnp.broadcast_arrays(indices, weights)
    target = Target(indices, weights, background, dense)
    family = _family(z, indices, background, dense)
    on = functools.partial(functools.partial, _pass, classes=classes, asked=asked)
    if family != z.shape[:-1]:  # several targets a row of logits
        return on()(z, target, Target())
    operands = z, *split(target, family)
    if z.shape[-1] <= SHORT_ROW:
        return on()(*operands)
    cpu = functools.partial(in_row_blocks, on(platform="cpu"))
    platforms = {"default": on()}
    if classes.axis_name is None:
        if z.dtype.itemsize == 2 and z.shape[-1] >= LONG_ROW:
            platforms["cuda"] = on(platform="cuda")
        if z.shape[-1] <= 1 << 24:  # beyond, a float32 does not number the classes
            quick = functools.partial(_quick_pass, classes=classes, asked=asked, exact=cpu)
            # Half precision is first converted: in blocks, or all would be written out. float64 the library does not know.
            cpu = quick if z.dtype == jnp.float32 else functools.partial(in_row_blocks, quick)
    return lax.platform_dependent(*operands, cpu=cpu, **platforms)


@jax.custom_batching.custom_vmap
def _all(x):
    return jnp.all(x)


@_all.def_vmap
def _all_of_a_batch(axis_size, in_batched, x):
    # One answer for the whole batch keeps a cond one: under vmap, with an answer for each, it would always run both sides.
    return _all(x), False


def _quick_pass(z, own, shared, *, classes, asked, exact) -> Rows:
    """The rows by plain arithmetic where that holds, as it does but for infinite logits and what is not a number.

    XLA's CPU compiler hands a sum of plain arithmetic to YNNPACK, which makes it in one pass over the logits. Comparisons and
    selections, as the edges need them, it writes out first, a number a logit.
    """
    if not _pivots(join(own, shared), asked):
        z = lax.optimization_barrier(z)  # read several times: logits that the program makes are made once
    out = _pass(z, own, shared, classes=classes, asked=asked, plain=True)
    log_sum, target = out.log_sum[..., 0], join(own, shared)
    fine = jnp.isfinite(log_sum) & ~jnp.isnan(out.cross_entropy)
    if _pivots(target, asked):
        # The heaviest atom is the only class where the loss may be tiny beside the row's mass if that is half of it.
        masses = jnp.abs(target.weights)  # type: ignore[arg-type]
        heaviest = jnp.max(masses, axis=-1)
        rest = jnp.sum(masses, axis=-1) - heaviest
        rest = rest if target.background is None else rest + z.shape[-1] * jnp.abs(target.background)
        fine &= (log_sum <= math.log(2)) | (heaviest >= rest)
    return lax.cond(_all(fine), lambda: out, lambda: exact(z, own, shared))


def _pivots(target, asked):
    """Whether the heaviest atom may serve for the maximum."""
    return target.indices is not None and target.indices.shape[-1] <= 2 and target.dense is None and not asked


def _pass(z, own, shared, *, classes, asked=(), platform="", plain=False) -> Rows:
    """The rows of a target whose parts are each row's own, or shared by all rows; ``plain`` is for CPUs."""
    target = join(own, shared)
    indices, weights, background, dense = target
    z = z.astype(accumulator(z.dtype))
    # Where a sum may be tiny beside the logits, the reference's own term is 0 by its index: ``others`` of the terms.
    if plain:
        at = _pivot(indices, weights, z.shape[-1]) if _pivots(target, asked) else _top(z, "cpu")[1]
        reference, log_sum, at = _relative_to_class(z, jnp.broadcast_to(at, (*z.shape[:-1], 1)))
        gap = lambda z, of="tail": _apart(reference, of) - z
        others = lambda x, c, of: x * _others(z, at, of)
    else:
        reference, log_sum, at = _relative_to_top(classes, z, platform)
        gap = lambda z, of="": _gap(reference, z)
        others = lambda x, c, of: jnp.where(c == at, 0, x)
    total = jnp.zeros((), z.dtype)
    if weights is not None:
        surprisal = jnp.where(indices == at, 0, gap(classes.take(z, indices))) + log_sum
        surprisal = jnp.where(classes.excludes(indices), jnp.inf, surprisal)
        total += jnp.sum(_pair(weights, surprisal), axis=-1)
    if background is not None:
        # Or XLA's CPU compiler pulls columns written out apart, into a later sum over the rows.
        gaps = _apart(classes.sum(lambda z, c: gap(z, "background"), z))
        total += _pair(background, (gaps + classes.count * log_sum)[..., 0])
    here = classes.first + jnp.arange(z.shape[-1])
    if dense is not None and plain:
        total += _apart(jnp.sum(dense * others(gap(z, "dense"), here, "dense"), axis=-1)) + log_sum[..., 0] * _apart(
            jnp.sum(dense, axis=-1)
        )
    elif dense is not None:
        total += classes.all_parts(jnp.sum(_pair(dense, others(gap(z), here, "dense") + log_sum), axis=-1))
    total = vary(total, varying(reference))  # where the target is empty too
    out = Rows(jnp.broadcast_to(total, _family(z, indices, background, dense)), reference, log_sum)
    if "mode" in asked:
        out = out._replace(mode=at[..., 0], surprisal=log_sum[..., 0])
    if "entropy" in asked:
        # Where the gap is infinite the probability is 0.
        of = "entropy"
        terms = lambda z, c: others(jnp.exp(-(gap(z, of) + log_sum)) * jnp.minimum(gap(z, of), 1e4), c, of)
        out = out._replace(entropy=(log_sum + _apart(classes.sum(terms, z)))[..., 0])
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
