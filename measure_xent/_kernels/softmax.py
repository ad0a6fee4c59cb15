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

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from .._strict import custom_jvp
from .blocks import SHORT_ROW, in_even_rows, in_float32, in_row_blocks, is_odd
from .classes import Classes, accumulator, class_index, entry, first_maximum, part_size
from .fallback import unless
from .layout import CLASSES, rows_of
from .linear import Linear
from .log_sum import (
    LONG_ROW,
    LONGEST_SUM,
    above,
    all_but,
    along,
    distance,
    materialise_row,
    relative_to_class,
    relative_to_maximum,
    relative_to_top,
    sum_in_tiles,
)
from .mesh import AxisName, vary, varying
from .null import differentiated, null_safe_product
from .partition import explicit_mesh, partitioned
from .stored import LARGE, SCATTERED, of_labels, of_masses
from .target import FEW_ATOMS, Target, expand, is_null, join, split_by_row

# Of so few the quick pass would save 30 µs, measured on x86 CPUs, and take 0.2 s to compile beside the one it is tried before.
FEW_LOGITS = 1 << 15
FEW_CLASSES = 4  # measured on the same: rows of so few are quicker written out column by column


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
        return (self.reference + jnp.where(self.reference == -jnp.inf, 0, self.log_sum))[..., 0]


def cross_entropy(logits: Float[Array, "*family V"], target: Target) -> Float[Array, "*family"]:
    """H(target, softmax(logits)) in nats, one number a row, in float32 or wider.

    An index outside 0..V−1 with a weight that is not 0 has surprisal +inf and makes its row's gradient NaN.
    """
    return rows(logits, target).cross_entropy


def rows(
    logits: Float[Array, "*family V"],
    target: Target,
    row_statistics: tuple[str, ...] = (),
    axis_name: AxisName | None = None,
) -> Rows:
    """Cross-entropy and log-partition of every row, and the ``row_statistics`` that are named, from the same pass.

    With ``axis_name`` each device of that mesh axis has its part of the logits and of a dense target; a target's indices count
    all classes, and the figures are those of the whole rows, the same on every device.
    """
    dtype = accumulator(logits.dtype)
    indices, *measure = target
    indices = None if indices is None else class_index(indices)
    target = Target(indices, *(None if part is None else part.astype(dtype) for part in measure))
    if explicit_mesh((logits, target)) is None or _family(logits, *target) != logits.shape[:-1]:
        return _rows(row_statistics, Classes.of(logits, axis_name), logits, *target)

    def local(axes):
        return lambda z, own, shared: rows(z, join(own, shared), row_statistics, axes.get(CLASSES) or axis_name)

    return _by_rows(local, logits, target)


def surprisals(
    logits: Float[Array, "R V"], indices: Int[Array, "R k"], axis_name: AxisName | None = None
) -> Float[Array, "R k"]:
    """lse − z at classes of each row, as ``rows`` has it of a label: +inf and a gradient of NaN at one that is none."""
    return _surprisals(Classes.of(logits, axis_name), logits, class_index(indices))


@functools.partial(custom_jvp, nondiff_argnums=(0,))
def _surprisals(classes, z, indices):
    reference, log_sum = _tops(classes, z)
    gaps = distance(reference, classes.take(z.astype(reference.dtype), indices))
    return jnp.where(classes.excludes(indices), jnp.inf, gaps + log_sum)


@_surprisals.defjvp
def _surprisals_jvp(classes, primals, tangents):
    out = _surprisals(classes, *primals)
    return out, _along_logits(classes)(primals, tangents[0], [out])[0]


def _along_logits(classes):
    """The derivative of surprisals, whose transpose is one residual of the cotangents as a target's weights: at a class of
    probability near 1 a sum of two would be rounding."""

    def along(known, dz):
        z, indices = known
        dz = dz.astype(accumulator(z.dtype))
        nan = jnp.where(classes.excludes(indices), jnp.nan, 0)
        return [_inner(classes, softmax(z.astype(dz.dtype), classes), dz) - classes.take(dz, indices) + nan]

    def transpose(known, cotangents):
        z, indices = known
        (weights,) = cotangents
        tops = jax.lax.stop_gradient(_tops(classes, z))
        nan = jnp.any(classes.excludes(indices) & (weights != 0), axis=-1, keepdims=True)
        slope = _residual(classes, z, indices, weights, None, None, *tops)
        return jnp.where(nan, jnp.nan, slope).astype(z.dtype)

    return Linear(along, transpose, of_batch=lambda known, moving: None)


