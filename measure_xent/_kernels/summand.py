"""The total of a function of logits over a device's rows, and its gradients: a block of rows at a time, three products each."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Var
from jaxtyping import Array, Float, PyTree

from . import hopper
from .classes import Classes, accumulator
from .exponentials import Atoms, Exponentials, Slope, exponentials
from .matrix import Epilogue, Matrix, kept_in
from .mesh import AxisName, sum_over, varying, zeros

# Platforms where scaled exponentials are faster. On CPUs, where a block of logits stays in the cache, they were measured not to
# be, and E beside the logits is as much memory again.
SCALED = {"tpu", "cuda", "default"}
GPUS = {"cuda", "default"}


class OfFigures(NamedTuple):
    """A function of a row that reads its logits by a few figures alone, so that scaled exponentials give its gradient."""

    atoms: Callable | None  # of (shared, rows, indices): the classes it reads and their weights
    total: bool  # whether it reads the sum of all surprisals
    entropy: bool  # whether it reads that
    modes: bool  # whether it reads which of the classes is the mode
    values: Callable  # of (figures, classes, shared, rows, indices)
    axis_name: AxisName | None  # of the classes, inside of shard_map


class Gradient(NamedTuple):
    """The gradient in each argument of an integral, or whether it is wanted; None where it is not.

    Of what is shared and of rows it is that in those leaves of which it is wanted, a list; wanted is said by leaf.
    """

    hidden: Any = None
    weight: Any = None
    epilogue: Any = None
    weights: Any = None
    shared: Any = None
    rows: Any = None

    def with_rows(self, shape: tuple[int, ...]) -> "Gradient":
        """What is a row's, of rows of that shape."""
        reshape = lambda x: x.reshape(*shape, *x.shape[1:])
        of_rows = jax.tree.map(reshape, (self.hidden, self.weights, self.rows))
        return self._replace(**dict(zip(("hidden", "weights", "rows"), of_rows, strict=True)))

    def of(self, *parts: Any) -> "Gradient":
        """Of the parts, those that are wanted."""
        return Gradient(*(part if wanted else None for wanted, part in zip(self, parts, strict=True)))


class Nulls(NamedTuple):
    """Rows of weight 0, if there are any."""

    none: bool

    def of(self, weights):
        """Which are null; of several weights a row, where all are 0."""
        if self.none:
            return None
        nothing = lambda w: jnp.all(w == 0, axis=tuple(range(1, w.ndim)))
        return functools.reduce(jnp.logical_and, map(nothing, jax.tree.leaves(weights)))

    def present(self, null, arrays):
        """The rows, with zeros in the place of those that are null."""
        return arrays if self.none else jax.tree.map(lambda x: jnp.where(_along(null, x), 0, x), arrays)

    def known(self, null, value, held=0):
        """The rows' values, those of null rows replaced."""
        held = jax.tree.map(lambda _: held, value) if isinstance(held, int) else held
        return value if self.none else jax.tree.map(lambda v, h: jnp.where(_along(null, v), h, v), value, held)


def _along(null, x):
    return null.reshape(*null.shape, *(1,) * (x.ndim - null.ndim))


def weigh(weights, value):
    return jax.tree.map(lambda v: jnp.sum(weights * v), value)


