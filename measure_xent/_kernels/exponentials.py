"""A block of a head's logits as scaled exponentials, E_c = exp(z_c − r): the figures of its rows, and their gradients.

The reference r of a row is any number near its logits. With S = Σ E_c summed in float32 where E is made, before it is rounded,

    lse = r + log S,        ∂lse/∂z_c = E_c / S,

so a function of the row's log-partition and of its surprisals lse − z_j at a few classes has the gradient σ · E, σ a number a
row, but for what those classes have. σ goes into the rows of hidden, which are small, and not over the logits, which are large:
z is read once, no residual is made of it, and no maximum is looked for. The heaviest of the classes is left out of E and of S,

    lse − z_y = log1p(S · exp(r − z_y)),        1 − p_y = S / (S + exp(z_y − r)),

so a confident row keeps its relative accuracy. The entropy, whose gradient is p_c (lse − z_c − entropy), needs no matrix of its
own: z_c − r is log E_c, to E's rounding. Where E overflows the block is made again, relative to each row's maximum.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from . import hopper
from .blocks import in_row_blocks
from .classes import Classes, entry, out_of_range, take
from .fallback import unless
from .layout import CLASSES, Dims
from .log_sum import above, distance
from .matrix import Epilogue, Matrix
from .mesh import sum_over, varying
from .null import null_safe_product
from .softmax import Rows
from .target import Target

# The reference is the largest logit of so many classes, one tile of an accelerator's matrix unit.
SAMPLE = 128
# Nats that another logit may be above it: E times a row's weight is then far from overflow.
LARGEST = 60.0
# On TPUs up to so many atoms are comparisons in the loops that read the logits and E; more are a gather and a scatter.
FEW_ATOMS = 4
# Atoms are compared in pairs. Targets with more of them are not for this schedule.
MOST_ATOMS = 64
# Rows of logits at a time where a kernel has made none.
AGAIN = 128


class Atoms(NamedTuple):
    """The classes that a row's function reads beside its log-partition, of all classes, and the one that E leaves out."""

    indices: Int[Array, "R k"]
    pivot: Int[Array, "R"]

    @classmethod
    def of(cls, rows: int, indices: Int[Array, "*R k"], weights: Float[Array, "*R k"]) -> "Atoms":
        """Of so many rows, each with its own or all with the same; the pivot is the heaviest."""
        k = jnp.broadcast_shapes(indices.shape, weights.shape)[-1]
        indices, weights = (jnp.broadcast_to(x, (rows, k)) for x in (indices, weights))
        pivot = jnp.argmax(jnp.abs(weights), axis=-1)
        return cls(indices, entry(indices, pivot[:, None])[:, 0])


class Figures(NamedTuple):
    """What a function of a row reads of it."""

    log_partition: Float[Array, "R"]
    surprisals: Any  # lse − z at the atoms [R, k], or None
    total: Any  # Σ_c (lse − z_c) [R], or None
    entropy: Any  # of the softmax [R], or None
    are_modes: Any  # which of the atoms are the mode [R, k], or None

    def rows(self, target: Target) -> Rows:
        """Those of a target that has atoms and a background alone."""
        value = jnp.zeros_like(self.log_partition)
        if target.weights is not None:
            value += jnp.sum(null_safe_product(target.weights.astype(value.dtype), self.surprisals), axis=-1)
        if target.background is not None:
            value += null_safe_product(target.background.astype(value.dtype), self.total)
        return Rows(value, self.log_partition[:, None], jnp.zeros_like(value)[:, None], entropy=self.entropy)

    def mass_at_mode(self, target: Target) -> Float[Array, "R"]:
        """Such a target's."""
        total = jnp.zeros_like(self.log_partition)
        if target.weights is not None:
            total += jnp.sum(jnp.where(self.are_modes, target.weights, 0), axis=-1)
        return total if target.background is None else total + target.background


class Slope(NamedTuple):
    """A gradient in the product hidden @ weight: ``scale`` · ``matrix`` + ``everywhere``, the first a number a row."""

    scale: Any  # [R], or None where it is 1
    matrix: Float[Array, "R V"]
    everywhere: Any  # [R], or None