def log_softmax(classes: Classes, z: Float[Array, "*family V"]) -> Float[Array, "*family V"]:
    """log softmax of each row, with the edge conventions of this module and derivatives of every order."""
    return _along_explicit_axes(_log_softmax, classes, z)


@functools.partial(custom_jvp, nondiff_argnums=(0,))
def log_softmax_of_few(classes: Classes, z: Float[Array, "R V"]) -> Float[Array, "R V"]:
    """The same of rows that are in the cache, by one plain pass, which compiles in less."""
    top, log1p_tail, _ = relative_to_top(classes, z, "default")
    return -(distance(top, z) + log1p_tail)


@log_softmax_of_few.defjvp
def _log_softmax_of_few_jvp(classes, primals, tangents):
    log_p, (dz,) = log_softmax_of_few(classes, *primals), tangents
    return log_p, dz - _inner(classes, jnp.exp(log_p), dz)


@functools.partial(custom_jvp, nondiff_argnums=(0,))
def _log_softmax(classes, z):
    top, log1p_tail = _tops(classes, z)
    return -(distance(top, z) + log1p_tail)


@_log_softmax.defjvp
def _log_softmax_jvp(classes, primals, tangents):
    (z,), (dz,) = primals, tangents
    return _log_softmax(classes, z), dz - _inner(classes, _softmax(classes, z), dz)


def softmax(z: Float[Array, "*family V"], classes: Classes | None = None) -> Float[Array, "*family V"]:
    """Softmax of each row, with the edge conventions of this module and derivatives of every order."""
    return _along_explicit_axes(_softmax, classes or Classes.of(z), z)


def _softmax(classes, z):
    return _probabilities(classes, z, *_tops(classes, lax.stop_gradient(z)))


def _along_explicit_axes(function, classes, z):
    """``function(classes, z)`` [*family, V]. Along automatic axes a compiler partitions it well."""
    if explicit_mesh(z) is None:
        return function(classes, z)
    local = lambda axes: lambda z: function(Classes.of(z, axes.get(CLASSES) or classes.axis_name), z)
    dims = (*rows_of(z.ndim - 1), CLASSES)
    return partitioned(local, (z,), (dims,), lambda _: dims)


def _tops(classes, z):
    out = _rows((), classes, z, *Target())
    return out.reference, out.log_sum


def _inner(classes, a, b):
    return classes.all_parts(jnp.sum(a * b, axis=-1, keepdims=True))


@functools.partial(custom_jvp, nondiff_argnums=(0,))
def _probabilities(classes, z, reference, log_sum):
    """softmax(z), where the log-sum-exp is known already."""
    return jnp.exp(above(reference, z) - log_sum)


@_probabilities.defjvp
def _probabilities_jvp(classes, primals, tangents):
    p, dz = _probabilities(classes, *primals), tangents[0]
    return p, p * (dz - _inner(classes, p, dz))


def _pivot(indices, weights, classes):
    """The heaviest atom."""
    if indices.shape[-1] > 1:
        indices = entry(indices, jnp.argmax(jnp.abs(weights), axis=-1, keepdims=True))
    return jnp.clip(indices, 0, classes - 1)


@functools.partial(custom_jvp, nondiff_argnums=(0, 1))
def _rows(row_statistics, classes, z, indices, weights, background, dense) -> Rows:
    if indices is not None:
        indices, weights = jnp.broadcast_arrays(indices, weights)
    target = Target(indices, weights, background, dense)
    family = _family(z, *target)
    if family != z.shape[:-1]:  # several targets a row of logits
        return _pass(z, target, Target(), classes=classes, row_statistics=row_statistics)
    local = lambda axes: functools.partial(_part_of_rows, row_statistics, axes.get(CLASSES) or classes.axis_name)
    return _by_rows(local, z, target)


