"""The linear head: softmax measures whose matrix of logits never exists."""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import get_opaque_trace_state
from jaxtyping import Array, Float, Int

from .._forms.normal_form import NormalForm
from .._kernels.checks import check_values, real_array
from .._kernels.classes import Classes, accumulator, class_index
from .._kernels.exponentials import FEW_ATOMS, MOST_ATOMS, Figures
from .._kernels.gumbel import Keys, draws
from .._kernels.head import per_row
from .._kernels.head_function import Dimensions
from .._kernels.layout import CLASSES, rows_of
from .._kernels.matrix import Epilogue, Matrix
from .._kernels.mesh import AxisName, axes_of, check_axis, checked_name, varying, zeros
from .._kernels.null import values_at
from .._kernels.softmax import rows, softmax, surprisals
from .._kernels.summand import OfFigures, is_smooth
from .._kernels.target import Target, join, split_by_row
from .._measures.categorical import Categorical, Row
from .._measures.measure import Measure
from .._program import program
from .._pytree import pytree, replaced, set_fields, static
from .conditional import AbstractConditional


@pytree
class LinearSoftmax(AbstractConditional):
    """The Markov kernel h ↦ Categorical(h @ weight + bias), a classifier's or language model's head.

    Against a measure on pairs (h, y) its log-density is integrated in blocks of rows, and the matrix of logits never exists:
    value and gradient are three matrix products. At an array of points, ``Q(hidden)`` is a family with a loss each, in blocks
    too; its gradient takes a fourth product, unless ``residual_bytes`` save it. Products of half-precision numbers accumulate
    in float32, and so does the gradient in the weight, before it is rounded to its dtype.

    Args:
        weight: [D, V], or [V, D], as a tied embedding, with ``class_axis=0``: neither is transposed in memory.
        bias: [V], none by default; −inf forbids a class.
        softcap: c > 0 bounds the logits as c·tanh(logits / c) (Gemma 2, https://arxiv.org/abs/2408.00118, §2).
        class_axis: the axis of weight that the classes are, 1 or 0.
        precision: of the matrix products, as ``jax.lax.dot_general`` takes it.
        batch_size: how many rows of logits to hold at a time; by default what the shapes and the platform make best.
        axis_name: inside ``jax.shard_map``, the mesh axis over whose devices the classes are spread: weight and bias are then
            the equal parts that each device has, in the axis's order, and a row's figures are merged across them by
            collectives of a few numbers a row. Labels count all classes, and hidden, labels and weights are the same on
            every device of the axis.
        dtype: of the operands of the matrix products, by default their own. With bfloat16 a float32 weight is rounded for them,
            and its gradient is the float32 sum.
        residual_bytes: how much a loss for each row of ``Q(hidden)`` may keep for its gradient, none by default. Where a number
            for each logit, N · V in the dtype of the products, is no more, it is kept, and a gradient is three products and not
            four. Under ``vmap`` that is each member's.
        allow_dense: whether all rows' logits may exist at once, where something is asked that cannot be made in blocks. With
            False that is an error which says so.

    Raises:
        TypeError: dtype is no floating dtype.
        ValueError: the shapes of weight and bias, or of h, do not match; axis_name is of no axis that weight varies over;
            batch_size or residual_bytes is no such number; all logits are needed, and allow_dense is False.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> Q = mx.LinearSoftmax(jnp.eye(3), bias=jnp.array([0., 0., 1.]))
        >>> hidden, labels, mask = jnp.eye(3)[:2], jnp.array([0, 1]), jnp.array([1., 0.])
        >>> loss = -mx.Empirical((hidden, labels), weights=mask).expect(mx.log(Q))
        >>> loss.item()
        0.8620
        >>> mx.cross_entropy(mx.Dirac(labels), Q(hidden)).tolist()
        [0.862, 0.862]
    """

    weight: Float[Array, "D V"]
    bias: Float[Array, "V"] | None = None
    softcap: Float[Array, ""] | None = None
    class_axis: int = static(default=1)
    precision: Any = static(default=None)
    batch_size: int | None = static(default=None)
    axis_name: AxisName | None = static(default=None)
    dtype: Any = static(default=None)
    residual_bytes: int = static(default=0)
    allow_dense: bool = static(default=True)

    def __post_init__(self):
        weight = real_array("LinearSoftmax(weight)", self.weight, floating=True)
        if self.class_axis not in (0, 1):
            raise ValueError(f"LinearSoftmax(class_axis): 1 for a weight [D, V], 0 for [V, D], got {self.class_axis!r}")
        if weight.ndim != 2:
            shape = "[D, V]" if self.class_axis else "[V, D]"
            raise ValueError(f"LinearSoftmax(weight): shape {shape}, got {weight.shape}")
        if 0 in weight.shape:
            raise ValueError(f"LinearSoftmax(weight): at least one feature and one class, got shape {weight.shape}")
        set_fields(self, weight=weight)
        if self.bias is not None:
            bias = real_array("LinearSoftmax(bias)", self.bias, floating=True)
            if bias.shape != (self.parts.here,):
                raise ValueError(
                    f"LinearSoftmax(bias): shape {(self.parts.here,)} as weight's classes, got {bias.shape}"
                )
            set_fields(self, bias=bias)
        if self.softcap is not None:
            softcap = real_array("LinearSoftmax(softcap)", self.softcap, floating=True)
            if softcap.ndim != 0:
                raise ValueError(f"LinearSoftmax(softcap): a number, got shape {softcap.shape}")
            set_fields(self, softcap=softcap)
            check_values(softcap > 0, "LinearSoftmax(softcap): a positive number")
        if self.dtype is not None:
            try:
                set_fields(self, dtype=jnp.dtype(self.dtype))
            except TypeError:
                raise TypeError(f"LinearSoftmax(dtype): a floating dtype, got {self.dtype!r}") from None
            if not jnp.issubdtype(self.dtype, jnp.floating):
                raise TypeError(f"LinearSoftmax(dtype): a floating dtype, got {self.dtype}")
        set_fields(self, axis_name=checked_name("LinearSoftmax(axis_name)", self.axis_name))
        size = self.batch_size
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise ValueError(f"LinearSoftmax(batch_size): a positive int, got {self.batch_size!r}")
        kept = self.residual_bytes
        if not isinstance(kept, int) or isinstance(kept, bool) or kept < 0:
            raise ValueError(f"LinearSoftmax(residual_bytes): a number of bytes, an int of at least 0, got {kept!r}")
        if not isinstance(self.allow_dense, bool):
            raise ValueError(f"LinearSoftmax(allow_dense): True or False, got {self.allow_dense!r}")

    @property
    def classes(self) -> int:
        """V, the number of classes, on all devices that have a part."""
        return self.parts.count

    @property
    def parts(self) -> Classes:
        """The classes as the kernels take them."""
        return Classes(self.weight.shape[self.class_axis], self.axis_name)

    @property
    def matrix(self) -> Matrix:
        """The matrix product alone."""
        return Matrix(self.weight, self.class_axis, self.precision, self.dtype)

    @property
    def epilogue(self) -> Epilogue:
        """What makes logits of the product, as wide as they are."""
        return jax.tree.map(lambda x: x.astype(accumulator(x.dtype)), Epilogue(self.bias, self.softcap))

    def __call__(self, *x):
        if len(x) != 1:
            raise TypeError(
                f"LinearSoftmax is a function of one coordinate h, got {len(x)}: P is a measure on pairs (h, y)"
            )
        (hidden,) = x
        hidden = real_array("LinearSoftmax(weight)(h): h", hidden, floating=True)
        features = self.weight.shape[1 - self.class_axis]
        if hidden.shape[-1:] != (features,):
            raise ValueError(f"LinearSoftmax: h must end in weight's D = {features} features, got shape {hidden.shape}")
        if 0 in hidden.shape:
            raise ValueError(f"LinearSoftmax(weight)(h): an empty batch, h has shape {hidden.shape}")
        _check_parts(self)
        return LinearCategorical(hidden, self)

    def family(self, x, lead):
        measures = self(*x)
        if len(measures.shape) != lead:
            raise ValueError(
                f"a LinearSoftmax gives one measure a point h [D], but the points have shape {jnp.shape(x[0])[lead:]}; if a "
                "batch has more than one axis, weights of its shape name them all, such as weights=jnp.ones((B, T))"
            )
        return measures


