"""Tests over many cases that are alike."""

import pytest


def sweep(names, values, cost=1.0, **options):
    """As ``pytest.mark.parametrize``, of which as many cases are run as ``--examples`` says over the cost of one."""
    return lambda test: pytest.mark.sweep(cost)(pytest.mark.parametrize(names, values, **options)(test))