class Summand(NamedTuple):
    """What is summed, of a device's part of the classes."""

    values: Callable  # of (logits, shared, rows, indices)
    of_figures: OfFigures | None
    axis_name: AxisName | None
    matrix: Matrix
    epilogue: Epilogue
    shared: PyTree[Array]
    nulls: Nulls
    alone: bool  # no other device has rows or classes
    of_each: bool = (
        False  # not summed: the weights are cotangents of the smooth values, a list, None where there are none
    )

    def scales(self, platform: str, wanted: Gradient) -> bool:
        """Whether scaled exponentials are what gives the values, and the gradients wanted."""
        return platform in SCALED and self.can_scale(wanted)

    def can_scale(self, wanted: Gradient) -> bool:
        """Whether they can."""
        if self.of_figures is None or jax.debug_nans.value:
            return False
        read = self.of_figures
        bent = self.epilogue.softcap is not None and (wanted.epilogue or read.total or read.entropy)
        # The derivative in the weight of a null row is its value as it is.
        held = wanted.weights and not self.nulls.none
        dtype = self.matrix.weight.dtype
        # Of nearly equal logits the entropy's gradient is less than E's rounding, which is nothing beside that of a loss.
        too_coarse = read.entropy and read.atoms is None and accumulator(dtype) != dtype
        return kept_in(dtype) == dtype and not (bent or held or too_coarse)

    def without_logits(
        self, wanted: Gradient, hidden: Float[Array, "R D"], rows: PyTree, indices: PyTree
    ) -> frozenset[str]:
        """The platforms where no logits of the rows are written, beside their exponentials."""
        if not self.can_scale(wanted):
            return frozenset()
        read: Any = self.of_figures
        atoms = None if read.atoms is None else jax.eval_shape(read.atoms, self.shared, rows, indices)
        few = atoms is None or jnp.broadcast_shapes(*(x.shape for x in atoms))[-1] <= hopper.MOST_ATOMS
        known = few and not (read.modes or read.entropy)
        by_kernel = known and hopper.takes(hidden, self.matrix, self.epilogue)
        return frozenset({"tpu", "cuda"} if by_kernel else {"tpu"})

    def rounds(self, wanted: Gradient) -> bool:
        """Whether one block of all rows makes the gradient in the weight itself, which several add up in float32 and round."""
        return bool(wanted.weight) and self.alone and self.matrix.rounds and not self.of_figures.total  # type: ignore[union-attr]

    def logits(self, hidden: Float[Array, "R D"]) -> Float[Array, "R V"]:
        return self.epilogue.logits(self.matrix.logits(hidden))

    def value(self, platform: str, hidden, weights, rows, indices, kept=None) -> PyTree:
        """Of a block of rows, 0 where they are null; ``kept`` are its exponentials, if there are any."""
        null = self.nulls.of(weights)
        hidden, rows = self.nulls.present(null, (hidden, rows))
        if kept is not None or self.scales(platform, Gradient()):
            if kept is None:
                kept = self.exponentials(platform, hidden, rows, indices, keep=False)
            _, figures = self._figures(platform, null, rows, indices, kept)
            value = self._of_figures(figures, self.shared, rows, indices)
        else:
            value = self.values(self.logits(hidden), self.shared, rows, indices)
        return self.nulls.known(null, value)

    def gradients(self, wanted: Gradient, platform: str, hidden, weights, rows, indices, kept=None):
        """(The hidden states that count, the total of a block, and of each of its numbers the gradient in the product, None if
        there is none, and those in all but hidden and weight); ``of_each``, no total, and one gradient."""
        null = self.nulls.of(weights)
        moving, with_moving = picked(self.shared, wanted.shared)
        held = 0
        if wanted.weights and not self.nulls.none:
            original = self.values(self.logits(hidden), self.shared, rows, indices)
            held = jax.tree.map(lambda o: jnp.where(jnp.isfinite(o), o, 0), original)
        hidden, rows = self.nulls.present(null, (hidden, rows))
        own, with_own = picked(rows, wanted.rows)
        others: dict[str, Any] = {"shared": moving} if wanted.shared else {}
        others |= {"rows": own} if wanted.rows else {}
        if kept is not None or self.scales(platform, wanted):
            if kept is None:
                kept = self.exponentials(platform, hidden, rows, indices, keep=True)
            of_figures, figures = self._figures(platform, null, rows, indices, kept)
            argument, with_figures = smooth_leaves(figures)
            of_logits = lambda d: of_figures(with_figures(d))
            values = lambda smooth, *known: self._of_figures(with_figures(smooth), *known)
        else:
            others |= {"epilogue": self.epilogue} if wanted.epilogue else {}
            of_logits, argument = (lambda residual: residual), self.matrix.logits(hidden)
            values = lambda product, shared, rows, indices, epilogue=self.epilogue: self.values(
                epilogue.logits(product), shared, rows, indices
            )

        def function(argument, others):
            others = dict(others)
            shared, rows = with_moving(others.pop("shared", moving)), with_own(others.pop("rows", own))
            value = values(argument, shared, rows, indices, **others)
            counted = self.nulls.known(null, value)
            if not self.of_each:
                return weigh(weights, counted), value
            smooth, _ = smooth_leaves(counted)
            return [None if ct is None else x for x, ct in zip(smooth, weights, strict=True)], value

        out, pullback, value = jax.vjp(function, argument, others, has_aux=True)
        total, cotangents, at_weights, moves = None, [weights], [None], [True]
        if not self.of_each:
            total, cotangents = out, basis(out)
            at_weights = jax.tree.leaves(self.nulls.known(null, value, held))
            one = len(cotangents) == 1
            moves = [True] if one else _moves(lambda argument: function(argument, others)[0], argument)
        gradients = []
        for cotangent, at, moved in zip(cotangents, at_weights, moves, strict=True):
            slope, found = pullback(cotangent)
            new = Gradient(
                weights=None if at is None or not wanted.weights else at.astype(weights.dtype),
                epilogue=found.get("epilogue"),
                shared=found.get("shared"),
                rows=found.get("rows"),
            )
            gradients.append((of_logits(slope) if moved else None, new))
        return hidden, total, gradients

    @property
    def classes(self) -> Classes:
        return Classes(self.matrix.classes, self.axis_name or self.of_figures.axis_name)  # type: ignore[union-attr]

    def _of_figures(self, figures, shared, rows, indices):
        return self.of_figures.values(figures, self.classes, shared, rows, indices)  # type: ignore[union-attr]

    def _atoms(self, count, rows, indices):
        atoms = self.of_figures.atoms  # type: ignore[union-attr]
        return None if atoms is None else Atoms.of(count, *atoms(self.shared, rows, indices))

    def exponentials(self, platform, hidden, rows, indices, keep) -> Exponentials:
        """Of a block of rows."""
        read: Any = self.of_figures
        options: Any = {name: getattr(read, name) for name in ("total", "entropy", "modes")}
        atoms = self._atoms(len(hidden), rows, indices)
        options |= dict(keep=keep, platform=platform)
        return exponentials(hidden, self.matrix, self.epilogue, atoms, self.classes, **options)

    def _figures(self, platform, null, rows, indices, made):
        """(From the gradient in a block's figures that in its product, the figures)."""
        atoms, classes = self._atoms(len(made.reference), rows, indices), self.classes
        clean = functools.partial(self.nulls.present, null)  # of a null row they may be anything
        read = ("sum", "gaps", "all_gaps", "weighted_gaps")
        made = made._replace(**clean({name: getattr(made, name) for name in read}))
        of_logits = lambda d: made.slope(clean(d), atoms, classes, self.epilogue, in_place=platform != "tpu")
        return of_logits, clean(made.figures(atoms, classes))


