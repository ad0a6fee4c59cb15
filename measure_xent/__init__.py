"""Cross-entropy, done right: a distribution is a measure, and ``-P.expect(log(Q))`` is the fast loss.

    cross_entropy(P, Q) = -P.expect(log(Q))

Measures     Dirac, Categorical, Bernoulli, Discrete, DiscreteUniform, Counting, Atoms, Empirical
Algebra      c * P, P + Q, P - Q, f * P, P / Q, reweight, restrict, normalize, product, joint, bind, pushforward
Conditionals Conditional, LinearSoftmax
Integrands   log, log2, log_partition, confidence, correct, P / Q, any callable; dicts and tuples of them
Functionals  cross_entropy, entropy (of a Conditional, an integrand), kl_divergence
Integrals    P.expect(f), P.integrate(f), Integral
Extension    Measure, AbstractConditional, Integrand, LogDensity, RadonNikodym, NormalForm, rule, pytree, static
"""

from importlib.metadata import version as _version

from . import _integrate as _integrate
from ._conditional import AbstractConditional, Conditional
from ._density import LogDensity, RadonNikodym, confidence, correct, log, log2, log_partition
from ._dispatch import rule
from ._information import cross_entropy, entropy, kl_divergence
from ._integral import Integral
from ._integrand import Integrand
from ._joint import bind, joint, product
from ._linear import LinearSoftmax
from ._measure import Measure, pushforward
from ._measures.atoms import Atoms, Empirical
from ._measures.families import (
    Beta,
    Cauchy,
    Exponential,
    Gamma,
    Geometric,
    Laplace,
    LogNormal,
    Normal,
    Poisson,
    StudentT,
    Uniform,
)
from ._measures.finite import Bernoulli, Categorical, Counting, Dirac, Discrete, DiscreteUniform
from ._normal_form import NormalForm
from ._pytree import pytree, static

__version__ = _version("measure-xent")

__all__ = [
    "AbstractConditional",
    "Atoms",
    "Bernoulli",
    "Beta",
    "Categorical",
    "Cauchy",
    "Conditional",
    "Counting",
    "Dirac",
    "Discrete",
    "DiscreteUniform",
    "Empirical",
    "Exponential",
    "Gamma",
    "Geometric",
    "Integral",
    "Integrand",
    "Laplace",
    "LinearSoftmax",
    "LogDensity",
    "LogNormal",
    "Measure",
    "Normal",
    "NormalForm",
    "Poisson",
    "RadonNikodym",
    "StudentT",
    "Uniform",
    "bind",
    "confidence",
    "correct",
    "cross_entropy",
    "entropy",
    "joint",
    "kl_divergence",
    "log",
    "log2",
    "log_partition",
    "product",
    "pushforward",
    "pytree",
    "rule",
    "static",
]