@pytree
class LinearCategorical(Measure):
    """The family Categorical(hidden @ weight + bias), a softmax measure for each row of hidden."""

    hidden: Float[Array, "*family D"]
    head: LinearSoftmax

    @property
    def shape(self):
        return self.hidden.shape[:-1]

    @property
    def dense(self) -> Categorical:
        """The same measures, with all their logits."""
        _check_dense(self.head, self.shape)
        return Categorical(self.head.parts.gather(_logits_of(self.hidden, self.head)))

    def dense_like(self, n: int) -> Categorical:
        """As many such measures with all their logits."""
        return Categorical(jnp.zeros((n, self.classes), accumulator(self.head.weight.dtype)))

    @property
    def classes(self) -> int:
        """V, the number of classes."""
        return self.head.classes

    @property
    def logits(self) -> Float[Array, "*family V"]:
        """All of them, as an array."""
        return self.dense.logits  # type: ignore[return-value]

    @property
    def mass(self):
        return jnp.where(self.log_partition == -jnp.inf, 0.0, 1.0)

    @property
    def log_partition(self):
        return self.row(Target()).log_partition

    @property
    def mode(self) -> Any:
        return self.row(Target(), ("mode",)).mode

    def heaviest(self, k: int) -> Int[Array, "*family k"]:
        """The k most probable classes, those first."""

        def of_block(axis_name, axes, logits, shared, own, indices):
            return Classes.of(logits, axis_name).heaviest(logits, k)

        return self._per_row(of_block, (), (), (), (), copies=2)

    def forms(self):
        head = jax.tree.map(lambda x: x.reshape((1,) * len(self.shape) + x.shape), self.head)
        part = DeferredSoftmax(self.hidden, head, jnp.ones(self.shape))
        return (NormalForm(deferred=(part,), classes=self.head.classes),)

    def scaled_density(self, *x):
        return self.dense.scaled_density(*x)

    def log_density(self, *x):
        (y,) = map(class_index, x)
        shape = jnp.broadcast_shapes(y.shape, self.shape)
        lead = len(shape) - len(self.shape)
        if shape[lead:] != self.shape or 0 in shape:  # more members than rows of logits, or none
            return self.dense.log_density(y)
        # Several classes a row are its atoms.
        candidates = jnp.moveaxis(jnp.broadcast_to(y, shape).reshape(-1, *self.shape), 0, -1)
        against = Target(candidates, jnp.ones(candidates.shape))
        of_figures = as_figures(against, (), lambda figures, *_: figures.surprisals, self.head.axis_name)
        values = self.per_row(_surprisals, against, (), of_figures)
        return -jnp.moveaxis(values, -1, 0).reshape(shape)

    @program
    def sample(self, key, shape=()):
        keys, count = Keys.of(key, self.shape), math.prod(shape)

        def of_block(axis_name, axes, logits, shared, own, words):
            return draws(Classes.of(logits, axis_name), logits, keys._replace(words=words), count)

        at = self._per_row(of_block, (), (), keys.words, (), copies=8)
        return jnp.moveaxis(at, -1, 0).reshape(*shape, *self.shape)

    def row(self, against: Target, row_statistics: tuple[str, ...] = (), deferred: tuple = ()) -> Row:
        """Every row's figures against its target, of the classes here; the targets' family is this one's."""

        def of_figures(figures, classes, shared, own, indices):
            against = sparse_target(shared, own, indices)
            return row_of_figures(figures, against, classes, row_statistics)

        read = as_figures(against, deferred, of_figures, self.head.axis_name, row_statistics)
        function = functools.partial(row_of, row_statistics=row_statistics)
        return self.per_row(function, against, deferred, read)

    def in_blocks(self, function: Callable, others: list[Any], own: list[Array], shared: list[Array]) -> Any:
        """``function(dense, own, shared)`` of every member, in blocks: of the Categoricals of this family and the others."""

        def of_parts(parts, logits, own, shared):
            whole = [part.gather(z) for part, z in zip(parts, logits, strict=True)]
            return function(list(map(Categorical, whole)), own, shared)

        return self.in_parts(of_parts, others, own, shared)

    def in_parts(self, function: Callable, others: list[Any], own: list[Array], shared: list[Array]) -> Any:
        """``function(parts, logits, own, shared)`` of every member, in blocks: of the logits of this family and the others, of
        which each device may have a part of the classes."""
        kinds = [not is_smooth(x) for x in own]  # 0 for what has derivatives
        smooth, fixed = ([x for x, kind in zip(own, kinds, strict=True) if kind == k] for k in (0, 1))

        def values(axis_name, axes, logits, shared, own, indices):
            (heads, shared), (hidden, smooth, present) = shared, own
            heads = heads if axes is None else [replaced(head, axis_name=axes) for head in heads]
            parts = [Classes.of(logits, axis_name), *(head.parts for head in heads)]
            each = [logits, *(_logits_of(h, head) for h, head in zip(hidden, heads, strict=True))]
            # A null row, or one that fills a block, may be where the function has no derivative: none of its is taken.
            known = lambda x: jnp.where(present.reshape(-1, *(1,) * (x.ndim - 1)) != 0, x, lax.stop_gradient(x))
            each, smooth = jax.tree.map(known, (each, smooth))
            arrays = iter(smooth), iter(indices)
            return function(parts, each, [next(arrays[kind]) for kind in kinds], shared)

        # Traced once for all that it is looked at for: values, gradients, shapes.
        values = jax.jit(values, static_argnums=(0, 1))
        rows = [Q.hidden for Q in others], smooth, jnp.ones(self.shape)
        heads, copies = [Q.head for Q in others], 2 + len(others)
        return self._per_row(values, (heads, shared), rows, fixed, tuple(others), copies=copies)

    def per_row(self, function: Callable, against: Target, deferred: tuple, of_figures: OfFigures | None = None) -> Any:
        """A function of the logits and the target, of every row, in blocks of rows."""
        (own, indices), shared = operands_of(against, deferred, self.shape)
        return self._per_row(function, shared, own, indices, deferred, of_figures)

    def _per_row(self, function, shared, own, indices, deferred, of_figures=None, copies=1):
        made = functools.partial(self._made, function, shared, own, indices, deferred, of_figures, copies)
        if (calls := _calls.get()) is None or self.shape or deferred:
            return made()
        operands = Operands(self.hidden, self.head, shared, own, indices)
        return calls.recorded(Call(function, of_figures, copies), operands, made)

    def _made(self, function, shared, own, indices, deferred, of_figures, copies):
        values = lambda axes, name=self.head.axis_name: functools.partial(function, axes or name, axes)
        return per_row(
            values,
            self.hidden,
            self.head.matrix,
            self.head.epilogue,
            shared,
            own,
            indices,
            Dimensions(dims_of(shared, 0), dims_of(own, len(self.shape))),
            of_figures=of_figures,
            parts=axes_of_parts(self.head, deferred),
            size=self.head.batch_size,
            residual_bytes=self.head.residual_bytes,
            copies=copies,
        )


