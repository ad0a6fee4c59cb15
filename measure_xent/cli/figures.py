"""The pictures that commands write."""

import itertools
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Float, Int

import measure_xent as mx

from .._functionals.calibration import BLUE, GREY, Reliability
from . import grid

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patheffects import withStroke

ORANGE = "#d9772b"


def digits_report(
    path: Path,
    metrics: dict[str, float],
    history: dict[str, Any],
    probabilities: Float[np.ndarray, "n V"],
    labels: Int[np.ndarray, "n"],
) -> None:
    """Loss curves, confusion matrix and calibration, side by side."""
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}):
        figure, axes = plt.subplots(1, 3, figsize=(15, 4.6), constrained_layout=True)
        loss_curves(axes[0], history["train_loss"], history["held_out_loss"])
        confusion(axes[1], probabilities.argmax(-1), labels, probabilities.shape[-1])
        calibration(axes[2], probabilities, labels)
        figure.suptitle(
            f"held out: {metrics['nats']:.4g} nats = {metrics['bits']:.4g} bits, "
            f"perplexity {metrics['perplexity']:.4g}, accuracy {metrics['accuracy']:.2%}"
        )
        figure.savefig(path, dpi=120)
        plt.close(figure)


def lm_report(path: Path, metrics: dict[str, Any], history: dict[str, Any], vocabulary: int, step_tokens: int) -> None:
    """Loss curves, and the held-out loss by how much of the text before has been seen."""
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}):
        figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), constrained_layout=True)
        loss_curves(axes[0], history["train_loss"], {int(k): v for k, v in history["held_out_loss"].items()})
        axes[0].axhline(np.log(vocabulary), color=GREY, linestyle=":", label=f"log {vocabulary}: every token alike")
        axes[0].set(yscale="linear", ylim=(None, None), xlabel=f"step of {step_tokens} tokens", ylabel="nats a token")
        axes[0].legend(frameon=False)
        nats = np.array(metrics["nats_by_place"])
        edges = [0, *(2**k for k in range((len(nats) - 1).bit_length())), len(nats)]
        octaves = [(a, b) for a, b in itertools.pairwise(edges) if a < b]
        labels = [f"{a + 1}–{b}" if a + 1 < b else f"{b}" for a, b in octaves]
        axes[1].plot(labels, [nats[a:b].mean() for a, b in octaves], "o-", color=ORANGE)
        axes[1].set(title="Held-out cross-entropy by context", xlabel="tokens seen before", ylabel="nats a token")
        figure.suptitle(
            f"held out: {metrics['nats']:.4g} nats a token = {metrics['bits_per_byte']:.4g} bits a byte, "
            f"perplexity {metrics['perplexity']:.4g}, accuracy {metrics['accuracy']:.2%}"
        )
        figure.savefig(path, dpi=120)
        plt.close(figure)


def reliability_report(
    path: Path, titles: list[str], bins: Float[np.ndarray, "models bins 6"], models: list[dict[str, Any]]
) -> None:
    """The reliability diagram of the most probable class, of each model."""
    figure, all_axes = plt.subplots(
        1, len(models), figsize=(5.2 * len(models), 4.8), squeeze=False, constrained_layout=True
    )
    for axes, title, of_model, figures in zip(all_axes[0], titles, bins, models, strict=True):
        mass, expected, correct, _, square, product = of_model.T
        edges = np.linspace(0, 1, len(mass) + 1)
        of_bins = Reliability(*map(jnp.asarray, (edges, mass, expected, correct, square, product)))
        of_bins.plot(axes, count=figures["rows"])
        low, high = figures["calibration_error_interval"]
        named = f"{title}\n" if len(models) > 1 else ""
        axes.set_title(
            f"{named}calibration error {figures['calibration_error']:.3g} ({low:.3g}–{high:.3g})", fontsize=10
        )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def bench_report(path: Path, cases: list[Any], versions: dict[str, str]) -> None:
    """Milliseconds and temporaries of each case, one below the other: optax's, ours, and the limit."""
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}):
        size = (10, 0.9 + 0.5 * len(cases))
        figure, axes = plt.subplots(1, 2, figsize=size, sharey=True, constrained_layout=True)
        rows = np.arange(len(cases))[::-1]
        for ax, what, unit in ((axes[0], "milliseconds", "ms"), (axes[1], "temporaries", "MiB of temporaries")):
            for name, color, shift in (("optax", ORANGE, 0.2), ("ours", BLUE, -0.2)):
                numbers = np.array([getattr(case, what)[name] for case in cases])
                bars = ax.barh(rows + shift, numbers, height=0.38, color=color, label=name)
                labels = [f"{n:.0f}" if n >= 100 else f"{n:.3g}" for n in numbers]
                halo = [withStroke(linewidth=3, foreground="white")]  # the limit may run behind
                ax.bar_label(bars, labels, padding=5, color=color, path_effects=halo, zorder=4)
            ax.set(
                xlabel=unit, xlim=(0, 1.12 * max(max(getattr(c, what)[n] for n in ("ours", "optax")) for c in cases))
            )
        for row, case in zip(rows, cases, strict=True):
            limit = case.milliseconds["limit"]
            label = "limit" if row == rows[0] else None
            axes[0].plot([limit, limit], [row - 0.42, row + 0.42], color="black", linewidth=1, label=label)
        axes[0].set_yticks(rows, [f"{c.operation}\n{c.shape.replace('x', ' × ')} {c.dtype}" for c in cases])
        axes[0].legend(frameon=False, loc="upper right")
        figure.suptitle(f"cross-entropy, jax {versions['jax']}, {versions['device']}", fontsize=10)
        figure.savefig(path, dpi=120)
        plt.close(figure)