def _by_rows(local, z, target):
    """``local(axes)`` of the logits and the target's parts, each row's own and all rows', each device doing its share."""
    of_rows = rows_of(z.ndim - 1)
    own, shared = split_by_row(target, z.shape[:-1])
    dims = (*of_rows, CLASSES), own.dims(len(of_rows)), shared.dims(0)
    tail = lambda x: (
        (CLASSES,) if x.shape[len(of_rows) :] == z.shape[-1:] != (1,) else (None,) * (x.ndim - len(of_rows))
    )
    out_dims = functools.partial(jax.tree.map, lambda x: (*of_rows, *tail(x)))
    return partitioned(local, (z, own, shared), dims, out_dims)


def _part_of_rows(row_statistics, axis_name, z, own, shared) -> Rows:
    """The rows and the classes here, as is fastest on the platform."""
    classes = Classes.of(z, axis_name)
    on = lambda platform: functools.partial(_pass, classes=classes, row_statistics=row_statistics, platform=platform)
    operands = z, own, shared
    if axis_name is None and not row_statistics and _is_stored(z, join(own, shared)):
        return lax.platform_dependent(*operands, cpu=lambda *of: _stored_rows(*of)[0], default=on("default"))
    if z.shape[-1] <= SHORT_ROW or z.size <= FEW_LOGITS:
        half = z.dtype.itemsize == 2 and z.shape[-1] <= SHORT_ROW
        if not (half or is_odd(z)):
            return on("default")(*operands)
        cpu = in_even_rows(on("default")) if is_odd(z) else on("default")
        return lax.platform_dependent(*operands, cpu=in_float32(cpu) if half else cpu, default=on("default"))
    cpu = functools.partial(in_row_blocks, on("cpu"))
    platforms = {"default": on("default")}
    if axis_name is None:
        if z.dtype.itemsize == 2 and z.shape[-1] >= LONG_ROW:
            platforms["cuda"] = on("cuda")
        # Beyond, a float32 does not number the classes; and where the quick pass fails it makes a NaN.
        if z.shape[-1] <= 1 << 24 and not jax.debug_nans.value:
            # Blocks of rows where the quick pass would store a matrix as large as the logits: half precision's conversion, and
            # rows whose length has no good divisor; for float64 and long sums too.
            v, target = z.shape[-1], join(own, shared)
            whole = z.dtype == jnp.float32 and v <= LONGEST_SUM and (not row_statistics or v % part_size(v) == 0)
            plain = functools.partial(_pass, classes=classes, row_statistics=row_statistics, plain=True)
            plain = in_even_rows(plain) if is_odd(z) else plain if whole else functools.partial(in_row_blocks, plain)
            if target.dense is not None and not row_statistics and _can_be_stored(z, target):
                cpu = functools.partial(in_row_blocks, lambda *of: _stored(*of)[0])
            cpu = functools.partial(_quick_pass, row_statistics=row_statistics, plain=plain, exact=cpu)
    return lax.platform_dependent(*operands, cpu=cpu, **platforms)


def _quick_pass(z, own, shared, *, row_statistics, plain, exact) -> Rows:
    """The rows by plain arithmetic where that holds, as it does but for infinite logits and what is not a number.

    XLA's CPU compiler hands a sum of plain arithmetic to YNNPACK, which makes it in one pass over the logits. Comparisons and
    selections, as the edges need them, it writes out first, a number a logit.
    """
    target = join(own, shared)
    pivots = _pivots(target, row_statistics)
    if not pivots:
        z = lax.optimization_barrier(z)  # read several times: logits that the program makes are made once
    out = plain(z, own, shared)
    log_sum = out.log_sum[..., 0]
    # A reference so far below the maximum would cost the gradient its last digits.
    fine = (log_sum < 32) & ~jnp.isnan(out.cross_entropy)
    if pivots:
        # The heaviest atom is the only class where the loss may be tiny beside the row's mass if that is half of it.
        masses = jnp.abs(target.weights)  # type: ignore[arg-type]
        heaviest = jnp.max(masses, axis=-1)
        rest = jnp.sum(masses, axis=-1) - heaviest
        rest = rest if target.background is None else rest + z.shape[-1] * jnp.abs(target.background)
        fine &= (log_sum <= math.log(2)) | (heaviest >= rest)
    return unless(fine, out, lambda: exact(z, own, shared))


def _pivots(target, row_statistics):
    """Whether the heaviest atom may serve for the maximum."""
    return target.indices is not None and target.indices.shape[-1] <= 2 and target.dense is None and not row_statistics