class Call(NamedTuple):
    """A function of a row of logits that was asked for at one point."""

    function: Callable  # as ``per_row`` takes it
    of_figures: OfFigures | None
    copies: int


class Operands(NamedTuple):
    """What it was asked of."""

    hidden: Float[Array, "D"]
    head: LinearSoftmax
    shared: Any
    own: Any
    indices: Any


class _Calls(NamedTuple):
    which: set[int] | None
    trace: Any
    seen: list[tuple[Call, Operands, Any] | None]

    def recorded(self, call: Call, operands: Operands, made: Callable) -> Any:
        if get_opaque_trace_state() != self.trace:  # inside of a vmap, or another transformation, of the user's
            return made()
        if self.which is not None and len(self.seen) not in self.which:
            self.seen.append(None)
            return made()
        # One of the program's variables, which nothing else is.
        stand_in = jax.tree.map(lambda x: lax.optimization_barrier(zeros(x)), jax.eval_shape(made))
        self.seen.append((call, operands, stand_in))
        return stand_in


_calls: contextvars.ContextVar[_Calls | None] = contextvars.ContextVar("calls", default=None)


@contextlib.contextmanager
def recorded(which: set[int] | None) -> Iterator[list]:
    """Of single rows, what is asked in the meantime, in order, and stand-ins for the answers; of ``which`` alone, or all."""
    token = _calls.set(_Calls(which, get_opaque_trace_state(), []))
    try:
        yield _calls.get().seen  # type: ignore[union-attr]
    finally:
        _calls.reset(token)


