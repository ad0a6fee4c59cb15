"""Cross-entropy, done right: a distribution is a measure, and ``-P.expect(log(Q))`` is the fast loss.

    cross_entropy(P, Q) = -P.expect(log(Q))

Measures     Dirac, Categorical, Bernoulli, Discrete, DiscreteUniform, Counting, Atoms, Empirical,
             table
Laws         Normal, Laplace, StudentT, Cauchy, Gumbel, Uniform, Exponential, Gamma, Beta, LogNormal, HalfNormal,
             InverseGamma, Weibull, Pareto, VonMises, Lebesgue, truncate, Poisson, Geometric, Binomial,
             NegativeBinomial, Hypergeometric, Multinomial, MultivariateNormal, Dirichlet, independent, from_distribution
Algebra      c * P, P + Q, P - Q, f * P, P / Q, reweight, restrict, normalize, product, power, joint, bind,
             marginal, pushforward, top_k, top_p
Conditionals Conditional, LinearSoftmax, LinearNormal, posterior, compose
Integrands   log, log2, log_partition, confidence, correct, P / Q, any callable; dicts and tuples of them
Functionals  entropy (of a Conditional, an integrand), cross_entropy, kl_divergence, perplexity; of joint measures
             mutual_information, conditional_entropy, conditional_mutual_information, total_correlation,
             interaction_information, pointwise_mutual_information
Divergences  f_divergence (by ``generators``), total_variation, hellinger, chi2, jeffreys, jensen_shannon,
             renyi_divergence, renyi_entropy, tsallis_divergence, tsallis_entropy, cumulant, supremum
Distances    wasserstein, energy_distance, maximum_mean_discrepancy
Likelihood   log_likelihood, project, information_projection, score, fisher_information, fisher_vector_product,
             gauss_newton, natural_gradient
Scores       brier, spherical, crps; entmax, sparsemax, fenchel_young_loss; reliability, calibration_error
Codes        code_length, quantize, encode, decode
Integrals    P.expect(f), P.integrate(f), Integral; by a method: Adaptive, Quadrature, MonteCarlo, QuasiMonteCarlo,
             ImportanceSampling
Training     value_and_grad of an Integral, accumulate; ``losses``: optax's and torch's by their names
Pictures     plot; a measure shows itself in Jupyter
Extension    Measure, Continuous, Integers, AbstractConditional, Integrand, Method, LogDensity, RadonNikodym, NormalForm, rule,
             pytree, static; ``testing.check_measure``
"""

import sys as _sys
from importlib.metadata import version as _version