def _pass(z, own, shared, *, classes, row_statistics=(), platform="default", plain=False) -> Rows:
    """The rows of a target whose parts are each row's own, or shared by all rows; ``plain`` is for CPUs."""
    target = join(own, shared)
    indices, weights, background, dense = target
    z = z.astype(accumulator(z.dtype))
    # Where a sum may be tiny beside the logits, ``others`` makes the reference's own term 0, by its index.
    if plain:
        if _pivots(target, row_statistics):
            at = _pivot(indices, weights, z.shape[-1])
            reference, log_sum, at = relative_to_class(z, jnp.broadcast_to(at, (*z.shape[:-1], 1)))
        elif row_statistics:
            reference, log_sum, at = relative_to_class(z, first_maximum(z, "cpu")[1])
        else:
            reference, log_sum, at = relative_to_maximum(z)
        gap = lambda z, of="tail": along(materialise_row(reference, of), z) - z
        others = lambda x, c, of: x * all_but(c, at, of)
        total_of = sum_in_tiles
    else:
        reference, log_sum, at = relative_to_top(classes, z, platform)
        gap = lambda z, of="": distance(reference, z)
        others = lambda x, c, of: jnp.where(c == at, 0, x)
        total_of = lambda f, z: classes.sum(lambda z, c: f(c, z), z)
    total = jnp.zeros((), z.dtype)
    if weights is not None:
        surprisal = jnp.where(indices == at, 0, gap(classes.take(z, indices))) + log_sum
        surprisal = jnp.where(classes.excludes(indices), jnp.inf, surprisal)
        total += jnp.sum(_pair(weights, surprisal), axis=-1)
    if background is not None:
        # Else XLA's CPU compiler fuses columns that are written out one by one into a later sum over the rows.
        gaps = materialise_row(total_of(lambda c, z: gap(z, "background"), z))
        total += _pair(background, (gaps + classes.count * log_sum)[..., 0])
    if dense is not None and plain:
        here = materialise_row(log_sum, "dense")
        total += sum_in_tiles(lambda _, z, dense: dense * (gap(z, "dense") + along(here, z)), z, dense)[..., 0]
    elif dense is not None:
        here = classes.first + jnp.arange(z.shape[-1])
        total += classes.all_parts(jnp.sum(_pair(dense, others(gap(z), here, "dense") + log_sum), axis=-1))
    total = vary(total, varying(reference))  # where the target is empty too
    out = Rows(jnp.broadcast_to(total, _family(z, *target)), reference, log_sum)
    if {"mode", "mass_at_mode"} & {*row_statistics}:
        out = out._replace(mode=at[..., 0], surprisal=log_sum[..., 0])
    if "entropy" in row_statistics:
        # Where the gap is infinite the probability is 0.
        of = "entropy"
        terms = lambda c, z: others(jnp.exp(-(gap(z, of) + along(log_sum, z))) * jnp.minimum(gap(z, of), 1e4), c, of)
        entropy = log_sum + materialise_row(total_of(terms, z))
        out = out._replace(entropy=jnp.where(reference == -jnp.inf, 0, entropy)[..., 0])
    return out


def _is_of_labels(target):
    """Whether the target is one atom a row."""
    k = 0 if target.indices is None else target.indices.shape[-1]
    return k == 1 and target.background is None and target.dense is None


def _can_be_stored(z, target):
    """Whether the target is one a row, of classes that are more than a few, and half precision's conversion no large matrix."""
    return (
        any(part is not None for part in target)
        and (z.dtype.itemsize >= 4 or z.size <= LARGE)
        and (z.shape[-1] > FEW_CLASSES or is_odd(z))
        and _family(z, *target) == z.shape[:-1]
    )


@functools.partial(custom_jvp, nondiff_argnums=(0,))
def _rows_and_residual(classes, z, indices, weights, background, dense) -> tuple[Rows, Array]:
    """The rows with their gradient in the logits."""
    if indices is not None:
        indices, weights = jnp.broadcast_arrays(indices, weights)
    local = lambda axes: functools.partial(_part_of_rows_and_residual, axes.get(CLASSES) or classes.axis_name)
    return _by_rows(local, z, Target(indices, weights, background, dense))