@pytree
class DeferredSoftmax:
    """c · softmax(hidden @ weight + bias), a dense part of a normal form: the head is shared, its leaves' family axes are 1."""

    hidden: Float[Array, "*family D"]
    head: LinearSoftmax
    c: Float[Array, "*family"]

    @property
    def family(self) -> tuple[int, ...]:
        return jnp.broadcast_shapes(self.hidden.shape[:-1], self.c.shape)

    def scale(self, c: Any) -> "DeferredSoftmax":
        return DeferredSoftmax(self.hidden, self.head, c * self.c)

    def split(self, family: tuple[int, ...]) -> tuple[tuple[Array, Array], LinearSoftmax]:
        """What each row has of its own, with the family's axes, and the head."""
        lead = self.hidden.ndim - 1
        own = jnp.broadcast_to(self.hidden, (*family, self.hidden.shape[-1])), jnp.broadcast_to(self.c, family)
        return own, jax.tree.map(lambda x: x.reshape(x.shape[lead:]), self.head)

    def dense(self) -> Float[Array, "*family V"]:
        (hidden, c), head = self.split(self.family)
        _check_dense(head, self.family)
        return _written(hidden, c, head, Classes(head.classes))


def _written(hidden, c, head, classes):
    """c · softmax(hidden @ weight + bias), of the classes wanted."""

    def probabilities(hidden):
        p = softmax(_logits_of(hidden, head), head.parts)
        return p if head.axis_name == classes.axis_name else classes.part(head.parts.gather(p))

    stand_in = lambda absent, hidden: (jnp.where(absent[..., None], 0, hidden),)
    return c[..., None] * values_at(probabilities, c, (hidden,), stand_in)


