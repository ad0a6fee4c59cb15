"""``measure-xent bench touch``: what a first call costs and the next ones, outside of ``jit``, and what a step compiles in."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import measure_xent as mx


class Touch(NamedTuple):
    """Milliseconds of the first call and of the median of those after it, ours and of what a peer needs for the same."""

    call: str
    first: float
    again: float
    peer: str
    peer_first: float
    peer_again: float


def calls(repeats: int) -> list[Touch]:
    """Calls outside of ``jit``."""
    return [_touch(name, ours, peer, theirs, repeats) for name, ours, peer, theirs in _calls()]


def steps() -> list[Touch]:
    """Tracing, lowering and compiling a loss with its gradients: without what JAX and XLA keep, and once more."""
    return [
        Touch(f"compile {name}", *_compile(ours, operands), "optax", *_compile(theirs, operands))
        for name, ours, theirs, operands in _steps()
    ]


def _touch(name: str, ours: Callable, peer: str, theirs: Callable, repeats: int) -> Touch:
    return Touch(name, *_time(ours, repeats), peer, *_time(theirs, repeats))


def _time(call: Callable[[], Any], repeats: int, anew: bool = False) -> tuple[float, float]:
    """Milliseconds of the first call and of the next ones, or ``anew`` of each as the first."""
    jax.clear_caches()
    times = []
    for _ in range(repeats + 1):
        if anew:
            jax.clear_caches()
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(1e3 * (time.perf_counter() - start))
    return times[0], statistics.median(times[1:])


def _compile(f: Callable, operands: tuple) -> tuple[float, float]:
    gradients = jax.value_and_grad(f, tuple(range(len(operands))))

    def compiled():
        jax.jit(gradients).lower(*operands).compile()
        return ()

    return _time(compiled, 6, anew=True)


def _calls() -> list[tuple[str, Callable, str, Callable]]:
    keys = jax.random.split(jax.random.key(0), 4)
    found: list[tuple[str, Callable, str, Callable]] = []
    for n, classes in ((128, 10), (1000, 2000)):
        z, y = jax.random.normal(keys[0], (n, classes)), jax.random.randint(keys[1], (n,), 0, classes)
        ours = lambda z=z, y=y: mx.cross_entropy(mx.Dirac(y), mx.Categorical(z))
        theirs = lambda z=z, y=y: optax.losses.softmax_cross_entropy_with_integer_labels(z, y)
        found.append((f"cross_entropy [{n}, {classes}]", ours, "optax", theirs))
    name, head, plain, operands = _steps()[0]
    both = lambda f: jax.value_and_grad(f, (0, 1))(*operands)
    found.append((f"{name}", lambda: head(*operands), "optax", lambda: plain(*operands)))
    found.append((f"{name}, gradients", lambda: both(head), "optax", lambda: both(plain)))
    P, cos = mx.Normal(), jax.jit(jnp.cos)
    found.append(("expect of a new lambda", lambda: P.expect(lambda x: jnp.cos(x)), "a jitted cos", lambda: cos(1.0)))
    a, b = (jax.random.normal(key, (64, 3000)) for key in keys[2:])
    ours = lambda: mx.jensen_shannon(mx.Categorical(a), mx.Categorical(b))
    found.append(("jensen_shannon [64, 3000]", ours, "by hand", lambda: _jensen_shannon(a, b)))
    mixture = lambda: mx.entropy(0.5 * mx.Normal() + 0.5 * mx.Normal(jnp.array(2.0)))
    found.append(("entropy of a mixture", mixture, "a jitted cos", lambda: cos(1.0)))
    return found


def _steps() -> list[tuple[str, Callable, Callable, tuple]]:
    """(name, ours, optax's, what both are functions of), the mean losses."""
    keys = jax.random.split(jax.random.key(0), 3)
    h, w = jax.random.normal(keys[0], (64, 16)), jax.random.normal(keys[1], (16, 100))
    y, plain = jax.random.randint(keys[2], (64,), 0, 100), optax.losses.softmax_cross_entropy_with_integer_labels
    head = lambda h, w: -mx.Empirical((h, y)).normalize().expect(mx.log(mx.LinearSoftmax(w)))
    rows = lambda z: mx.cross_entropy(mx.Dirac(y), mx.Categorical(z)).mean()
    return [
        ("head [64, 16, 100]", head, lambda h, w: plain(h @ w, y).mean(), (h, w)),
        ("rows [64, 100]", rows, lambda z: plain(z, y).mean(), (h @ w,)),
    ]


def _jensen_shannon(a, b):
    p, q = jax.nn.softmax(a), jax.nn.softmax(b)
    m = jnp.log((p + q) / 2)
    return jnp.sum(p * (jnp.log(p) - m) + q * (jnp.log(q) - m), axis=-1) / 2
