"""How an integral is computed: the rules that hold for every measure."""

from . import exact as exact
from . import quadrature as quadrature
