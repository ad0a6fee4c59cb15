"""What is run: what one can wait for, or with ``--full`` all of it.

Property tests draw ``--examples``, and so many cases has a sweep, a test over many that are alike, such as all measures: each
sweep others. Where no paths are named, a third of the examples of docstrings and pages is run, and a quarter of the tests
marked ``long``. Tests marked ``slow``, which says why, are run where they are named, and in fourteen turns, with ``--turn`` one
of them; it moves all the others, too.
"""

import collections
import contextlib
import ctypes
import os
import pathlib
import resource
import sys
import zlib

import hypothesis
import jax
import pytest

from measure_xent._kernels import softmax

# What is looked at in these is what users get: digits to the last one, costs, memory, programs.
OPTIMISED = {
    "test_accuracy",
    "test_bench",
    "test_cost",
    "test_digits",
    "test_lm",
    "test_memory",
    "test_programs",
    "test_score",
}


TURNS, EXAMPLES, LONG = 14, 3, 4  # of slow tests, of examples, and of long tests
WORKER = 3 << 29  # what a worker takes, in bytes


# Examples of docstrings and pages that are slow, and why.
SLOW_EXAMPLES = {
    "docs/pages/concepts.md": "an integral on every kind of space",
    "docs/pages/contributing.md": "a measure of one's own, and all that it can do",
    "docs/pages/howto/distil.md": "divergences of two heads, with gradients",
    "docs/pages/howto/information.md": "every functional of a joint measure",
    "docs/pages/howto/posttrain.md": "losses of heads, and the same of logits, with gradients",
    "docs/pages/howto/shard.md": "steps on meshes",
    "measure_xent/_conditionals/bayes.py::measure_xent._conditionals.bayes.posterior": "an adaptive integral at every point",
    "measure_xent/_functionals/likelihood.py": "integrals with second derivatives",
    "measure_xent/_measures/dirichlet.py": "an iterated integral",
    "measure_xent/testing.py": "all of a law in one program",
    "measure_xent/_measures/vectors.py": "an iterated integral",
    "measure_xent/_measures/intervals.py::measure_xent._measures.intervals.Uniform": "an adaptive integral with its derivative",
    "measure_xent/_measures/positive.py::measure_xent._measures.positive.Exponential": "an adaptive integral",
    "measure_xent/_measures/multivariate_normal.py": "an adaptive integral",
}


def pytest_addoption(parser):
    parser.addoption(
        "--examples", type=int, help="examples a property test draws, cases a sweep runs (1; with --full, 3)"
    )
    parser.addoption(
        "--turn", type=int, help="a fourteenth of the slow tests, and which of a sweep's cases (none, the first)"
    )
    parser.addoption("--share", type=int, default=1, help="of so many tests one, those of the turn")
    parser.addoption("--full", action="store_true", help="all slow tests, in an hour")


def pytest_xdist_auto_num_workers(config):
    """As many workers as there are cores, and gigabytes and a half."""
    try:
        memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # no such figure on this system
        memory = 8 << 30
    return max(
        1, min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), memory // WORKER)
    )


def pytest_configure(config):
    config.pluginmanager.register(
        Forgetting()
    )  # as a hook of this file it would be called for the tests beside it alone
    config.addinivalue_line("markers", "sweep: a test whose cases are alike")
    config.addinivalue_line("markers", "long: a test of many seconds, of which each turn of a few makes some")
    config.addinivalue_line("markers", "slow(why): a test that is run by its name, in turns, or in full")
    if config.option.examples is None:
        config.option.examples = 3 if config.option.full else 1
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
    """Of a sweep as many cases are run as ``--examples`` says, spread over it, other ones in each test and turn."""
    examples, turn, full = (config.getoption(f"--{name}") for name in ("examples", "turn", "full"))
    named = tuple(argument for argument in config.args if "::" in argument)
    sweeps, left_out = collections.defaultdict(list), set()
    for item in items:
        if why := next((why for start, why in SLOW_EXAMPLES.items() if item.nodeid.startswith(start)), None):
            item.add_marker(pytest.mark.slow(why))
        if item.get_closest_marker("sweep"):
            sweeps[item.nodeid.partition("[")[0]].append(item)
    for name, cases in sweeps.items():
        n = max(1, int(examples / max(mark.args[0] for mark in cases[0].iter_markers("sweep"))))
        kept = {(zlib.crc32(name.encode()) + (turn or 0) + i * len(cases) // n) % len(cases) for i in range(n)}
        left_out.update(item for i, item in enumerate(cases) if i not in kept)
    if config.args_source != pytest.Config.ArgsSource.ARGS and not full:
        examples_of = [item for item in items if item.nodeid.startswith(("measure_xent/", "docs/"))]
        long = [item for item in items if item.get_closest_marker("long")]
        for parts, some in ((EXAMPLES, examples_of), (LONG, long)):
            left_out.update(item for item in some if (zlib.crc32(item.nodeid.encode()) + (turn or 0)) % parts)
    share = config.getoption("--share")
    left_out.update(item for item in items if (zlib.crc32(item.nodeid.encode()) // TURNS + (turn or 0)) % share)
    if not full:
        due = lambda item: turn is not None and (zlib.crc32(item.nodeid.encode()) + turn) % TURNS == 0
        slow = (item for item in items if item.get_closest_marker("slow") and not item.nodeid.startswith(named))
        left_out.update(item for item in slow if not due(item))
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def quick_to_compile(request):
    """Tests compile much and run little: most ask the compiler for less."""
    jax.config.update("jax_disable_most_optimizations", request.node.path.stem not in OPTIMISED)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def small_as_large(request, monkeypatch):
    """A small matrix is tested as a large one, but where a run is compared with another process's."""
    if request.node.path.stem not in ("test_digits", "test_lm"):
        monkeypatch.setattr(softmax, "FEW_LOGITS", 0)


@pytest.fixture(autouse=True)
def no_gigabytes():
    """No test takes 2 GiB: its process does not grow by that much at once."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 2**31


class Forgetting:
    """After any test, an example of the documentation too, what is compiled is forgotten if it is a lot."""

    kept = 0  # what a worker holds without

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self):
        if resident() > max(WORKER // 3, self.kept + WORKER // 8):
            jax.clear_caches()
            with contextlib.suppress(OSError, AttributeError):  # glibc's: what is free goes back to the system
                ctypes.CDLL(None).malloc_trim(0)
            self.kept = resident()


def resident() -> int:
    """The bytes that the process holds; 0 where nobody says."""
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
