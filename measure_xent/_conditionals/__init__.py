"""Measures that depend on a point, and what is made of them: joints, mixtures, posteriors; heads. Knows methods."""

from . import calls as calls
from . import heads as heads
