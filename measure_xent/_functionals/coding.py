"""Coding: a cross-entropy in bits is a number of bits, and with the ``constriction`` package they are written."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Int, Shaped, UInt32

from .._conditionals.conditional import AbstractConditional
from .._forms.normal_form import NormalForm
from .._measures.categorical import Categorical
from .._measures.laws import Integers, Line
from .._measures.measure import Measure
from .likelihood import log_likelihood


def code_length(Q: Measure | AbstractConditional, data: Any, *, base: float = 2) -> Float[Array, "*family"]:
    """−Σ log q(xᵢ), how many bits (or digits of ``base``) an ideal coder made for Q takes for the data.

    It is n · H(P̂, Q), and ``encode`` comes within its own small overhead of it. Source: Cover & Thomas, §5.4. Arguments are
    those of ``log_likelihood``.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.code_length(mx.DiscreteUniform(8), jnp.array([0, 7, 3])).item()
        9.0
    """
    return -log_likelihood(Q, data, base=base)


def quantize(Q: Measure, edges: Float[ArrayLike, "n"]) -> Measure:
    """The law of ``jnp.digitize(x, edges)``, x from Q: n + 1 classes, those below the first edge and above the last among them.

    Args:
        Q: a measure of numbers.
        edges: rising numbers.

    Raises:
        ValueError: the edges do not rise.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.quantize(mx.Normal(0., 1.), jnp.array([-1., 0., 1.])).probs.tolist()
        [0.1587, 0.3413, 0.3413, 0.1587]
    """
    if np.ndim(edges) != 1 or not len(np.asarray(edges)) or not np.all(np.diff(np.asarray(edges)) > 0):
        raise ValueError(f"quantize(edges): a vector of rising numbers, got {edges}")
    edges = jnp.asarray(edges, float)
    if not isinstance(Q, Line):
        return Categorical(probs=Q.expect(Partial(_bin, edges)))
    law = Q.with_point_axis()
    below = jnp.ceil(edges) - 1 if isinstance(Q, Integers) else edges  # P(X < e)
    lower, upper = law.cdf(below), law.survival(below)
    # Each tail from its own end, where its masses have all their digits.
    inner = jnp.where(upper[..., :-1] < 0.5, upper[..., :-1] - upper[..., 1:], lower[..., 1:] - lower[..., :-1])
    return Categorical(probs=jnp.concatenate([lower[..., :1], inner, upper[..., -1:]], axis=-1))


def _bin(edges, x):
    return 1.0 * (jnp.digitize(x, edges) == jnp.arange(len(edges) + 1))


Model = Measure | Callable[[Int[np.ndarray, "i"]], Measure]


def encode(Q: Model, symbols: Int[ArrayLike, "n"]) -> UInt32[np.ndarray, "words"]:
    """The symbols as a range coder made for Q writes them, in words of 32 bits.

    The coder rounds probabilities to multiples of 2⁻²⁴ and ends on a whole word: the length is within 64 bits and about
    n · V · 2⁻²⁴ nats, for probabilities not much smaller than that, of ``code_length(Q, symbols)``. Source: Martin (1979),
    *Range encoding*; Bamler (2022), *constriction*. Needs the ``coding`` extra.

    Args:
        Q: a measure on classes, for all symbols; a family [n], one a symbol; or a function of the symbols before, into one.
        symbols: class labels.

    Raises:
        ValueError: Q gives a symbol no mass, or is not on classes.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> Q, x = mx.Categorical(probs=jnp.array([0.9, 0.05, 0.05])), jnp.array([0, 0, 1, 0, 0, 0, 2, 0] * 50)
        >>> words = mx.encode(Q, x)
        >>> 32 * len(words), round(mx.code_length(Q, x).item(), 1)
        (480, 477.8)
        >>> (mx.decode(Q, words, 400) == x).all().item()
        True
    """
    symbols = np.asarray(symbols)
    if symbols.ndim != 1 or not np.issubdtype(symbols.dtype, np.integer):
        raise ValueError(f"encode(symbols): a vector of class labels, got shape {symbols.shape} of {symbols.dtype}")
    if len(symbols) and not 0 <= symbols.min() <= symbols.max() < 2**31:
        raise ValueError(f"encode(symbols): class labels from 0, got numbers from {symbols.min()} to {symbols.max()}")
    symbols = symbols.astype(np.int32)
    coder = _stream().queue.RangeEncoder()
    if not isinstance(Q, Measure):
        for i in range(len(symbols)):
            probs = _probabilities(Q(symbols[:i]), ())
            _check_mass(probs[None], symbols[i : i + 1], i)
            coder.encode(int(symbols[i]), _model(probs))
    else:
        probs = _probabilities(Q, (len(symbols),))
        _check_mass(np.broadcast_to(probs, (len(symbols), probs.shape[-1])), symbols, 0)
        coder.encode(symbols, _model(probs)) if probs.ndim == 1 else coder.encode(symbols, _model(), probs)
    return coder.get_compressed()


def decode(Q: Model, words: UInt32[np.ndarray, "words"], n: int) -> Int[np.ndarray, "n"]:
    """The n symbols that ``encode`` wrote with the same Q; errors and an example are there.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> walk = lambda before: mx.Categorical(jnp.where(jnp.arange(4) == before[-1:].sum(), 3., 0.))
        >>> mx.decode(walk, mx.encode(walk, jnp.array([0, 0, 1, 1, 1, 3])), 6).tolist()
        [0, 0, 1, 1, 1, 3]
    """
    coder = _stream().queue.RangeDecoder(np.asarray(words, np.uint32))
    if isinstance(Q, Measure):
        probs = _probabilities(Q, (n,))
        return coder.decode(_model(probs), n) if probs.ndim == 1 else coder.decode(_model(), probs)
    symbols = np.zeros(n, np.int32)
    for i in range(n):
        symbols[i] = coder.decode(_model(_probabilities(Q(symbols[:i]), ())))
    return symbols


def _model(*probabilities: Any) -> Any:
    return _stream().model.Categorical(*probabilities, perfect=False)


def _stream() -> Any:
    import constriction

    return constriction.stream  # type: ignore[attr-defined]


def _probabilities(Q: Measure, family: tuple[int, ...]) -> Float[np.ndarray, "*family V"]:
    forms = Q.forms()
    if (
        len(forms) != 1
        or not isinstance(forms[0], NormalForm)
        or forms[0].classes is None
        or forms[0].weights is not None
    ):
        raise ValueError(
            f"encode(Q): a measure on classes, got {type(Q).__name__}; see quantize, and project to Categorical"
        )
    if Q.shape not in ((), family):
        raise ValueError(f"encode(Q): one measure or a family of shape {family}, one a symbol, got {Q.shape}")
    return np.ascontiguousarray(np.asarray(forms[0].class_weights(), np.float64))


def _check_mass(probs: Shaped[np.ndarray, "n V"], symbols: Shaped[np.ndarray, "n"], first: int) -> None:
    V = probs.shape[-1]
    inside = (symbols >= 0) & (symbols < V)
    mass = np.where(inside, probs[np.arange(len(symbols)), np.clip(symbols, 0, V - 1)], 0)
    if not np.all(mass > 0):
        i = int(np.argmin(mass > 0))
        raise ValueError(
            f"encode(symbols): Q gives symbol {symbols[i]} at {first + i} no mass, its code would have no end"
        )