class Exponentials(NamedTuple):
    """A block's E, and what its rows' figures and gradients are made of; ``gaps`` are reference − z."""

    reference: Float[Array, "R"]
    sum: Float[Array, "R"]  # S, without the pivot
    gaps: Any  # at the atoms [R, k], or None
    all_gaps: Any  # Σ_c [R], or None
    weighted_gaps: Any  # Σ_c E_c · gap_c without the pivot [R], or None
    are_modes: Any  # of the atoms [R, k], or None
    matrix: Any  # E times the derivative of the logits in the product [R, V], 0 at the pivot, or None

    def dims(self, of_rows: Dims) -> "Exponentials":
        """The names of their axes in their place."""
        tails: Any = {"gaps": (None,), "are_modes": (None,), "matrix": (CLASSES,)}
        names = {name: (*of_rows, *tails.get(name, ())) for name, x in self._asdict().items() if x is not None}
        return Exponentials(**{**dict.fromkeys(self._fields), **names})  # type: ignore[arg-type]

    def own_gap(self, atoms: Atoms | None) -> Array:
        """The pivot's."""
        if atoms is None:
            return jnp.full_like(self.reference, jnp.inf)
        at_pivot = atoms.indices == atoms.pivot[:, None]
        return jnp.min(jnp.where(at_pivot, self.gaps, jnp.inf), axis=-1)

    def figures(self, atoms: Atoms | None, classes: Classes) -> Figures:
        gap = self.own_gap(atoms)
        whole = self.sum + jnp.exp(-gap)
        nothing = whole == 0  # no class has any mass: a null measure
        log_whole = jnp.log(jnp.where(nothing, 1, whole))
        # The pivot's surprisal is not to be a difference where it may be tiny, at or near the reference.
        near, is_reference = gap < 16, gap <= 0
        tail = jnp.log1p(self.sum * jnp.exp(jnp.where(near, gap, 0)))
        log_sum = jnp.where(is_reference, tail - jnp.where(is_reference, gap, 0), log_whole)
        log_partition = jnp.where(nothing, -jnp.inf, self.reference + log_sum)
        own = jnp.where(near, tail, gap + log_whole)
        surprisals = total = entropy = None
        if atoms is not None:
            surprisals = jnp.where(atoms.indices == atoms.pivot[:, None], own[:, None], self.gaps + log_sum[:, None])
            surprisals = jnp.where(classes.excludes(atoms.indices), jnp.inf, surprisals)
        if self.all_gaps is not None:
            total = self.all_gaps + classes.count * log_sum
        if self.weighted_gaps is not None:
            of_pivot = null_safe_product(jnp.exp(-gap), own)
            entropy = (self.weighted_gaps + self.sum * log_whole + of_pivot) / jnp.where(nothing, 1, whole)
        return Figures(log_partition, surprisals, total, entropy, self.are_modes)

    def slope(self, d: Figures, atoms: Atoms | None, classes: Classes, epilogue: Epilogue, in_place: bool) -> Slope:
        """The gradient in the product, from that in the figures; ``in_place`` as in ``_with_atoms``."""
        total = 0 if d.total is None else classes.count * d.total
        of_atoms = 0 if atoms is None else jnp.sum(d.surprisals, axis=-1)
        alpha = of_atoms + total + d.log_partition
        gap = self.own_gap(atoms)
        # Of a null measure every p is 0: as if all mass were elsewhere.
        tail = jnp.where((self.sum == 0) & (gap == jnp.inf), 1, self.sum)
        whole = tail + jnp.exp(-gap)
        everywhere = None if d.total is None else -d.total
        matrix, surplus = self.matrix, 0
        if d.entropy is not None:
            known = self.figures(atoms, classes)
            matrix = _log_weighted(matrix, alpha + d.entropy * (jnp.log(whole) - known.entropy), d.entropy)
            if atoms is not None:
                surprisals = jnp.where(self.gaps == jnp.inf, 0, known.surprisals)
                surplus = d.entropy[:, None] * (surprisals - known.entropy[:, None])
            alpha = jnp.ones_like(whole)  # the matrix has it
        if atoms is None:
            return Slope(alpha / whole, matrix, everywhere)
        # A function of differences of logits has no α: one below the rounding of the others stands for it.
        least = jnp.max(jnp.abs(d.surprisals), axis=-1) * (jnp.finfo(alpha.dtype).eps / 8)
        alpha = jnp.where(jnp.abs(alpha) < least, least, alpha)
        same = atoms.indices[:, :, None] == atoms.indices[:, None, :]
        split = lambda where: jnp.sum(jnp.where(where, d.surprisals[:, None, :], 0), axis=-1)
        own, others = split(same), split(~same) + jnp.asarray(total + d.log_partition)[:, None] + surplus
        # p and 1 − p, over 1 / whole
        p = jnp.exp(-self.gaps)
        complement = jnp.where(atoms.indices == atoms.pivot[:, None], tail[:, None], whole[:, None] - p)
        # 0 · ∞ is not computed
        at = (jnp.where(others == 0, 0, p) * others - own * complement) / jnp.where(alpha == 0, 1, alpha)[:, None]
        at *= epilogue.slope(self.reference[:, None] - jnp.where(jnp.isfinite(self.gaps), self.gaps, 0))
        excluded = jnp.any(classes.excludes(atoms.indices) & (d.surprisals != 0), axis=-1)
        scale = jnp.where(excluded, jnp.nan, alpha / whole)
        return Slope(scale, _with_atoms(matrix, atoms.indices, at, classes, in_place), everywhere)


