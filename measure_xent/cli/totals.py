"""What the rows of predictions add up to. Sums of parts of a data set are added, whoever made them."""

import dataclasses
import functools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

import measure_xent as mx

from .dataset import Piece, Reading, as_text, paired
from .predictions import Block
from .terminal import CommandError

_T = TypeVar("_T")

SHOWN = 10  # rows of a report of bad ones
BY_CLASS = 4096  # classes at most that are scored one by one
FLOAT_MAX, TINY = float(jnp.finfo(jnp.float32).max), float(jnp.finfo(jnp.float32).tiny)
LOOSE = 1e-2  # how far from 1 the sum of a row of probabilities may be, for half precision and printed decimals
BAD = (
    "labels outside the classes",
    "NaN in the predictions",
    f"rows that are not probabilities, of sum 1 to {LOOSE:g} and none negative (another --kind?)",
    "weights that are negative or not finite",
)


# ---- one row


@functools.partial(jax.jit, static_argnames=("kind", "top_k"))
def of_rows(
    predictions: Float[Array, "n V"], labels: Int[Array, "n"], weights: Float[Array, "n"], kind: str, top_k: int
) -> tuple[Float[Array, "4 n"], Bool[Array, "3 n"]]:
    """([nats, correct, among the first k, probability of the mode], what is wrong with a row, as BAD begins)."""
    P = weights * mx.Dirac(labels)  # a row of weight 0 may hold anything
    Q = mx.Categorical(probs=predictions) if kind == "probs" else mx.Categorical(predictions)
    nats, correct, confidence, log_mass = P.expect((-mx.log(Q), mx.correct(Q), mx.confidence(Q), mx.log_partition(Q)))
    own = jnp.take_along_axis(predictions, jnp.clip(labels, 0, predictions.shape[-1] - 1)[:, None], axis=-1)
    # How many are larger, by arithmetic, which goes into one pass: 0, or 1 for what is larger, be it by the least of floats.
    own = own.astype(jnp.float32)
    above = jnp.maximum(predictions.astype(jnp.float32) - jnp.clip(own, -FLOAT_MAX, FLOAT_MAX), 0)
    among = (jnp.sum(jnp.minimum(above * 2.0**126, 1), axis=-1) < top_k) | (own[:, 0] == jnp.inf)
    counts = weights != 0
    outside = counts & ((labels < 0) | (labels >= predictions.shape[-1]))
    if kind == "probs":
        mass, negative = jnp.sum(predictions.astype(jnp.float32), -1), jnp.any(predictions < 0, -1)
        improper, undefined = (jnp.abs(mass - 1) > LOOSE) | negative, jnp.isnan(mass)
    elif kind == "log-probs":
        improper, undefined = jnp.abs(jnp.expm1(log_mass)) > LOOSE, jnp.isnan(nats + confidence)
    else:
        improper, undefined = jnp.zeros_like(outside), jnp.isnan(nats + confidence)
    undefined &= counts & ~outside
    return (
        jnp.stack([nats, correct, jnp.where(counts & among, 1.0, 0.0), confidence]),
        jnp.stack([outside, undefined, counts & improper & ~undefined & ~outside]),
    )


class Scored(NamedTuple):
    """A block's rows: labels, weights of 0 where a row does not count, and what ``of_rows`` gives, perhaps not yet."""

    block: Block
    weights: Float[np.ndarray, "n"]
    wrong_weights: Bool[np.ndarray, "n"]
    padded_rows: Float[Array, "4 size"]  # the first n of them
    padded_faults: Bool[Array, "3 size"]
    own: Float[np.ndarray, "n"] | None  # the labels' probabilities, which float32 may not hold

    @classmethod
    def of(cls, block: Block, kind: str, ignore_index: int, top_k: int, size: int) -> "Scored":
        """``size`` is that of the largest block: of another one the computation would be compiled again."""
        counts = block.labels != ignore_index
        given = np.ones(block.rows) if block.weights is None else np.asarray(block.weights, np.float64)
        fine = (given >= 0) & np.isfinite(given)
        labels = np.clip(block.labels, -1, block.predictions.shape[1]).astype(np.int32)  # int64 would wrap without x64
        weights = np.where(counts & fine, given, 0)
        predictions = block.predictions
        if kind == "logits" and predictions.dtype.itemsize > 4:
            # In float32 logits far from 0 lose what they differ by.
            largest = np.max(predictions, axis=-1, keepdims=True)
            with np.errstate(over="ignore"):  # what float32 does not hold is −inf beside the largest
                predictions = (predictions - np.where(np.isfinite(largest), largest, 0)).astype(np.float32)
        full = lambda x: np.pad(x, [(0, size - len(x)), *[(0, 0)] * (x.ndim - 1)]) if len(x) < size else x
        rows, faults = of_rows(*map(full, (predictions, labels, (weights != 0).astype(np.float32))), kind, top_k)
        own = None
        if kind == "probs":
            at = np.clip(labels, 0, block.predictions.shape[1] - 1)[:, None]
            own = np.take_along_axis(block.predictions, at, axis=1)[:, 0].astype(np.float64)
        return cls(block, weights, counts & ~fine, rows, faults, own)

    @property
    def rows(self) -> Float[np.ndarray, "4 n"]:
        rows = np.array(self.padded_rows, np.float64)[:, : self.block.rows]
        if self.own is not None and np.any(few := (self.own > 0) & (self.own < TINY) & (self.weights != 0)):
            rows[0, few] = -np.log(self.own[few])
        return rows

    @property
    def faults(self) -> Bool[np.ndarray, "4 n"]:
        return np.stack([*np.asarray(self.padded_faults)[:, : self.block.rows], self.wrong_weights])


