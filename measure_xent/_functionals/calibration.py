"""Calibration: whether what is given a probability comes true as often. Every figure is an integral under the joint measure."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from .._forms.normal_form import NormalForm
from .._integrands.density import measure_at
from .._measures.measure import Measure
from .._measures.pushforward import pushforward

BLUE, GREY = "#2563a8", "#8a8f98"


class Reliability(NamedTuple):
    """Of each bin of probabilities: the mass in it, and how much of that was expected and how much was correct.

    All three are integrals, so that those of batches add, in the same bins: ``jax.tree.map(jnp.add, a, b)`` but for the edges.
    Of several classes they have an axis before that of the bins.
    """

    edges: Float[Array, "*classes bins+1"]
    mass: Float[Array, "*classes bins"]
    expected: Float[Array, "*classes bins"]
    correct: Float[Array, "*classes bins"]
    square: Float[Array, "*classes bins"]  # of the probability, for Brier's score
    product: Float[Array, "*classes bins"]  # of the probability and of being correct

    @property
    def confidence(self) -> Float[Array, "*classes bins"]:
        """The mean probability in each bin, NaN in an empty one."""
        return self.expected / self.mass

    @property
    def accuracy(self) -> Float[Array, "*classes bins"]:
        """The share that was correct in each bin, NaN in an empty one."""
        return self.correct / self.mass

    @property
    def error(self) -> Float[Array, "*classes"]:
        """The expected calibration error, Σ |correct − expected| over the mass; 0 of no mass."""
        return jnp.sum(jnp.abs(self.correct - self.expected), -1) / self._whole[..., 0]

    @property
    def brier(self) -> "BrierDecomposition":
        """The Brier score of the probability as a forecast of being correct, in its parts."""
        share, some = self.mass / self._whole, jnp.where(self.mass > 0, self.mass, 1)
        p, y = self.expected / some, self.correct / some
        base = jnp.sum(share * y, -1, keepdims=True)
        score = jnp.sum(self.square - 2 * self.product + self.correct, -1) / self._whole[..., 0]
        reliability, resolution = jnp.sum(share * (p - y) ** 2, -1), jnp.sum(share * (y - base) ** 2, -1)
        uncertainty = (base * (1 - base))[..., 0]
        return BrierDecomposition(
            score, reliability, resolution, uncertainty, score - (reliability - resolution + uncertainty)
        )

    @property
    def _whole(self):
        """The mass of all bins, to divide by."""
        mass = jnp.sum(self.mass, -1, keepdims=True)
        return jnp.where(mass == 0, 1, mass)

    def plot(self, axes: Any = None, count: float | None = None) -> Any:
        """The reliability diagram, by matplotlib: accuracy by probability, points as wide as their bin's share.

        Args:
            axes: to draw on; new ones by default.
            count: how many outcomes there were, for 95 % Wilson intervals and the count of each bin.

        Raises:
            ValueError: the figures are of several classes.
        """
        if self.mass.ndim > 1:
            raise ValueError(
                f"plot: the figures are of {len(self.mass)} classes; take one, jax.tree.map(lambda x: x[c], figures)"
            )
        from matplotlib import pyplot as plt

        axes = plt.subplots(figsize=(4.8, 4.6), constrained_layout=True)[1] if axes is None else axes
        full = np.asarray(self.mass) > 0
        share, p, y = (np.asarray(x)[full] for x in (self.mass / self._whole, self.confidence, self.accuracy))
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="calibrated")
        if count is not None:
            n, z = share * count, 1.96
            centre = (y + z**2 / (2 * n)) / (1 + z**2 / n)
            half = z * np.sqrt(y * (1 - y) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
            low, high = np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
            axes.vlines(p, low, high, color=BLUE, alpha=0.5, linewidth=2)
            for a, b, k in zip(p, y, n, strict=True):
                label = f"{round(float(k))}"
                axes.annotate(label, (a, b), textcoords="offset points", xytext=(6, -12), fontsize=8, color=GREY)
        size = 36 if count is not None else 20 + 300 * share
        name = "accuracy in the bin" + (", 95 % interval" if count is not None else "")
        axes.scatter(p, y, s=size, color=BLUE, label=name, zorder=3)
        axes.set(xlabel="predicted probability", ylabel="accuracy", xlim=(-0.03, 1.03), ylim=(-0.08, 1.03))
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
        return axes


class BrierDecomposition(NamedTuple):
    """score = reliability − resolution + uncertainty + within.

    Source: Murphy (1973), *A new vector partition of the probability score*; the last, what the probabilities differ by within
    a bin, is 0 where they do not: Stephenson, Coelho & Jolliffe (2008).
    """

    score: Float[Array, ""]
    reliability: Float[Array, ""]
    resolution: Float[Array, ""]
    uncertainty: Float[Array, ""]
    within: Float[Array, ""]


Equal = Literal["width", "mass"]


def reliability(
    P: Measure,
    Q: Any,
    bins: int | Float[Array, "bins+1"] = 15,
    *,
    equal: Equal = "width",
    classes: int | Int[Array, "k"] | None = None,
) -> Reliability:
    """How often Q's most probable class was right, by the probability that it was given, under the joint measure P of x and y.

    Args:
        P: one measure on tuples (x…, y), such as Empirical((logits, labels)).
        Q: a Conditional of measures on classes, x ↦ Q(x).
        bins: how many; or their edges, from 0 to 1. A probability at an edge is in the bin above it.
        equal: what so many bins have alike, their "width" or, of atoms, their "mass" (Nguyen & O'Connor 2015): their edges are
            then halfway between neighbours, and equal probabilities stay together.
        classes: instead of the most probable class one that is given, held to how often it came; or several, one row of
            figures each. The mean of their errors is the class-wise error (Kull et al. 2019).

    Raises:
        ValueError: P is a family, or has a density where the mass is to be equal, or the edges do not rise from 0 to 1.
        TypeError: the edges are traced.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> logits, labels = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])), jnp.array([0, 1, 1])
        >>> P, Q = mx.Empirical((logits, labels)), mx.Conditional(mx.Categorical)
        >>> figures = mx.reliability(P, Q, bins=2)
        >>> figures.confidence[1].item(), figures.accuracy[1].item(), figures.error.item()
        (0.8, 0.66667, 0.13333)
        >>> figures.brier.score.item()  # (0.1² + 0.9² + 0.4²) / 3
        0.32667
        >>> mx.reliability(P, Q, bins=3, classes=jnp.arange(2)).error.tolist()  # of 0.9, 0.9 and 0.4 for the first
        [0.4, 0.4]
    """
    if not isinstance(P, Measure) or P.shape:
        got = f"a family {P.shape}" if isinstance(P, Measure) else type(P).__name__
        raise ValueError(
            f"calibration: P is one measure of all pairs (x, y) and Q a Conditional, such as Empirical((logits, labels)) and "
            f"Conditional(Categorical); got for P {got}"
        )
    edges = _edges(bins)
    if equal not in get_args(Equal) or (equal == "mass" and not isinstance(edges, int)):
        raise ValueError(f'reliability(equal): "width" or "mass", of a number of bins, got {equal!r} and bins={bins!r}')
    if isinstance(edges, int) and equal == "width":
        edges = np.linspace(0, 1, edges + 1)

    def of(c):
        at = _of_equal_mass(P, Q, c, edges) if isinstance(edges, int) else jnp.asarray(edges, float)
        return Reliability(at, *P.expect(Partial(_figures, Q, at, c)).T)

    if classes is None or jnp.ndim(classes) == 0:
        return of(classes)
    return jax.lax.map(of, jnp.asarray(classes))  # one at a time: their bins are as many numbers an atom


def _edges(bins: Any) -> Any:
    """How many bins, an int, or their edges."""
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(bins)):
        raise TypeError(
            "reliability(bins): known when the program is traced, got a traced array; make edges by numpy outside of jit, or "
            'take bins of the data\'s own, equal="mass"'
        )
    given = np.asarray(bins)
    if given.ndim == 0 and given.dtype.kind in "iu" and given > 0:
        return int(given)
    if (
        given.ndim != 1
        or given.dtype.kind not in "iuf"
        or len(given) < 2
        or not np.all(np.diff(given.astype(float)) > 0)
        or (given[0], given[-1]) != (0, 1)
    ):
        raise ValueError(f"reliability(bins): a positive int, or edges that rise from 0 to 1, got {bins!r}")
    return given


def _of_equal_mass(P: Measure, Q: Any, c: Any, bins: int) -> Float[Array, "bins+1"]:
    """The edges between which the probability has equal shares of P, as near as its atoms allow."""
    forms: Any = pushforward(Partial(_forecast, Q, c), P).forms()
    if not all(isinstance(form, NormalForm) for form in forms):
        raise ValueError('reliability(equal="mass"): P must be of atoms, but has a density; give the edges of the bins')
    parts = [part for form in forms for part in form.atom_lists()]
    weights = jnp.concatenate([jnp.ravel(weights) for _, weights, _ in parts])
    p = jnp.concatenate([jnp.ravel(jnp.broadcast_to(points[0], weights.shape)) for points, weights, _ in parts])
    p = jnp.where(weights == 0, 1, p)
    order = jnp.argsort(p)
    p, weights = p[order], weights[order]
    below = jnp.cumsum(weights) - weights / 2  # by the middle of each atom, so that rounding moves none over an edge
    at = jnp.searchsorted(below, jnp.arange(1, bins) / bins * jnp.sum(weights))
    inner = (p[jnp.maximum(at - 1, 0)] + p[jnp.minimum(at, len(p) - 1)]) / 2
    return jax.lax.stop_gradient(jnp.concatenate([jnp.zeros(1), inner, jnp.ones(1)]))


def _forecast(Q, c, *x):
    """(the probability of the class c, or of the mode, whether it came)."""
    *given, y = x
    forecast = measure_at(Q, given)
    c = forecast.mode if c is None else c
    return jnp.exp(forecast.log_density(c)), jnp.where(y == c, 1.0, 0.0)


def _figures(Q, edges, c, *x):
    """[bins, 5]: one, p, correct, p², p · correct in the bin of p."""
    p, correct = _forecast(Q, c, *x)
    bin = jnp.clip(jnp.searchsorted(edges, p, side="right") - 1, 0, len(edges) - 2)
    here = jnp.arange(len(edges) - 1) == bin
    return jnp.where(here[:, None], jnp.stack([jnp.ones_like(p), p, correct, p**2, p * correct]), 0)


def calibration_error(
    P: Measure,
    Q: Any,
    bins: int | Float[Array, "bins+1"] = 15,
    *,
    equal: Equal = "width",
    classes: int | Int[Array, "k"] | None = None,
) -> Float[Array, "*classes"]:
    """The expected calibration error, Σ_b |P(correct, b) − ∫_b confidence dP| over bins b of Q's confidence.

    Source: Naeini, Cooper & Hauskrecht (2015); Guo et al. (2017), *On calibration of modern neural networks*. It depends on the
    bins, which are to be stated beside it. Arguments and errors are those of ``reliability``.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> P = mx.Empirical((jnp.zeros((4, 2)), jnp.array([0, 0, 0, 1])))
        >>> mx.calibration_error(P, mx.Conditional(mx.Categorical)).item()  # ¾ right, ½ expected
        0.25
        >>> mx.calibration_error(P, mx.Conditional(mx.Categorical), classes=jnp.arange(2)).mean().item()  # class-wise
        0.25
    """
    return reliability(P, Q, bins, equal=equal, classes=classes).error