def _logits_of(hidden, head):
    product = head.matrix.of(head.weight).logits(hidden.reshape(-1, hidden.shape[-1]))
    return head.epilogue.logits(product).reshape(*hidden.shape[:-1], -1)


def row_of(
    axis_name: AxisName | None,
    axes: AxisName | None,
    logits: Array,
    shared: Any,
    own: Any,
    indices: Any,
    row_statistics: tuple[str, ...] = (),
) -> Row:
    """The figures of a block of rows, from their logits and what ``_operands`` took apart."""
    classes = Classes.of(logits, axis_name)
    against = target_of(own, indices, shared, classes, axes)
    return Row.of(against, rows(logits, against, row_statistics, axis_name), classes)


def _surprisals(
    axis_name: AxisName | None, axes: AxisName | None, logits: Array, shared: Any, own: Any, indices: Any
) -> Array:
    """At the atoms of a block of rows' target."""
    del axes
    return surprisals(logits, sparse_target(shared, own, indices).indices, axis_name)  # type: ignore[arg-type]


def operands_of(target: Target, deferred: tuple, family: tuple[int, ...]) -> tuple[tuple, tuple]:
    """((each row's own, its indices), shared by all), of a target and its deferred parts."""
    own, shared = split_by_row(target, family)
    parts = [part.split(family) for part in deferred]
    return ((own._replace(indices=None), [own for own, _ in parts]), own.indices), (shared, [head for _, head in parts])


