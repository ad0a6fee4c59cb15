"""What compilers of accelerators say of a head, where they are installed: bounds that a change may not pass unseen."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from measure_xent.cli import main
from measure_xent.cli.target import GPUS, TARGETS, TPUS, estimated_cycles

PROGRAM = """
HloModule jit_f, is_scheduled=true

%body.1 (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %fusion.1 = f32[8]{0} fusion(%x), kind=kLoop, backend_config={"window_config":{"estimated_cycles":"100","x":["1"]}}
  %call.1 = f32[8]{0} call(%fusion.1), to_apply=%called.2
}

%called.2 (p: f32[8]) -> f32[8] {
  ROOT %fusion.2 = f32[8]{0} fusion(%x), kind=kLoop, backend_config={"window_config":{"estimated_cycles":"7"}}
}

%condition.3 (p: (s32[], f32[8])) -> pred[] {
  %constant.5 = s32[]{:T(128)} constant(6)
  ROOT %lt = pred[]{:T(512)} compare(%gte.1, %constant.5), direction=LT
}

%cheap.4 (p: f32[8]) -> f32[8] {
  ROOT %copy = f32[8]{0} copy(%p), backend_config={"window_config":{"estimated_cycles":"3"}}
}

%dear.5 (p: f32[8]) -> f32[8] {
  ROOT %copy = f32[8]{0} copy(%p), backend_config={"window_config":{"estimated_cycles":"5000"}}
}

ENTRY %main.6 (x: f32[8]) -> f32[8] {
  %while.1 = (s32[], f32[8]) while(%tuple), condition=%condition.3, body=%body.1
  %cond.1 = f32[8]{0} conditional(%pred, %a, %b), branch_computations={%dear.5, %cheap.4}
  %cond.2 = f32[8]{0} conditional(%pred, %a, %b), true_computation=%dear.5, false_computation=%cheap.4
  ROOT %fusion.3 = f32[8]{0} fusion(%x), kind=kLoop, backend_config={"window_config":{"estimated_cycles":"1000"}}
}
"""


def test_cycles_of_a_program():
    """Loops as often as they run, the cheapest branch, what is called."""
    assert estimated_cycles(PROGRAM) == 6 * (100 + 7) + 3 + 3 + 1000
    with pytest.raises(ValueError, match="unknown number of times"):
        estimated_cycles(PROGRAM.replace("direction=LT", "direction=EQ"))


def test_errors_name_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for target, what in (("v5e", "pip install libtpu"), ("h100", "pip install 'jax[cuda13]'")):
        assert main(["bench", "head", "--target", target, "--shapes", "8x8x8"]) == 1
        assert what in capsys.readouterr().err
    assert main(["bench", "rows", "--target", "v5e"]) == 1
    assert "bench head --target CHIP" in capsys.readouterr().err
    assert {*TPUS, *GPUS} == set(TARGETS)


def figures(*flags, operations=("gradient",)):
    """In a process of its own, for which JAX has not looked for devices yet."""
    command = [sys.executable, "-m", "measure_xent", "bench", "head", *flags, "--operations", *operations, "--json"]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout
    return json.loads(out)["figures"]


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
@pytest.mark.parametrize(("target", "shape"), [("v5e", "2048x512x16384"), ("v6e", "16384x256x8192")])
def test_a_tpu_takes_no_longer_than_for_materialised_logits(target, shape):
    """All rows at once, and two blocks of them: the compiler's own cycles and temporaries, beside optax's."""
    for figure in figures("--target", target, "--shapes", shape):
        cycles, temporaries = figure["megacycles"], figure["temporaries"]
        assert cycles["limit"] / 2 < cycles["ours"] < 1.15 * cycles["optax"], figure
        n, features, classes = map(int, shape.split("x"))
        kept = 2 * n * classes if n <= 8192 + 2 * features else 2 * 8192 * classes + 4 * features * classes
        assert temporaries["ours"] < 1.02 * kept / 2**20 + 1, figure


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_a_loss_a_token_takes_one_more_product():
    """Or none, where its exponentials are kept: no logits are. The entropy beside a loss takes none."""
    operations = {"each": 4, "kept": 3, "entropy": 3}
    found = figures("--target", "v5e", "--shapes", "4096x1024x32768", operations=tuple(operations))
    product = found[0]["megacycles"]["limit"] / 3
    logits = 2 * 4096 * 32768 / 2**20
    for figure, products in zip(found, operations.values(), strict=True):
        cycles, temporaries = figure["megacycles"]["ours"], figure["temporaries"]["ours"]
        assert 0.9 * products * product < cycles < 1.35 * products * product, figure
        assert temporaries < 1.1 * logits, figure


@pytest.mark.skipif(not importlib.util.find_spec("jax_cuda13_plugin"), reason="jax[cuda13] is not installed")
def test_a_gpu_keeps_a_block():
    """Logits in float32 and E of 2048 rows, beside the weight's gradient; all of E once where it is kept."""
    mean, kept = figures("--target", "h100", "--shapes", "8192x512x65536", operations=("gradient", "kept"))
    n, features, classes = 2048, 512, 65536
    assert mean["temporaries"]["ours"] < 1.02 * (6 * n * classes + 4 * features * classes) / 2**20
    assert kept["temporaries"]["ours"] < 1.02 * (6 * n + 2 * 8192) * classes / 2**20
