"""Property tests have a fixed, small budget; ``pytest --examples 200`` gives them a larger one.

Those that take long to compile are then run on all measures, else on some of every kind.
"""

import os

import hypothesis
import jax
import pytest

COMPILE_MUCH = {
    "test_accumulation",
    "test_by_products",
    "test_contract",
    "test_divergences",
    "test_edges",
    "test_external",
    "test_families",
    "test_information",
    "test_integrals",
    "test_laws",
    "test_laws_of_spaces",
    "test_likelihood",
    "test_losses",
    "test_methods",
    "test_scores_and_codes",
    "test_sharding",
    "test_transforms",
    "test_vectors",
}


def pytest_addoption(parser):
    parser.addoption("--examples", type=int, default=3, help="examples a property test draws (default 3)")


def pytest_configure(config):
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
    """With ``--examples 1``, one case of each test: enough to see whether another version of JAX still has what is used."""
    if config.getoption("--examples") == 1:
        first = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
        others = [item for item in items if first[item.nodeid.partition("[")[0]] is not item]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if first[item.nodeid.partition("[")[0]] is item]


@pytest.fixture(autouse=True)
def quick_to_compile(request):
    """Tests that compile much and run little ask the compiler for less; those of cost and memory see what users see."""
    jax.config.update("jax_disable_most_optimizations", request.node.path.stem in COMPILE_MUCH)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def some(request):
    """some(name, …) skips all but the named cases of a test that takes long to compile, unless ``--examples`` asks for more."""

    def skip_others(name, *names):
        if request.config.getoption("--examples") <= 3 and name not in names:
            pytest.skip("with a larger --examples")

    return skip_others
