"""Integrals of log q against p of two laws of vectors."""

from typing import Any

import jax.numpy as jnp

from .._integrands.density import LogDensity
from .._integrands.integral import Integral
from .._integrands.rules import integrate, rule
from .dirichlet import Dirichlet
from .laws import Vectors
from .multivariate_normal import gaussian
from .vectors import Independent


def one_space(P: Any, Q: Any) -> None:
    """Refuses vectors of different lengths or kinds."""
    if isinstance(P, Dirichlet) != isinstance(Q, Dirichlet):
        raise ValueError(f"P is a measure on {_space(P)}, Q on {_space(Q)}")
    if (p := _length(P)) != (q := _length(Q)):
        raise ValueError(f"P is a measure of vectors of length {p}, Q of length {q}")


@rule(Vectors, LogDensity, Vectors)
def pairing(P: Any, f: LogDensity) -> Any:
    """∫ log q dP from P's moments, coordinate by coordinate where both have independent ones."""
    Q: Any = f.Q
    one_space(P, Q)
    if isinstance(P, Independent) and isinstance(Q, Independent):
        total = integrate(P.P, LogDensity(Q.P))
        add: Any = lambda x: (
            x if isinstance(x, float | int) else jnp.sum(jnp.broadcast_to(x, total.value.shape), axis=-1)
        )
        return Integral(add(total.value), add(total.error), add(total.status))
    p, q = gaussian(P), gaussian(Q)
    if p is not None and q is not None:
        return integrate(p, q.affine)
    return NotImplemented if Q.affine is None or type(P) is not type(Q) else integrate(P, Q.affine)


def _space(P: Any) -> str:
    return "probability vectors" if isinstance(P, Dirichlet) else "all vectors"


def _length(P: Any) -> int:
    return P.dimension + isinstance(P, Dirichlet)