# ---- sums over rows


@dataclass(frozen=True)
class Sums:
    """What the rows of a part add up to, or of each of several parts on a leading axis; float64 sums, so that blocks add.

    Of two models, on an axis before the figures': each, and for means the second less the first, row by row.
    """

    rows: np.ndarray  # that count
    mass: np.ndarray  # Σ w
    moments: np.ndarray  # [models, 3 figures, (Σ w f, Σ w² f, Σ w² f²)], of nats, correct, among the first k
    square: np.ndarray  # Σ w²
    # [models, bins, (Σ w, Σ w p, Σ w c, Σ w² (c − p)², Σ w p², Σ w p c)], p the probability of the mode, c correct
    bins: np.ndarray

    @classmethod
    def of(
        cls,
        models: Float[np.ndarray, "m 4 n"],
        w: Float[np.ndarray, "n"],
        part: Int[np.ndarray, "n"],
        parts: int,
        bins: int,
    ) -> "Sums":
        """Of each of several parts of the rows, on a leading axis."""
        count = lambda x, where=part, n=parts: np.bincount(where, x, n)
        means = [model[:3] for model in models]
        if len(means) == 2:
            with np.errstate(invalid="ignore"):  # of two losses that are infinite there is no difference
                means.append(means[1] - means[0])
        sums = lambda f: np.stack([count(w * f), count(w * w * f), count(w * w * f * f)], -1)
        moments = np.stack([np.stack([sums(f) for f in figures], -2) for figures in means], -3)

        def binned(correct, p):
            bin_of = part * bins + np.minimum((p * bins).astype(int), bins - 1)
            in_bins = (w, w * p, w * correct, (w * (correct - p)) ** 2, w * p * p, w * p * correct)
            return np.stack([count(x, bin_of, parts * bins).reshape(parts, bins) for x in in_bins], -1)

        of_models = np.stack([binned(correct, p) for _, correct, _, p in models], -3)
        return cls(count((w != 0).astype(float)), count(w), moments, count(w * w), of_models)

    def __add__(self, other: "Sums | None") -> "Sums":
        if other is None:
            return self
        return Sums(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __getitem__(self, i: int) -> "Sums":
        return Sums(*(a[i] for a in vars(self).values()))


@dataclass(frozen=True)
class Faults:
    """How many rows are bad in one way, and the first of them: (path, row)."""

    count: int = 0
    first: tuple[tuple[str, int], ...] = ()

    def __add__(self, other: "Faults") -> "Faults":
        return Faults(self.count + other.count, (self.first + other.first)[:SHOWN])


@dataclass(frozen=True)
class Totals:
    """What a part's rows add up to; nothing if some are bad."""

    rows: int = 0
    overall: Sums | None = None
    by_class: Sums | None = None  # on a leading axis
    by_group: dict[Any, Sums] | None = None
    bad: tuple[tuple[Faults, ...], ...] = ()  # of each model, as BAD

    def __add__(self, other: "Totals") -> "Totals":
        both = lambda a, b: a if b is None else b + a
        groups = dict(self.by_group or {})
        for group, sums in (other.by_group or {}).items():
            groups[group] = sums + groups.get(group)
        of_both = zip(self.bad, other.bad, strict=True) if self.bad and other.bad else ()
        bad = tuple(tuple(map(Faults.__add__, *of_model)) for of_model in of_both)
        return Totals(
            self.rows + other.rows,
            both(self.overall, other.overall),
            both(self.by_class, other.by_class),
            groups,
            bad or self.bad or other.bad,
        )


class Scoring(NamedTuple):
    """How rows are scored, of one model or of two on the same rows."""

    readings: tuple[Reading, ...]
    kinds: tuple[str, ...]
    ignore_index: int
    top_k: int
    bins: int

    def total(self, part: Sequence[Sequence[Piece]], done: Callable[[int], None] = lambda _: None) -> Totals:
        """Sums over the rows of a part, block by block; reading goes on while a block is computed.

        Raises:
            CommandError: a file is broken, or two models have not the same rows.
        """
        totals = Totals()
        for scored in read_ahead(self.blocks(part)):
            totals += self.of_block(scored)
            done(sum(s.block.bytes for s in scored))
        return totals

    def blocks(self, part: Sequence[Sequence[Piece]]) -> Iterator[list[Scored]]:
        models = [reading.blocks(pieces) for reading, pieces in zip(self.readings, part, strict=True)]
        size = 0
        for blocks in paired(*models) if len(models) == 2 else zip(*models, strict=True):
            if len(blocks) == 2:
                blocks = alike(*blocks)
            size = max(size, blocks[0].rows)
            yield [
                Scored.of(block, kind, self.ignore_index, self.top_k, size)
                for block, kind in zip(blocks, self.kinds, strict=True)
            ]

    def of_block(self, scored: Sequence[Scored]) -> Totals:
        block, weights = scored[0].block, scored[0].weights
        where = [[np.flatnonzero(of_fault) for of_fault in s.faults] for s in scored]
        name = lambda s, rows: tuple((str(s.block.path), int(s.block.first + i)) for i in rows[:SHOWN])
        bad = tuple(tuple(Faults(len(x), name(s, x)) for x in each) for s, each in zip(scored, where, strict=True))
        if any(fault.count for of_model in bad for fault in of_model):
            return Totals(block.rows, bad=bad)
        within = functools.partial(Sums.of, np.stack([s.rows for s in scored]), weights, bins=self.bins)
        overall = within(np.zeros(block.rows, int), 1)
        by_class, by_group, classes = None, {}, block.predictions.shape[1]
        if classes <= BY_CLASS:
            by_class = within(np.clip(block.labels, 0, classes - 1), classes)
        if block.groups is not None:
            keys, which = np.unique(block.groups, return_inverse=True)
            of_groups = within(which.ravel(), len(keys))
            keys = as_text(keys).tolist()
            for i, key in enumerate(keys):
                by_group[key] = of_groups[i] + by_group.get(key)
        return Totals(block.rows, overall, by_class, by_group, bad)


def alike(a: Block, b: Block) -> tuple[Block, Block]:
    """Two models' blocks of the same rows; weights and groups may be in one of the two.

    Raises:
        CommandError: labels, weights or groups differ.
    """
    own = {}
    for what in ("labels", "weights", "groups"):
        x, y = getattr(a, what), getattr(b, what)
        own[what] = y if x is None else x
        if x is None or y is None:
            continue
        if what == "weights":  # of other precisions perhaps
            differ = ~np.isclose(x.astype(float), y.astype(float), rtol=1e-6, atol=0, equal_nan=True)
        else:
            differ = as_text(x) != as_text(y) if x.dtype.kind != y.dtype.kind else (x != y) & ((x == x) | (y == y))
        if np.any(differ):
            i = int(np.argmax(differ))
            raise CommandError(
                f"{a.path} has {x[i]} for {what} at row {a.first + i}, {b.path} {y[i]} at row {b.first + i}: "
                "models are compared on the same rows, in the same order"
            )
    return dataclasses.replace(a, **own), dataclasses.replace(b, **own)


def read_ahead(blocks: Iterator[_T]) -> Iterator[_T]:
    """The same, of which another thread takes the next meanwhile."""
    ready: queue.Queue = queue.Queue(maxsize=2)
    done = threading.Event()

    def put(item: Any) -> None:
        while not done.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def read() -> None:
        try:
            for block in blocks:
                put(block)
                if done.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    threading.Thread(target=read, daemon=True).start()
    try:
        while (block := ready.get()) is not None:
            if isinstance(block, BaseException):
                raise block
            yield block
    finally:
        done.set()