def total(summand: Summand, platform: str, size: int, of_rows: Any) -> tuple[PyTree, list]:
    """(The total of all rows, no gradients.)"""

    def block(hidden, weights, *others):
        return weigh(weights, summand.value(platform, hidden, weights, *others))

    blocks = in_blocks(size, of_rows)
    first = jax.tree.map(lambda x: x[0], blocks)
    if len(jax.tree.leaves(blocks)[0]) == 1:
        return block(*first), []
    start = jax.tree.map(zeros, jax.eval_shape(block, *first))
    return lax.scan(lambda total, xs: (jax.tree.map(jnp.add, total, block(*xs)), None), start, blocks)[0], []


def each(keep: bool, summand: Summand, platform: str, size: int, of_rows: Any) -> tuple[PyTree, list]:
    """(The values of all rows, and if asked for the exponentials that gave them; no gradients.)"""

    def block(hidden, weights, rows, indices, _):
        if not keep:
            return summand.value(platform, hidden, weights, rows, indices)
        kept = summand.exponentials(platform, hidden, rows, indices, keep=True)
        return summand.value(platform, hidden, weights, rows, indices, kept), kept

    blocks, count = in_blocks(size, of_rows), len(of_rows[0])
    if len(blocks[0]) == 1:
        return jax.tree.map(lambda x: x[:count], block(*jax.tree.map(lambda x: x[0], blocks))), []
    values = lax.scan(lambda _, xs: (None, block(*xs)), None, blocks)[1]
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], values), []


