"""Methods of quadrature, iterated in more than one dimension."""

import abc
import math

import jax
import jax.numpy as jnp
from jax import lax

from .._forms.law_form import LawForm
from .._integrands.composites import Last, Pullback
from .._integrands.integral import Integral
from .._integrands.integrand import Integrand, density_terms
from .._integrands.rules import rule
from .._kernels.null import null_safe_product
from .._kernels.tanh_sinh import END
from .._measures.laws import Continuous, Integers, Law, Vectors
from .._measures.nested import Nested, count
from .._program import program
from .._pytree import pytree, static
from .adaptive import Panels, over_the_line
from .integers import over_the_integers
from .iterated import Inner, iterated
from .leaves import flattened, with_convergence
from .method import Method
from .mixtures import NODES, Mixture


class Deterministic(Method):
    """Iterated integrals over the line; a subclass gives the one."""

    dimensions = math.inf  # how many it takes

    def integrate(self, form, f):
        return form.times_c(self.over(form.law, form.of_law(f)), f)

    def over(self, law: Law, f: Integrand) -> Integral:
        """∫ f against a law."""
        if (
            isinstance(law, Nested | Mixture | Vectors)
            and (n := count(LawForm(law, jnp.ones(()))).laws) > self.dimensions
        ):
            raise ValueError(
                f"expect(f): {type(law).__name__} has {n} dimensions, and quadrature without a method is for up to "
                f"{self.dimensions}; pass method=QuasiMonteCarlo(key, n), MonteCarlo(key, n), or Quadrature(nodes) for "
                "nodes**dimensions nodes"
            )
        if isinstance(law, Mixture) and density_terms(f) < NODES:
            law, f = law.nested, Pullback(f, Last())
        if isinstance(law, Nested):
            return iterated(law.outer.using(self).integrate(Inner(f, law.K, self)))
        if isinstance(law, Vectors):
            return law.base.using(self).integrate(f)
        if isinstance(law, Integers):
            return over_the_integers(law, f, None)
        if not isinstance(law, Continuous):
            name = type(getattr(law, "distribution", law)).__name__
            raise ValueError(f"expect(f): no quadrature is known for vectors of {name}; pass method=MonteCarlo(key, n)")
        return self.line(law, f)

    @abc.abstractmethod
    def line(self, law: Continuous, f: Integrand) -> Integral:
        """∫ f(x) p(x) dx."""


@pytree
class Adaptive(Deterministic):
    """Adaptive quadrature on a doubly exponential scale (tanh–sinh), iterated in up to two dimensions: what ``expect`` does
    without a method, where there is no closed form.

    Args:
        tolerance: the error to stop at, beside the integral of |f|; by default the root of the dtype's precision.
        rounds: how often to halve the panels that are furthest off; by default 24, and 40 in float64.

    Source: Piessens et al. 1983, *QUADPACK*; Clenshaw & Curtis 1960; Takahasi & Mori 1974.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.Normal(0., 1.).expect(jnp.abs, method=mx.Adaptive(tolerance=1e-5)).item()  # √(2/π)
        0.79788
    """

    dimensions = 2

    tolerance: float | None = static(default=None)
    rounds: int | None = static(default=None)

    def line(self, law, f):
        return over_the_line(law, f, self.tolerance, self.rounds)


@rule(Law, Integrand)
def without_a_method(P: Law, f: Integrand) -> Integral:
    """∫ f dP by adaptive quadrature."""
    return _compiled(P, f)


# One program also where nobody compiles: one for each of its operations would take longer than the integral.
_compiled = program(lambda P, f: jax.jit(lambda P, f: Adaptive().over(P, f))(P, f))


@pytree
class Quadrature(Deterministic):
    """A fixed number of nodes in each dimension: Gauss's rule for the law where it has one, else tanh–sinh on its support.

    Its error is what the integrand's expansion in the rule's polynomials has left at its end, or the gap to half the nodes.
    Integers are summed.

    Args:
        nodes: how many, at least 8.

    Source: Golub & Welsch 1969; Takahasi & Mori 1974.

    Examples:
        >>> import jax.numpy as jnp, measure_xent as mx
        >>> mx.Normal(0., jnp.array([1., 2.])).expect(jnp.cos, method=mx.Quadrature(32)).tolist()  # exp(−σ²/2)
        [0.60653, 0.13534]
    """

    nodes: int = static()

    def __post_init__(self):
        if not isinstance(self.nodes, int) or self.nodes < 8:
            raise ValueError(f"Quadrature(nodes): an int of at least 8, got {self.nodes!r}")

    def line(self, law, f):
        rank = max(len(law.shape), len(f.shape))
        each = law.with_family_rank(rank).with_point_axis()
        rule = each.gauss(self.nodes)
        if rule is None:
            return self._tanh_sinh(law, f)
        x, w, tail = rule
        flat, w, back = flattened(f.values(x, rank + 1), w)
        # A product that need not look for weights of 0 becomes one pass with its sum.
        terms = w * flat if law.parameter_free_nodes else null_safe_product(w, flat)
        known = lax.stop_gradient(jnp.where(jnp.isfinite(flat), flat, 0))
        left = jnp.einsum("...ln,...kn->...lk", known, tail.astype(known.dtype))
        return with_convergence(
            terms.sum(-1), jnp.linalg.norm(left, axis=-1), jnp.abs(w * known).sum(-1), back, f, None, False
        )

    def _tanh_sinh(self, law, f):
        line, n = Panels(law, f), self.nodes + 1 - self.nodes % 2
        t = line.spread(jnp.linspace(-END, END, n))
        nodes = line.nodes(t, 2 * END / (n - 1))
        tails = lax.stop_gradient(line.learn(line.look(line.watched, line.unknown(), as_is=line.watched.u.shape[-1])))
        look, terms, beside = (
            jax.tree.map(lambda x: lax.stop_gradient(x[..., :n]), x) for x in line.terms(nodes, tails, n)
        )
        terms, value = terms[..., :-1, :], terms[..., :-1, :].sum(-1)
        value = line.derived(value, nodes, tails, look.used)
        known = jnp.where(jnp.isfinite(terms), terms, 0)
        gap = jnp.abs(known.sum(-1) - 2 * known[..., ::2].sum(-1)) + beside.sum(-1)
        return with_convergence(value, gap, jnp.abs(known).sum(-1), line.back, f, None, False)
