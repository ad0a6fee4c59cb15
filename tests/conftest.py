"""Property tests have a fixed, small budget; ``pytest --examples 200`` gives them a larger one."""

import hypothesis
import jax


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
