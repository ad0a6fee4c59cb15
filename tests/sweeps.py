"""Tests over many cases that are alike."""

import pytest


def sweep(names, values, **options):
    """As ``pytest.mark.parametrize``, of which as many cases are run as ``--examples`` says."""
    return lambda test: pytest.mark.sweep(pytest.mark.parametrize(names, values, **options)(test))
