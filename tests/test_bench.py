"""The benchmark runs, counts what it says, and names wrong flags. Its times decide nothing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from measure_xent._kernels.blocks import BLOCK_BYTES
from measure_xent.cli import bench, main


def test_json(capsys):
    assert (
        main(["bench", "--shapes", "64x100", "3x7", "--dtypes", "float32", "bfloat16", "--repeats", "1", "--json"]) == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert len(report["figures"]) == 2 * 2 * len(bench.OPERATIONS)
    for figure in report["figures"]:
        assert {"ours", "optax", "limit"} <= set(figure["milliseconds"])
        assert all(t > 0 for t in figure["milliseconds"].values())
        assert figure["temporaries"]["ours"] >= 0


def test_table(capsys):
    assert main(["bench", "--shapes", "64x100", "--operations", "value", "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    assert "64x100" in out
    assert "optax" in out


def test_head(capsys):
    assert main(["bench", "head", "--shapes", "17x6x40", "--repeats", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [figure["operation"] for figure in report["figures"]] == list(bench.HEAD_OPERATIONS)
    for figure in report["figures"]:
        assert {"ours", "optax", "limit"} <= set(figure["milliseconds"])
    assert main(["bench", "head", "--shapes", "17x6x40", "--operations", "each", "--repeats", "1"]) == 0
    assert "17x6x40" in capsys.readouterr().out


@pytest.mark.parametrize("operation", bench.HEAD_OPERATIONS)
def test_the_contestants_of_the_head_agree(operation):
    """What is timed is the same number."""
    rng = np.random.default_rng(0)
    hidden, weight = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((17, 6), (6, 40)))
    labels = jnp.asarray(rng.integers(40, size=17))
    contest = bench.head_contestants(operation, jnp.linspace(-1, 1, 17))
    results = [jax.tree.leaves(contest[name](hidden, weight, labels)) for name in ("ours", "optax")]
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "flags", [["head", "--shapes", "64x100"], ["rows", "--shapes", "2x3x4"], ["head", "--operations", "matmul"]]
)
def test_what_the_other_table_takes_is_refused(flags, capsys):
    assert main(["bench", *flags]) == 1
    assert flags[-1] in capsys.readouterr().err


def test_temporaries_do_not_grow_with_the_logits():
    """Two blocks of rows, and a few numbers a row."""
    for operation in ("value", "gradient", "smoothed"):
        for dtype in ("float32", "bfloat16"):
            figure = bench.measure(operation, "16384x1000", dtype, repeats=1)
            assert figure.temporaries["ours"] < 2 * BLOCK_BYTES / 2**20 + 0.5


@pytest.mark.parametrize("flags", [["--shapes", "10"], ["--dtypes", "int8"], ["--operations", "x"]])
def test_wrong_flags_are_named(flags, capsys):
    with pytest.raises(SystemExit):
        main(["bench", *flags])
    assert flags[1] in capsys.readouterr().err
