"""Cross-entropy, done right: a distribution is a measure, and ``-P.expect(log(Q))`` is the fast loss.

    cross_entropy(P, Q) = -P.expect(log(Q))

Measures     Dirac, Categorical, Bernoulli, Discrete, DiscreteUniform, Counting, Atoms, Empirical
Laws         Normal, Laplace, StudentT, Cauchy, Uniform, Exponential, Gamma, Beta, LogNormal, Lebesgue, truncate,
             Poisson, Geometric, Binomial, MultivariateNormal, Dirichlet, independent, from_distribution
Algebra      c * P, P + Q, P - Q, f * P, P / Q, reweight, restrict, normalize, product, power, joint, bind,
             marginal, pushforward
Conditionals Conditional, LinearSoftmax, LinearNormal, posterior, compose
Integrands   log, log2, log_partition, confidence, correct, P / Q, any callable; dicts and tuples of them
Functionals  cross_entropy, entropy (of a Conditional, an integrand), kl_divergence
Integrals    P.expect(f), P.integrate(f), Integral; by a method: Adaptive, Quadrature, MonteCarlo, QuasiMonteCarlo
Extension    Measure, AbstractConditional, Integrand, Method, LogDensity, RadonNikodym, NormalForm, rule, pytree, static
"""

from importlib.metadata import version as _version

from . import _integrate as _integrate
from ._conditional import AbstractConditional, Conditional
from ._density import LogDensity, RadonNikodym, confidence, correct, log, log2, log_partition
from ._dispatch import rule
from ._information import cross_entropy, entropy, kl_divergence
from ._integral import Integral
from ._integrand import Integrand
from ._integrate.methods import Adaptive, Method, MonteCarlo, Quadrature, QuasiMonteCarlo
from ._joint import bind, compose, joint, marginal, posterior, product
from ._linear import LinearSoftmax
from ._linear_normal import LinearNormal
from ._measure import Measure, pushforward
from ._measures.atoms import Atoms, Empirical
from ._measures.counts import Binomial, Geometric, Poisson
from ._measures.external import from_distribution
from ._measures.finite import Bernoulli, Categorical, Counting, Dirac, Discrete, DiscreteUniform
from ._measures.line import (
    Beta,
    Cauchy,
    Exponential,
    Gamma,
    Laplace,
    Lebesgue,
    LogNormal,
    Normal,
    StudentT,
    Uniform,
    truncate,
)
from ._measures.vectors import Dirichlet, MultivariateNormal, independent, power
from ._normal_form import NormalForm
from ._pytree import pytree, static

__version__ = _version("measure-xent")

__all__ = [
    "AbstractConditional",
    "Adaptive",
    "Atoms",
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "Cauchy",
    "Conditional",
    "Counting",
    "Dirac",
    "Dirichlet",
    "Discrete",
    "DiscreteUniform",
    "Empirical",
    "Exponential",
    "Gamma",
    "Geometric",
    "Integral",
    "Integrand",
    "Laplace",
    "Lebesgue",
    "LinearNormal",
    "LinearSoftmax",
    "LogDensity",
    "LogNormal",
    "Measure",
    "Method",
    "MonteCarlo",
    "MultivariateNormal",
    "Normal",
    "NormalForm",
    "Poisson",
    "Quadrature",
    "QuasiMonteCarlo",
    "RadonNikodym",
    "StudentT",
    "Uniform",
    "bind",
    "compose",
    "confidence",
    "correct",
    "cross_entropy",
    "entropy",
    "from_distribution",
    "independent",
    "joint",
    "kl_divergence",
    "log",
    "log2",
    "log_partition",
    "marginal",
    "posterior",
    "power",
    "product",
    "pushforward",
    "pytree",
    "rule",
    "static",
    "truncate",
]
