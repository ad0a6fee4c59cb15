"""How an integral is computed: the rules that hold for every measure, and methods as objects. Knows measures."""

from . import exact as exact
from . import importance as importance
from . import quadrature as quadrature
from . import sampling as sampling