class _Sums(NamedTuple):
    """What is summed over the blocks, in float32 or wider: of one number, the gradients that all rows share."""

    weight: Any = None
    everywhere: Any = None  # Σ of what a row's gradient is at every class, times its hidden state
    epilogue: Any = None
    shared: Any = None

    def __add__(self, other: "_Sums") -> "_Sums":  # type: ignore[override]
        """The weight's is added where its product is made."""
        others = jax.tree.map(jnp.add, self._replace(weight=None), other._replace(weight=None))
        return others._replace(weight=other.weight)


def total_and_gradients(
    wanted: Gradient, summand: Summand, platform: str, size: int, of_rows: Any
) -> tuple[PyTree, list[Gradient]]:
    """(The total, for each of its numbers the gradients that are wanted), those that all rows share in float32 or wider."""
    matrix = summand.matrix
    weight = matrix.weight
    hidden, *_, kept = of_rows
    blocks = in_blocks(size, of_rows)
    first = jax.tree.map(lambda x: x[0], blocks)
    one_block = len(jax.tree.leaves(blocks)[0]) == 1
    columns = functools.cache(lambda: jnp.sum(weight, matrix.class_axis, dtype=accumulator(weight.dtype)))
    scaled = kept is not None or summand.scales(platform, wanted)
    # One block on one device makes the weight's gradient itself. A GPU's compiler was seen to write it in float32 first.
    whole = one_block and platform in GPUS and scaled and summand.rounds(wanted) and not varying(of_rows)
    if scaled and summand.of_figures.total and wanted.hidden:  # type: ignore[union-attr]
        columns()  # once, and not in the loop

    bias = summand.epilogue.bias if wanted.epilogue else None

    def of_product(sum_, slope, hidden, null):
        """(The gradient in hidden, the sums with the block's), from that in the product; of none zeros."""
        if slope is None:
            nothing = lambda x, dtype=None: zeros(jax.typeof(x), dtype=dtype or x.dtype)
            dh = nothing(hidden, kept_in(hidden.dtype)) if wanted.hidden else None
            return dh, _Sums(epilogue=None if bias is None else Epilogue(bias=nothing(bias)))
        unscaled = lambda x: x
        if not isinstance(slope, Slope):
            residual, unscaled = matrix.rounded(slope)
            slope = Slope(None, residual, None)
        wide = accumulator(slope.matrix.dtype)
        dh = dw = over_classes = db = None
        if wanted.hidden:
            dh = unscaled(matrix.hidden_gradient(slope.matrix))
            dh = dh if slope.scale is None else slope.scale[:, None] * dh
            dh = dh if slope.everywhere is None else dh + slope.everywhere[:, None] * columns()
            dh = summand.nulls.present(null, dh.astype(kept_in(hidden.dtype)))  # a weight may be infinite
        if wanted.weight:
            scaled = hidden if slope.scale is None else slope.scale[:, None] * hidden
            dw = matrix.add_weight_gradient(sum_.weight, scaled, slope.matrix, unscaled, rounded=whole)
            over_classes = None if slope.everywhere is None else slope.everywhere @ hidden.astype(wide)
        if bias is not None and slope.scale is not None:
            db = jnp.sum(slope.scale[:, None] * slope.matrix.astype(wide), axis=0)
            db = db if slope.everywhere is None else db + jnp.sum(slope.everywhere)
            db = Epilogue(bias=db.astype(bias.dtype))
        return dh, _Sums(dw, over_classes, db)

    def step(sums, block):
        """``sums`` may be none yet, one list an output."""
        hidden, value, gradients = summand.gradients(wanted, platform, *block)
        null = summand.nulls.of(block[1])
        added, by_row = [], []
        for sum_, (slope, new) in zip(sums or [_Sums()] * len(gradients), gradients, strict=True):
            dh, here = of_product(sum_, slope, hidden, null)
            here = here._replace(epilogue=here.epilogue if new.epilogue is None else new.epilogue, shared=new.shared)
            added.append(sum_ + here if sums else here)
            by_row.append(new._replace(hidden=dh, epilogue=None, shared=None))
        return value, added, by_row

    def next_step(carry, block):
        value, sums, by_row = step(carry[1], block)
        return (jax.tree.map(jnp.add, carry[0], value), sums), by_row

    if one_block:
        value, sums, by_row = step(None, first)
        by_row = jax.tree.map(lambda x: x[: len(hidden)], by_row)
    else:
        value, sums, _ = jax.eval_shape(functools.partial(step, None), first)
        wide = lambda x: zeros(x, x.shape, accumulator(x.dtype))
        start = jax.tree.map(wide, (value, sums))
        (value, sums), by_row = lax.scan(next_step, start, blocks)
        by_row = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: len(hidden)], by_row)
    # Where each device has a part of the classes, so is a hidden state's gradient a sum over the parts.
    over_parts = lambda dh: None if dh is None else sum_over(dh, varying(dh) - varying(hidden))
    gradients = []
    for sum_, of_row in zip(sums, by_row, strict=True):
        dw = sum_.weight
        if dw is None and wanted.weight:
            dw = zeros(jax.typeof(weight), dtype=weight.dtype if whole else accumulator(weight.dtype))
        if sum_.everywhere is not None:
            dw = dw + jnp.expand_dims(sum_.everywhere, matrix.class_axis)
        gradients.append(
            of_row._replace(hidden=over_parts(of_row.hidden), weight=dw, epilogue=sum_.epilogue, shared=sum_.shared)
        )
    return value, gradients