def loss_curves(axes: Any, train: list[float], held_out: dict[int, float]) -> None:
    """Every batch's loss, faint; its running mean; the held-out loss."""
    steps = np.arange(1, len(train) + 1)
    window = max(1, len(train) // 50)
    axes.plot(steps, train, color=BLUE, alpha=0.3 if window > 1 else 1, linewidth=0.8, label="training, each batch")
    if window > 1:
        mean = np.convolve(train, np.ones(window) / window, "valid")
        axes.plot(steps[window - 1 :], mean, color=BLUE, label=f"training, mean of {window} batches")
    axes.plot(list(held_out), list(held_out.values()), color=ORANGE, label="held out")
    positive = [x for x in [*train, *held_out.values()] if x > 0]
    if positive:
        axes.set_yscale("log")
        axes.set_ylim(bottom=max(min(positive), 1e-4))
    axes.set(title="Cross-entropy while training", xlabel="step", ylabel="nats")
    axes.legend(frameon=False)


def grid_report(path: Path, figures: list[Any], versions: dict[str, str]) -> None:
    """Ours over optax by rows and classes, a map for each operation and dtype; blue is faster, orange slower."""
    panels = grid.panels(figures)
    shown = LinearSegmentedColormap.from_list("ratio", [BLUE, "white", ORANGE])
    with plt.rc_context({"font.size": 10}):
        size = (max(8, 5 * len(panels)), 7.5)
        figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True, constrained_layout=True)
        for ax, ((operation, dtype), panel) in zip(axes[0], panels.items(), strict=True):
            ratios = np.array(
                [[grid.ratio(panel[n, v]) if (n, v) in panel else np.nan for n in grid.ROWS] for v in grid.CLASSES]
            )
            ax.imshow(np.log2(ratios), cmap=shown, vmin=-1.5, vmax=1.5, aspect="auto")
            for (i, j), r in np.ndenumerate(ratios):
                if np.isfinite(r):
                    ax.text(j, i, f"{r:.2f}", ha="center", va="center", fontsize=9)
            ax.set(title=f"{operation}, {dtype}", xlabel="rows")
            ax.set_xticks(range(len(grid.ROWS)), grid.ROWS)
            ax.set_yticks(range(len(grid.CLASSES)), grid.CLASSES)
        axes[0, 0].set_ylabel("classes")
        figure.suptitle(
            "Time of ours / optax: under 1 is faster\n" + ", ".join(f"{k} {v}" for k, v in versions.items())
        )
        figure.savefig(path, dpi=120)
        plt.close(figure)


def confusion(axes: Any, predicted: Int[np.ndarray, "n"], labels: Int[np.ndarray, "n"], classes: int) -> None:
    """Counts of (label, prediction); colour is each label's share on a square-root scale, so that rare errors show."""
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, predicted), 1)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)
    for i, j in zip(*counts.nonzero(), strict=True):
        axes.text(
            j, i, counts[i, j], ha="center", va="center", fontsize=8, color="white" if share[i, j] > 0.4 else "black"
        )
    axes.set(title="Confusion: label by prediction", xlabel="predicted", ylabel="label")
    axes.set_xticks(range(classes))
    axes.set_yticks(range(classes))


def calibration(axes: Any, probabilities: Float[np.ndarray, "n V"], labels: Int[np.ndarray, "n"]) -> None:
    """Reliability of the probability given to the predicted class."""
    P, Q = mx.Empirical((probabilities, labels)), mx.Conditional(lambda p: mx.Categorical(probs=p))
    mx.reliability(P, Q, bins=10).plot(axes, count=len(labels))
    axes.set_title("Calibration of the prediction")
