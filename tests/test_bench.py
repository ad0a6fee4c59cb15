"""The benchmark runs, counts what it says, and names wrong flags. Its times decide nothing."""

import json

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