def _part_of_rows_and_residual(axis_name, z, own, shared):
    """On CPUs from one exponential a logit, stored where the gradient goes. Elsewhere it would be one more matrix."""

    def plain(z, own, shared):
        out = _part_of_rows((), axis_name, z, own, shared)
        return out, _residual(Classes.of(z, axis_name), z, *join(own, shared), out.reference, out.log_sum)

    if axis_name is not None:
        return plain(z, own, shared)
    return lax.platform_dependent(z, own, shared, cpu=_stored_rows, default=plain)


def _is_stored(z, target):
    """Whether a loss alone is quicker by stored exponentials: of few logits, and of other targets than labels in odd rows."""
    v = z.shape[-1]
    if not _can_be_stored(z, target):
        return False
    if not _is_of_labels(target):
        compared = target.indices is None or target.indices.shape[-1] <= FEW_ATOMS
        short = v <= SHORT_ROW and target.dense is not None
        return compared and (is_odd(z) or short or (v > SHORT_ROW and z.size <= FEW_LOGITS))
    return v > SHORT_ROW and z.size <= FEW_LOGITS


def _stored_rows(z, own, shared):
    """Rows and residual by one exponential a logit, of any target but labels some rows at a time: more than one is stored."""
    if not _is_of_labels(join(own, shared)) and z.size > LARGE:
        return in_row_blocks(_stored, z, own, shared, longer_than=0)
    return (in_even_rows(_stored) if is_odd(z) else _stored)(z, own, shared)


def _stored(z, own, shared):
    target = join(own, shared)
    if z.dtype.itemsize == 2:
        z = lax.optimization_barrier(z.astype(jnp.float32))  # once, and not where it is read
    if not _is_of_labels(target):
        value, reference, log_sum, residual = of_masses(z, target)
        return Rows(value, reference, log_sum), residual
    column = lambda x: jnp.broadcast_to(x, (*z.shape[:-1], 1)).reshape(-1, 1)
    flat = of_labels(z.reshape(-1, z.shape[-1]), column(target.indices), column(target.weights))
    value, reference, log_sum, residual = (x.reshape(*z.shape[:-1], x.shape[-1]) for x in flat)
    return Rows(value[..., 0], reference, log_sum), residual


def _rows_and_residual_jvp(classes, primals, tangents):
    out, residual = _rows_and_residual(classes, *primals)
    _, d_out = _rows_jvp((), classes, primals, tangents)
    still = None, None
    _, d_residual = _residual_jvp(classes, (*primals, out.reference, out.log_sum), (*tangents, *still))
    return (out, residual), (d_out, d_residual)


_rows_and_residual.defjvp(_rows_and_residual_jvp, symbolic_zeros=True)


def _rows_jvp(row_statistics, classes, primals, tangents):
    z, indices, weights, background, dense = primals
    dz, _, dweights, dbackground, ddense = (differentiated(t) for t in tangents)
    stored = dz is not None and not row_statistics and _can_be_stored(z, Target(*primals[1:]))
    # Where memory is waited for, two exponentials read and write less than one that is stored.
    stored &= z.size <= LARGE or not SCATTERED < z.shape[-1] <= LONGEST_SUM
    if stored:
        out, residual = _rows_and_residual(classes, *primals)
    else:
        out, residual = _rows(row_statistics, classes, *primals), None
    tangent = jnp.zeros((), out.cross_entropy.dtype)
    undefined = jnp.isnan(out.log_sum) & is_null(classes, weights, background, dense)
    # lse = reference + log_sum: all of its derivative is put on log_sum, for nobody outside reads the two apart.
    d = jax.tree.map(jnp.zeros_like, out._replace(mode=None))
    if dz is not None:
        dz = dz.astype(tangent.dtype)
        along = lambda gradient: _inner(classes, gradient, dz)[..., 0]
        if residual is None:
            residual = _residual(classes, *primals, out.reference, out.log_sum)
        slope = along(residual)
        if weights is not None:
            # NaN in the gradient and not in what comes after; by arithmetic, where it is used: a NaN among what is kept for a
            # gradient would be reported by jax_debug_nans even of rows that are stood in for.
            infeasible = jnp.any(classes.excludes(indices) & (weights != 0), axis=-1)
            some = classes.all_parts(jnp.sum(dz, axis=-1))
            slope += jnp.where(infeasible, some, 0) * jnp.where(infeasible, jnp.inf, 1) * jnp.where(infeasible, 0, 1)
        tangent += slope
        # One null target must not mask a row that other targets share.
        absent = undefined if undefined.shape == out.log_sum.shape else jnp.zeros_like(out.log_sum, bool)
        defined = jnp.where(absent, 0, z.astype(tangent.dtype))
        p = _probabilities(classes, defined, *(jnp.where(absent, 0, x) for x in (out.reference, out.log_sum)))
        d = d._replace(log_sum=along(p)[..., None])
        if out.mode is not None:
            is_mode = classes.first + jnp.arange(z.shape[-1]) == out.mode[..., None]
            d = d._replace(surprisal=along(p - is_mode))
        if out.entropy is not None:
            information = null_safe_product(p, -log_softmax(classes, defined))
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


