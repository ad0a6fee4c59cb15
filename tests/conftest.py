"""Property tests have a fixed, small budget; ``pytest --examples 200`` gives them a larger one.

So has a sweep, a test over many cases that are alike, such as all measures: it runs some of them, each sweep others.
"""

import collections
import os
import resource
import sys
import zlib

import hypothesis
import jax
import pytest

COMPILE_MUCH = {
    "test_accumulation",
    "test_by_products",
    "test_contract",
    "test_ctc",
    "test_divergences",
    "test_edges",
    "test_singular_ends",
    "test_ends",
    "test_external",
    "test_families",
    "test_information",
    "test_integrals",
    "test_laws",
    "test_laws_of_spaces",
    "test_likelihood",
    "test_losses",
    "test_members",
    "test_methods",
    "test_null_rows",
    "test_null_weights",
    "test_parts",
    "test_near_equality",
    "test_scores_and_codes",
    "test_sharding",
    "test_strict",
    "test_transforms",
    "test_vectors",
}


def pytest_addoption(parser):
    parser.addoption(
        "--examples", type=int, default=3, help="examples a property test draws, cases a sweep runs (default 3)"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "sweep: a test whose cases are alike")
    hypothesis.settings.register_profile(
        "budget",
        max_examples=config.getoption("--examples"),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.settings.load_profile("budget")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    jax.config.update("jax_num_cpu_devices", 8)  # virtual ones, for shard_map
    # What one worker, one run of the command, or the run of tests before has compiled, the others load.
    cache = {
        "jax_compilation_cache_dir": str(config.cache.mkdir("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in cache.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


def pytest_collection_modifyitems(config, items):
    """Of a sweep as many cases are run as ``--examples`` says, spread over it, other ones in each test."""
    examples = config.getoption("--examples")
    sweeps = collections.defaultdict(list)
    for item in items:
        if item.get_closest_marker("sweep"):
            sweeps[item.nodeid.partition("[")[0]].append(item)
    left_out = set()
    for name, cases in sweeps.items():
        n = max(1, int(examples / max(mark.args[0] for mark in cases[0].iter_markers("sweep"))))
        kept = {(zlib.crc32(name.encode()) + i * len(cases) // n) % len(cases) for i in range(n)}
        left_out.update(item for i, item in enumerate(cases) if i not in kept)
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def quick_to_compile(request):
    """Tests that compile much and run little ask the compiler for less; those of cost and memory see what users see."""
    jax.config.update("jax_disable_most_optimizations", request.node.path.stem in COMPILE_MUCH)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def no_gigabytes():
    """No test takes 2 GiB: its process does not grow by that much at once."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 2**31