def in_blocks(size, rows):
    """Leaves [N, …] as [blocks, size, …], padded with zeros."""

    def split(x):
        padding = -len(x) % size
        x = jnp.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1))) if padding else x
        return x.reshape(-1, size, *x.shape[1:])

    return jax.tree.map(split, rows)


def is_smooth(x):
    return jnp.issubdtype(x.dtype, jnp.inexact)


def smooth_leaves(tree):
    """The leaves that have derivatives, and how to put others in their place."""
    return picked(tree, [is_smooth(x) for x in jax.tree.leaves(tree)])


def picked(tree, which, of=None):
    """The leaves of a tree that are picked, or ``of`` another those in their places, and how to put others there."""
    leaves, structure = jax.tree.flatten(tree)
    which = which or [False] * len(leaves)

    def rebuild(new):
        new = iter(new)
        return structure.unflatten([next(new) if pick else x for pick, x in zip(which, leaves, strict=True)])

    parts = leaves if of is None else structure.flatten_up_to(of)
    return [part for pick, part in zip(which, parts, strict=True) if pick], rebuild


def _moves(function, argument):
    """Which of a pytree's numbers have a derivative in the argument."""
    along = lambda x, t: jax.jvp(function, (x,), (t,))[1]
    program = jax.make_jaxpr(along)(argument, argument).jaxpr
    moving = set(program.invars[len(program.invars) // 2 :])
    for eqn in program.eqns:
        if any(isinstance(x, Var) and x in moving for x in eqn.invars):
            moving.update(eqn.outvars)
    return [isinstance(x, Var) and x in moving for x in program.outvars]


def basis(value):
    """The cotangents that pick each number of a pytree in turn."""
    leaves, tree = jax.tree.flatten(value)
    unit = lambda k: [jnp.ones_like(x) if i == k else jnp.zeros_like(x) for i, x in enumerate(leaves)]
    return [jax.tree.unflatten(tree, unit(k)) for k in range(len(leaves))]
