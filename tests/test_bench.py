"""The benchmark runs, counts what it says, and names wrong flags. Its times decide nothing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from measure_xent._kernels.blocks import BLOCK_BYTES
from measure_xent.cli import grid, main
from measure_xent.cli.bench import TABLES
from measure_xent.cli.contestants import HEAD_OPERATIONS, OPERATIONS, Case, Figure


@pytest.mark.slow("compiles every contestant")
def test_json(capsys):
    flags = ["--shapes", "9x100", "--dtypes", "float32", "bfloat16", "--repeats", "1", "--json"]
    assert main(["bench", "rows", *flags]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["figures"]) == 2 * len(OPERATIONS)
    for figure in report["figures"]:
        assert {"ours", "optax", "limit"} <= set(figure["milliseconds"])
        assert all(t > 0 for t in figure["milliseconds"].values())
        assert figure["temporaries"]["ours"] >= 0
        assert figure["peak"]["ours"] > 0
        assert figure["loss_error"] < (
            1e-5 if figure["dtype"] == "float32" else 1e-2
        )  # the matmul's logits are rounded
        assert figure["gradient_error"] < (1e-5 if figure["dtype"] == "float32" else 8e-3)


@pytest.mark.slow("compiles every contestant")
def test_table_and_picture(capsys, tmp_path):
    shapes = ["--shapes", "64x100", "17x6x40"]
    assert main(["bench", *shapes, "--operations", "value", "--repeats", "1", "--plot", str(tmp_path / "a.png")]) == 0
    out = capsys.readouterr().out
    assert "64x100" in out
    assert "17x6x40" in out
    assert "optax" in out
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow("compiles every contestant")
def test_head(capsys):
    assert main(["bench", "head", "--shapes", "17x6x40", "--repeats", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [figure["operation"] for figure in report["figures"]] == TABLES["cpu", "head"][2]
    for figure in report["figures"]:
        assert {"ours", "optax", "limit"} <= set(figure["milliseconds"])
    assert main(["bench", "head", "--shapes", "17x6x40", "--operations", "each", "--repeats", "1"]) == 0
    assert "17x6x40" in capsys.readouterr().out


@pytest.mark.slow("compiles every contestant")
def test_grid(capsys, tmp_path, monkeypatch):
    """Ratios by rows and classes, their picture, and how near shapes compare."""
    for name, value in dict(ROWS=(8, 9), CLASSES=(40, 41), SHAPES=["8x40", "8x41", "9x40"]).items():
        monkeypatch.setattr(grid, name, value)
    flags = ["bench", "rows", "--grid", "--repeats", "1"]
    assert main([*flags, "--plot", str(tmp_path / "a.png")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "gradient, float32: ours / optax" in out
    assert "of 3 shapes" in out
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert main([*flags, "--shapes", "8x40"]) == 1
    assert "--grid: bench rows --grid, without --shapes" in capsys.readouterr().err
    times = {(8, 40): 4.0, (8, 41): 8.2, (9, 40): 1.0}
    panel = {shape: Figure("value", "", "", {"ours": t}, {}, {}, 0, 0) for shape, t in times.items()}
    np.testing.assert_allclose(grid.cliff(panel), 2)


@pytest.mark.slow("compiles each of nine calls, and its peer's, twice")
def test_touch(capsys):
    """First calls and next ones, and compiling."""
    assert main(["bench", "touch", "--repeats", "3", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert len(figures) == 9
    for figure in figures:
        assert min(figure[name] for name in ("first", "again", "peer_first", "peer_again")) > 0
    assert main(["bench", "touch", "--shapes", "9x10"]) == 1
    assert "--shapes: bench touch has one table" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.sweep(1)
@pytest.mark.parametrize("operation", HEAD_OPERATIONS)
def test_the_contestants_of_the_head_agree(operation):
    """What is timed is the same number."""
    rng = np.random.default_rng(0)
    hidden, weight = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((17, 6), (6, 40)))
    labels = jnp.asarray(rng.integers(40, size=17))
    contest = Case(operation, "17x6x40", "float32").contestants()
    results = [jax.tree.leaves(contest[name](hidden, weight, labels)) for name in ("ours", "optax")]
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.sweep(1)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("operation", "shape"), [*((o, "40x1009") for o in OPERATIONS), *((o, "40x24x9001") for o in HEAD_OPERATIONS)]
)
def test_the_truth_is_told(operation, shape, dtype, monkeypatch, capsys):
    """Ours and optax's agree with float64; what is wrong by a label's smoothing, or a block of classes, is a failure."""
    case = Case(operation, shape, dtype)
    for name in ("ours", "optax"):
        chosen = case.contestants()[name]
        with monkeypatch.context() as patched:
            patched.setattr(Case, "contestants", lambda self, f=chosen: {"ours": f})
            loss, gradient = case.errors(seed=1)
        # optax gives bfloat16 for bfloat16; sums of 1000 terms of float32; gradients are rounded to their dtype.
        assert loss < (1e-5 if dtype == "float32" else 1e-4 if name == "ours" and operation != "matmul" else 0.05)
        assert gradient < (1e-4 if dtype == "float32" else 2e-2)
    wrong = jax.tree_util.Partial(lambda *x: jax.tree.map(lambda a: 1.1 * a, chosen(*x)))
    monkeypatch.setattr(Case, "contestants", lambda self: {"ours": wrong})
    assert main(["bench", "--shapes", shape, "--operations", operation, "--dtypes", dtype]) == 1
    assert "off by" in capsys.readouterr().err


def test_a_device_that_is_not_there(capsys):
    if any(d.platform == "gpu" for d in jax.devices()):
        pytest.skip("there is one")
    assert main(["bench", "--device", "gpu"]) == 1
    assert "--device gpu: JAX sees none here, only cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["head", "--shapes", "64x100"],
        ["rows", "--shapes", "2x3x4"],
        ["head", "--operations", "matmul"],
        ["--shapes", "64x100", "--operations", "each"],
    ],
)
def test_what_the_other_table_takes_is_refused(flags, capsys):
    assert main(["bench", *flags]) == 1
    assert flags[-1] in capsys.readouterr().err


@pytest.mark.slow("compiles every contestant")
def test_temporaries_do_not_grow_with_the_logits():
    """Two blocks of rows, and a few numbers a row."""
    for operation in ("value", "gradient", "smoothed"):
        for dtype in ("float32", "bfloat16"):
            case = Case(operation, "16384x1000", dtype)
            ours = jax.jit(case.contestants()["ours"]).lower(*case.operands(0)).compile()
            assert ours.memory_analysis().temp_size_in_bytes < 2 * BLOCK_BYTES + 2**19


@pytest.mark.parametrize("flags", [["--shapes", "10"], ["--dtypes", "int8"], ["--operations", "x"]])
def test_wrong_flags_are_named(flags, capsys):
    with pytest.raises(SystemExit):
        main(["bench", *flags])
    assert flags[1] in capsys.readouterr().err
