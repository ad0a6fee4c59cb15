"""Calibration: whether what is given a probability comes true as often. Every figure is an integral under the joint measure."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from ._density import measure_at
from ._measure import Measure

BLUE, GREY = "#2563a8", "#8a8f98"


class Reliability(NamedTuple):
    """Of each bin of probabilities: the mass in it, and how much of that was expected and how much was correct.

    All three are integrals, so that those of batches add: ``jax.tree.map(jnp.add, a, b)`` but for the edges.
    """

    edges: Float[Array, "bins+1"]
    mass: Float[Array, "bins"]
    expected: Float[Array, "bins"]
    correct: Float[Array, "bins"]
    square: Float[Array, "bins"]  # of the probability, for Brier's score
    product: Float[Array, "bins"]  # of the probability and of being correct

    @property
    def confidence(self) -> Float[Array, "bins"]:
        """The mean probability in each bin, NaN in an empty one."""
        return self.expected / self.mass

    @property
    def accuracy(self) -> Float[Array, "bins"]:
        """The share that was correct in each bin, NaN in an empty one."""
        return self.correct / self.mass

    @property
    def error(self) -> Float[Array, ""]:
        """The expected calibration error, Σ |correct − expected| over the mass."""
        return jnp.sum(jnp.abs(self.correct - self.expected)) / self.mass.sum()

    @property
    def brier(self) -> "BrierDecomposition":
        """The Brier score of the probability as a forecast of being correct, in its parts."""
        share, full = self.mass / self.mass.sum(), self.mass > 0
        some = jnp.where(full, self.mass, 1)
        p, y = self.expected / some, self.correct / some
        base = jnp.sum(share * y)
        score = jnp.sum(self.square - 2 * self.product + self.correct) / self.mass.sum()
        reliability, resolution = jnp.sum(share * (p - y) ** 2), jnp.sum(share * (y - base) ** 2)
        uncertainty = base * (1 - base)
        return BrierDecomposition(
            score, reliability, resolution, uncertainty, score - (reliability - resolution + uncertainty)
        )

    def plot(self, axes: Any = None, count: float | None = None) -> Any:
        """The reliability diagram, by matplotlib: accuracy by probability, points as wide as their bin's share.

        Args:
            axes: to draw on; new ones by default.
            count: how many outcomes there were, for 95 % Wilson intervals and the count of each bin.
        """
        from matplotlib import pyplot as plt

        axes = plt.subplots(figsize=(4.8, 4.6), constrained_layout=True)[1] if axes is None else axes
        full = np.asarray(self.mass) > 0
        share, p, y = (np.asarray(x)[full] for x in (self.mass / self.mass.sum(), self.confidence, self.accuracy))
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


def reliability(P: Measure, Q: Any, bins: int | Float[Array, "bins+1"] = 15) -> Reliability:
    """How often Q's most probable class was right, by the probability that it was given, under the joint measure P of x and y.

    Args:
        P: one measure on tuples (x…, y), such as Empirical((logits, labels)).
        Q: a Conditional of measures on classes, x ↦ Q(x).
        bins: how many, of equal width; or their edges, from 0 to 1. A probability at an edge is in the bin above it.

    Raises:
        ValueError: P is a family, or the edges do not rise from 0 to 1.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> logits, labels = jnp.log(jnp.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])), jnp.array([0, 1, 1])
        >>> figures = mx.reliability(mx.Empirical((logits, labels)), mx.Conditional(mx.Categorical), bins=2)
        >>> figures.confidence[1].item(), figures.accuracy[1].item(), figures.error.item()
        (0.8, 0.66667, 0.13333)
        >>> figures.brier.score.item()  # (0.1² + 0.9² + 0.4²) / 3
        0.32667
    """
    if not isinstance(P, Measure) or P.shape:
        got = f"a family {P.shape}" if isinstance(P, Measure) else type(P).__name__
        raise ValueError(
            f"calibration: P is one measure of all pairs (x, y) and Q a Conditional, such as Empirical((logits, labels)) and "
            f"Conditional(Categorical); got for P {got}"
        )
    edges = np.linspace(0, 1, bins + 1) if isinstance(bins, int) and bins > 0 else np.asarray(bins, float)
    if edges.ndim != 1 or len(edges) < 2 or not np.all(np.diff(edges) > 0) or edges[0] != 0 or edges[-1] != 1:
        raise ValueError(f"reliability(bins): a positive int, or edges that rise from 0 to 1, got {bins!r}")
    edges = jnp.asarray(edges, float)
    return Reliability(edges, *P.expect(Partial(_figures, Q, edges)).T)


def _figures(Q, edges, *x):
    """[bins, 5]: one, p, correct, p², p · correct in the bin of p."""
    *given, y = x
    forecast = measure_at(Q, given)
    p, correct = jnp.exp(forecast.log_density(forecast.mode)), jnp.where(y == forecast.mode, 1.0, 0.0)
    bin = jnp.clip(jnp.searchsorted(edges, p, side="right") - 1, 0, len(edges) - 2)
    here = jnp.arange(len(edges) - 1) == bin
    return jnp.where(here[:, None], jnp.stack([jnp.ones_like(p), p, correct, p**2, p * correct]), 0)


def calibration_error(P: Measure, Q: Any, bins: int | Float[Array, "bins+1"] = 15) -> Float[Array, ""]:
    """The expected calibration error, Σ_b |P(correct, b) − ∫_b confidence dP| over bins b of Q's confidence.

    Source: Naeini, Cooper & Hauskrecht (2015); Guo et al. (2017), *On calibration of modern neural networks*. It depends on the
    bins, which are to be stated beside it. Arguments and errors are those of ``reliability``.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> P = mx.Empirical((jnp.zeros((4, 2)), jnp.array([0, 0, 0, 1])))
        >>> mx.calibration_error(P, mx.Conditional(mx.Categorical)).item()  # ¾ right, ½ expected
        0.25
    """
    return reliability(P, Q, bins).error
