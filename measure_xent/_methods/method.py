"""How to integrate, as an object: ``P.expect(f, method=…)``. Atoms are summed whatever the method; it is for what has a law.

Without one, closed forms come first, then ``Adaptive()`` in up to two dimensions.
"""

import abc

from .._forms.law_form import LawForm
from .._integrands.integral import Integral
from .._integrands.integrand import Integrand


class Method(abc.ABC):
    """How to integrate against what has a law. A subclass gives ``integrate``."""

    @abc.abstractmethod
    def integrate(self, form: LawForm, f: Integrand) -> Integral:
        """∫ f against T_*(c · Πf · law)."""