def _log_weighted(e, a, b):
    """E_c (a − b log E_c), 0 where E is."""
    # Else XLA widens E in the branches that make it, and keeps that.
    wide = lax.optimization_barrier(e).astype(a.dtype)
    factor = a[:, None] - b[:, None] * jnp.log(jnp.where(wide == 0, 1, wide))
    return jnp.where(wide == 0, 0, wide * factor).astype(e.dtype)


def exponentials(
    hidden: Float[Array, "R D"],
    matrix: Matrix,
    epilogue: Epilogue,
    atoms: Atoms | None,
    classes: Classes,
    *,
    total: bool,
    entropy: bool,
    modes: bool,
    keep: bool,
    platform: str,
) -> Exponentials:
    """Of a block of rows; with the sums over all classes if ``total``, what an ``entropy`` is made of, which atoms are the mode
    if ``modes``, and with E in the weight's dtype if ``keep``."""
    few = platform == "tpu" and atoms is not None and atoms.indices.shape[-1] <= FEW_ATOMS

    def made(hidden, atoms, reference, exponent, gap, undefined=None):
        z = epilogue.logits(matrix.logits(hidden))
        r, c = reference[:, None], classes.first + lax.broadcasted_iota(jnp.int32, z.shape, 1)
        e = jnp.exp(exponent(r, z))
        e = e if atoms is None else jnp.where(c == atoms.pivot[:, None], 0, e)
        at = None
        if few:  # z is read where the product makes it, and never written
            columns = range(atoms.indices.shape[-1])
            at = jnp.stack([jnp.sum(jnp.where(c == atoms.indices[:, j : j + 1], z, 0), axis=-1) for j in columns], -1)
        elif atoms is not None:
            here = atoms.indices - classes.first
            at = jnp.where(out_of_range(here, classes.here), 0, take(z, here))
        gaps = jnp.sum(gap(r, z), axis=-1) if total else None
        weighted_gaps = jnp.sum(e * jnp.minimum(gap(r, z), 1e4), axis=-1) if entropy else None  # of −inf 0
        around = _largest_around(z, c, atoms.indices) if modes and atoms is not None else None
        kept = None
        if keep:
            kept = e * epilogue.slope(z)
            if undefined is not None:
                # Finite in any row, as the first try's is where that is fine: S tells of NaN, a null row's E is times 0.
                kept = jnp.where(undefined(z), 0, kept)
            kept = kept.astype(matrix.weight.dtype)
        sums = hopper.Sums(jnp.sum(e, axis=-1), at, gaps)
        return of_all_parts(atoms, reference, gap, kept, sums, weighted_gaps, around)

    def made_by_kernel(hidden, atoms, reference, _, gap):
        here = lambda c: jnp.where(out_of_range(c - classes.first, classes.here), -1, c - classes.first)
        indices, pivot = (None, None) if atoms is None else (here(c).astype(jnp.int32) for c in atoms)
        rows = matrix.rounded_hidden(hidden), reference, pivot, indices
        made = hopper.exponentials(*rows, matrix, epilogue.bias, total=total, keep=keep)
        return of_all_parts(atoms, reference, gap, *made)

    def of_all_parts(atoms, reference, gap, kept, sums, weighted_gaps=None, around=None):
        sum_, at, gaps, weighted_gaps = classes.all_parts((*sums, weighted_gaps))
        are_modes = None
        if around is not None:
            before, after = map(classes.largest, around)
            are_modes = ((at > before) | (atoms.indices == 0)) & (at >= after) & ~classes.excludes(atoms.indices)
        if atoms is not None:
            at = jnp.where(classes.excludes(atoms.indices), jnp.inf, gap(reference[:, None], at))
        return Exponentials(reference, sum_, at, gaps, weighted_gaps, are_modes, kept)

    largest = lambda z: classes.largest(jnp.max(z, axis=-1))
    sample, its_epilogue = matrix.part(SAMPLE, epilogue)
    reference = largest(its_epilogue.logits(sample.logits(hidden)))
    if platform == "tpu":
        # As they are, NaN being NaN, but made here: the compiler then keeps them beside the product, which by its estimate is a
        # fifth faster on v5e than where an argument's are read again for each tile of classes.
        hidden = jnp.where(jnp.isnan(reference)[:, None], jnp.nan, hidden)
    by_kernel = platform == "cuda"
    first = (made_by_kernel if by_kernel else made)(hidden, atoms, reference, lambda r, z: z - r, lambda r, z: r - z)
    if classes.axis_name is None:
        # Else the branch below would get the logits, to take from them what it alone reads; sums over devices stay where they
        # are, and JAX 0.10 would have all of these vary as E does.
        first = lax.optimization_barrier(first)
    fine = first.sum < math.exp(LARGEST)
    if atoms is not None:
        fine = fine[:, None] & (first.gaps > -LARGEST)
    if classes.axis_name is not None:
        # The branch below has sums over devices: all are to take it, or none.
        failed = jnp.sum(jnp.where(fine, 0, 1))
        fine = sum_over(failed, varying(failed)) == 0

    def again(hidden, atoms, _):
        # The logits are made twice, one after the other: to share them would be to write them.
        top = largest(epilogue.logits(matrix.logits(hidden)))
        if classes.axis_name is None:
            top, after = lax.optimization_barrier((top, hidden))
        else:
            after = lax.optimization_barrier(hidden)
        # Of nothing but −inf there is no mass, and no E.
        return made(after, atoms, jnp.where(top == -jnp.inf, jnp.inf, top), above, distance, undefined=jnp.isnan)

    # The kernel's block is larger than one of logits is to be.
    rows = AGAIN if by_kernel else len(hidden)
    return unless(fine, first, lambda: in_row_blocks(again, hidden, atoms, size=4 * hidden.shape[1] * rows))


