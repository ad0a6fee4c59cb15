"""How an integral is computed: the rules that hold for every measure, and methods as objects."""

from . import exact as exact
from . import methods as methods