def target_of(own, indices, shared, classes: Classes, axes: AxisName | None) -> Target:
    """A block of rows' target, of the classes here, with its deferred parts written out; ``axes`` are every head's."""
    (own, rows), (shared, heads) = own, shared
    target = join(own._replace(indices=indices), shared)
    heads = heads if axes is None else [replaced(head, axis_name=axes) for head in heads]
    dense = [_written(hidden, c, teacher, classes) for (hidden, c), teacher in zip(rows, heads, strict=True)]
    dense += [] if target.dense is None else [target.dense]
    return target._replace(dense=functools.reduce(jnp.add, dense)) if dense else target


def sparse_target(shared: Any, own: Any, indices: Any) -> Target:
    """A block of rows' target without dense parts."""
    return join(own[0]._replace(indices=indices), shared[0])


def as_figures(
    target: Target,
    deferred: tuple,
    values: Callable,
    axis_name: AxisName | None,
    row_statistics: tuple[str, ...] = (),
    at: Callable = lambda shared: shared,
) -> OfFigures | None:
    """Values by scaled exponentials, if these take the target: it has no dense parts, and few atoms; and no statistics of rows
    are read but its mass at the mode and their entropy. ``at`` is where the target is in what is shared."""
    k = 0 if target.indices is None else target.indices.shape[-1]
    entropy, modes = ("entropy" in row_statistics), ("mass_at_mode" in row_statistics)
    most = FEW_ATOMS if modes else MOST_ATOMS
    if target.dense is not None or deferred or k > most or not {"mass_at_mode", "entropy"}.issuperset(row_statistics):
        return None

    def atoms(shared, own, indices):
        target = sparse_target(at(shared), own, indices)
        return class_index(target.indices), target.weights  # type: ignore[arg-type]

    return OfFigures(atoms if k else None, target.background is not None, entropy, modes, values, axis_name)


def row_of_figures(figures: Figures, target: Target, classes: Classes, row_statistics: tuple[str, ...]) -> Row:
    """The same from scaled exponentials."""
    mass_at_mode = figures.mass_at_mode(target) if "mass_at_mode" in row_statistics else None
    return Row.of(target, figures.rows(target), classes, mass_at_mode)


def axes_of_parts(head: LinearSoftmax, deferred: tuple) -> frozenset[str]:
    """The mesh axes over which each device has a part of the classes of a head, or of those of a target."""
    return frozenset().union(*(axes_of(head.axis_name) for head in (head, *(part.head for part in deferred))))


def dims_of(tree: Any, rank: int) -> Any:
    """The names of the axes of arrays that have so many axes of rows, where there are classes among them."""
    lead = rows_of(rank)
    if isinstance(tree, Target):
        return tree.dims(rank)
    if isinstance(tree, LinearSoftmax):
        weight = ("features", CLASSES) if tree.class_axis else (CLASSES, "features")
        given = dict(weight=weight, bias=(CLASSES,), softcap=())
        return replaced(tree, **{name: dims for name, dims in given.items() if getattr(tree, name) is not None})
    if isinstance(tree, tuple | list):
        return type(tree)(dims_of(part, rank) for part in tree)
    return jax.tree.map(lambda x: (*lead, *(None,) * (x.ndim - rank)), tree)


def _check_parts(head: LinearSoftmax) -> None:
    check_axis("LinearSoftmax(axis_name)", head.axis_name)
    if not axes_of(head.axis_name) <= varying(head.weight):
        raise ValueError(
            f"LinearSoftmax(axis_name={head.axis_name!r}): weight is the same on every device of the axis, where each has its "
            "part of the classes; split them in shard_map's in_specs"
        )


def _check_dense(head: LinearSoftmax, family: tuple[int, ...]) -> None:
    if not head.allow_dense:
        raise ValueError(
            f"LinearSoftmax(allow_dense=False): what is asked takes all logits at once, of shape {(*family, head.classes)}"
        )