def _largest_around(z, classes, atoms):
    """The largest logits of the classes before each atom, and of those after it, [R, k] each.

    An atom is the mode if its logit is above the first and not below the second. An argmax says that, too; but to a compiler it
    is no sum or maximum that it makes with the product, so that the logits would be written.
    """
    largest = lambda where: jnp.max(jnp.where(where, z, -jnp.inf), axis=-1)
    columns = [atoms[:, j : j + 1] for j in range(atoms.shape[-1])]
    sides = [largest(classes < at) for at in columns], [largest(classes > at) for at in columns]
    return tuple(jnp.stack(side, axis=-1) for side in sides)


def _with_atoms(matrix, indices, at, classes, in_place):
    """The matrix with ``at`` in its places at the atoms: by comparisons where it is read, or written ``in_place``."""
    at, here = at.astype(matrix.dtype), indices - classes.first
    if not in_place and indices.shape[-1] <= FEW_ATOMS:
        c = lax.broadcasted_iota(jnp.int32, matrix.shape, 1)
        for j in range(indices.shape[-1]):
            matrix = jnp.where(c == here[:, j : j + 1], at[:, j : j + 1], matrix)
        return matrix
    here = jnp.where(out_of_range(here, classes.here), classes.here, here)  # negative ones would wrap
    return matrix.at[jnp.arange(len(matrix))[:, None], here].set(at, mode="drop")