@functools.partial(custom_jvp, nondiff_argnums=(0,))
def _residual(classes, z, indices, weights, background, dense, reference, log_sum):
    """The gradient in the logits, mass·softmax(z) − P. Null rows are exactly 0; of infeasible points nothing is known here."""
    z = z.astype(reference.dtype)
    total, target = expand(classes, indices, weights, background, dense)
    # At a class of probability above 1/2, p − 1 comes from the tail and P from its complement: mass·p − P would cancel.
    # Only the reference can be one where P has as much elsewhere.
    confident = log_sum < jnp.log(2.0)
    at_reference = total * jnp.where(confident, jnp.expm1(-log_sum), jnp.exp(-log_sum))
    # Once a row: a compiler that fuses these with what follows computes them again for every class.
    rows = reference, log_sum, at_reference, jnp.where(confident, total, 0)
    reference, log_sum, at_reference, complement = lax.optimization_barrier(rows)
    p = jnp.exp(above(reference, z) - log_sum)
    elsewhere = complement - target
    if dense is not None:
        # Of a softmax that is as confident, such as a row's own in its entropy, a difference would be rounding.
        of_dense = classes.all_parts(jnp.sum(jnp.where(z == reference, 0, dense), axis=-1, keepdims=True))
        sparse_total, sparse_target = expand(classes, indices, weights, background, None)
        elsewhere = jnp.where(confident, sparse_total - sparse_target + of_dense, elsewhere)
    residual = jnp.where(z == reference, at_reference + elsewhere, total * p - target)
    return jnp.where(is_null(classes, weights, background, dense), 0, residual)


def _residual_jvp(classes, primals, tangents):
    z, indices, *measure, _, log_sum = primals
    dz, _, *dmeasure, _, _ = (differentiated(t) for t in tangents)
    value = _residual(classes, *primals)
    total, _ = expand(classes, indices, *measure)
    # All derivatives against a null target are finite, but those at a NaN.
    undefined = is_null(classes, *measure) & jnp.isnan(log_sum)
    p = softmax(jnp.where(undefined, 0, z.astype(log_sum.dtype)), classes)
    tangent = jnp.zeros_like(value)
    if dz is not None:
        dz = dz.astype(log_sum.dtype)
        dp = p * (dz - _inner(classes, p, dz))
        tangent += jnp.where(undefined, 0, total * dp)
    if any(d is not None for d in dmeasure):
        # The parts that are not differentiated have tangent 0.
        still = lambda m: m if m is None else jnp.zeros_like(m)
        parts: Any = [still(m) if d is None else d for m, d in zip(measure, dmeasure, strict=True)]
        if indices is not None:
            parts[0] = jnp.where(classes.excludes(indices) & (measure[0] == 0), 0, parts[0])
        dtotal, dtarget = expand(classes, indices, *parts)
        tangent += jnp.where(undefined, 0, dtotal * p - dtarget)
    return value, tangent


_residual.defjvp(_residual_jvp, symbolic_zeros=True)


def _pair(weight, surprisal):
    return weight * jnp.where(weight == 0, 0, surprisal)  # 0 · ∞ is not computed: jax_debug_nans would report it


def _at_weight(weight, surprisal):
    """∂/∂w of w·surprisal: the surprisal, but at a null atom 0 where it is not finite."""
    return jnp.where((weight == 0) & ~jnp.isfinite(surprisal), 0, surprisal)


def _family(z, indices, weights, background, dense):
    parts = [z.shape[:-1]]
    parts += [] if indices is None else [indices.shape[:-1]]
    parts += [] if background is None else [background.shape]
    parts += [] if dense is None else [dense.shape[:-1]]
    return jnp.broadcast_shapes(*parts)