from . import _methods as _methods
from . import _strict, generators, losses
from ._accumulation import accumulate, value_and_grad
from ._conditionals.bayes import compose, posterior
from ._conditionals.bind import bind
from ._conditionals.conditional import AbstractConditional, Conditional
from ._conditionals.joint import joint
from ._conditionals.linear_normal import LinearNormal
from ._conditionals.linear_softmax import LinearSoftmax
from ._conditionals.marginal import marginal
from ._display import plot
from ._forms.normal_form import NormalForm
from ._functionals.calibration import Reliability, calibration_error, reliability
from ._functionals.coding import code_length, decode, encode, quantize
from ._functionals.distances import energy_distance, maximum_mean_discrepancy, wasserstein
from ._functionals.divergences import (
    chi2,
    cumulant,
    f_divergence,
    hellinger,
    jeffreys,
    jensen_shannon,
    renyi_divergence,
    renyi_entropy,
    supremum,
    total_variation,
    tsallis_divergence,
    tsallis_entropy,
)
from ._functionals.information import (
    conditional_entropy,
    conditional_mutual_information,
    cross_entropy,
    entropy,
    interaction_information,
    kl_divergence,
    mutual_information,
    perplexity,
    pointwise_mutual_information,
    total_correlation,
)
from ._functionals.likelihood import (
    fisher_information,
    fisher_vector_product,
    gauss_newton,
    information_projection,
    log_likelihood,
    natural_gradient,
    project,
    score,
)
from ._functionals.scoring import brier, crps, entmax, fenchel_young_loss, sparsemax, spherical
from ._functionals.truncation import top_k, top_p
from ._integrands.density import LogDensity, RadonNikodym, confidence, correct, log, log2, log_partition
from ._integrands.integral import Integral
from ._integrands.integrand import Integrand
from ._integrands.rules import rule
from ._measures.atoms import Atoms, Empirical
from ._measures.categorical import Bernoulli, Categorical
from ._measures.circle import VonMises
from ._measures.counts import Binomial, Geometric, Hypergeometric, NegativeBinomial, Poisson
from ._measures.dirichlet import Dirichlet
from ._measures.discrete import Counting, Dirac, Discrete, DiscreteUniform
from ._measures.external import from_distribution
from ._measures.extremes import Gumbel, Pareto, Weibull
from ._measures.intervals import Lebesgue, Uniform, truncate
from ._measures.laws import Continuous, Integers
from ._measures.line import Cauchy, Laplace, Normal, StudentT
from ._measures.measure import Measure
from ._measures.multinomial import Multinomial
from ._measures.multivariate_normal import MultivariateNormal
from ._measures.positive import Beta, Exponential, Gamma, HalfNormal, InverseGamma, LogNormal
from ._measures.product import power, product
from ._measures.pushforward import pushforward
from ._measures.table import table
from ._measures.vectors import independent
from ._methods.importance import ImportanceSampling
from ._methods.method import Method
from ._methods.quadrature import Adaptive, Quadrature
from ._methods.sampling import MonteCarlo, QuasiMonteCarlo
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
    "Continuous",
    "Counting",
    "Dirac",
    "Dirichlet",
    "Discrete",
    "DiscreteUniform",
    "Empirical",
    "Exponential",
    "Gamma",
    "Geometric",
    "Gumbel",
    "HalfNormal",
    "Hypergeometric",
    "ImportanceSampling",
    "Integers",
    "Integral",
    "Integrand",
    "InverseGamma",
    "Laplace",
    "Lebesgue",
    "LinearNormal",
    "LinearSoftmax",
    "LogDensity",
    "LogNormal",
    "Measure",
    "Method",
    "MonteCarlo",
    "Multinomial",
    "MultivariateNormal",
    "NegativeBinomial",
    "Normal",
    "NormalForm",
    "Pareto",
    "Poisson",
    "Quadrature",
    "QuasiMonteCarlo",
    "RadonNikodym",
    "Reliability",
    "StudentT",
    "Uniform",
    "VonMises",
    "Weibull",
    "accumulate",
    "bind",
    "brier",
    "calibration_error",
    "chi2",
    "code_length",
    "compose",
    "conditional_entropy",
    "conditional_mutual_information",
    "confidence",
    "correct",
    "cross_entropy",
    "crps",
    "cumulant",
    "decode",
    "encode",
    "energy_distance",
    "entmax",
    "entropy",
    "f_divergence",
    "fenchel_young_loss",
    "fisher_information",
    "fisher_vector_product",
    "from_distribution",
    "gauss_newton",
    "generators",
    "hellinger",
    "independent",
    "information_projection",
    "interaction_information",
    "jeffreys",
    "jensen_shannon",
    "joint",
    "kl_divergence",
    "log",
    "log2",
    "log_likelihood",
    "log_partition",
    "losses",
    "marginal",
    "maximum_mean_discrepancy",
    "mutual_information",
    "natural_gradient",
    "perplexity",
    "plot",
    "pointwise_mutual_information",
    "posterior",
    "power",
    "product",
    "project",
    "pushforward",
    "pytree",
    "quantize",
    "reliability",
    "renyi_divergence",
    "renyi_entropy",
    "rule",
    "score",
    "sparsemax",
    "spherical",
    "static",
    "supremum",
    "table",
    "top_k",
    "top_p",
    "total_correlation",
    "total_variation",
    "truncate",
    "tsallis_divergence",
    "tsallis_entropy",
    "value_and_grad",
    "wasserstein",
]

_strict.settle(_sys.modules[__name__], __all__)
_strict.settle(losses, losses.__all__)
