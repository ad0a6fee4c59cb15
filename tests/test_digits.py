"""The main job: training digits from the command line, against optax's own loss, interrupted, and asked wrongly."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from measure_xent.cli import digits, main


def optax_loss(params, batch, smoothing):
    logits = digits.mlp(params, batch.images)
    if not smoothing:
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()
    targets = optax.losses.smooth_labels(jnp.eye(digits.CLASSES)[batch.labels], smoothing)
    return optax.losses.softmax_cross_entropy(logits, targets).mean()


@pytest.mark.slow("trains models")
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_trajectory_is_optax_s(smoothing):
    """200 steps of SGD with our loss and with optax's own: equal to float32 rounding, which training amplifies little."""
    data, _ = digits.load(seed=0)
    run = lambda loss: [
        float(value)
        for _, value in digits.train(data, steps=200, batch_size=64, optimizer=optax.sgd(0.05), loss=loss, seed=0)
    ]
    ours = run(lambda params, batch: digits.smoothed_loss(params, batch, smoothing))
    theirs = run(lambda params, batch: optax_loss(params, batch, smoothing))
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)
    assert ours[-1] < 0.5 * ours[0]


@pytest.mark.slow("trains models")
def test_same_seed_same_result(tmp_path, capsys):
    runs = []
    for name in ("a", "b"):
        assert main(["train", "digits", "--steps", "30", "--seed", "3", "--out", str(tmp_path / name)]) == 0
        runs.append((tmp_path / name / "metrics.json").read_text())
        assert (tmp_path / name / "report.png").read_bytes().startswith(b"\x89PNG")
    assert runs[0] == runs[1]
    metrics = json.loads(runs[0])
    assert len(metrics["train_loss"]) == 30
    assert metrics["bits"] == pytest.approx(metrics["nats"] / np.log(2), rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(np.exp(metrics["nats"]), rel=1e-5)
    model = dict(np.load(tmp_path / "a" / "model.npz"))
    _, held_out = digits.load(seed=3)
    logits = np.maximum(held_out.images @ model["w1"] + model["b1"], 0) @ model["w2"] + model["b2"]
    assert metrics["accuracy"] == pytest.approx((logits.argmax(-1) == held_out.labels).mean())
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.slow("trains models")
@pytest.mark.parametrize("name", ["sgd", "lion", "lbfgs"])
def test_any_optimizer_of_optax(name, tmp_path):
    arguments = ["train", "digits", "--steps", "3", "--lr", "0.01", "--optimizer", name, "--out", str(tmp_path)]
    assert main(arguments) == 0


@pytest.mark.slow("trains models")
def test_reaches_the_stated_accuracy(tmp_path):
    assert main(["train", "digits", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["accuracy"] >= 0.97


INTERRUPTED = """
import os, signal, sys
from measure_xent.cli import digits, main

def train(*args, train=digits.train, **kwargs):
    for step, result in enumerate(train(*args, **kwargs), 1):
        yield result
        if step == 40:
            os.kill(os.getpid(), signal.SIGINT)

digits.train = train
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts with it ignored
sys.exit(main(["train", "digits", "--steps", "1000000", "--out", sys.argv[1]]))
"""


@pytest.mark.slow("a process that trains")
def test_ctrl_c_keeps_the_model_and_the_picture(tmp_path):
    """A process of its own gets a real SIGINT after its 40th step."""
    process = subprocess.run([sys.executable, "-c", INTERRUPTED, str(tmp_path)], capture_output=True, timeout=300)
    assert process.returncode == 0, process.stderr.decode()
    assert b"stopped after" in process.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["interrupted"]
    assert 40 <= metrics["steps"] == len(metrics["train_loss"]) <= 41
    assert (tmp_path / "model.npz").exists()
    assert (tmp_path / "report.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer", "adamm"], "no optimiser 'adamm'"),
        (["--optimizer", "apply_updates"], "no optimiser 'apply_updates'"),
        (["--optimizer", "polyak_sgd"], "of a learning_rate"),
        (["--seed", "-1"], "between 0 and"),
        (["--step", "3"], "--step"),
        (["--steps", "0"], "positive int"),
        (["--lr", "-1"], "positive float"),
        (["--smoothing", "1.5"], "between 0 and 1"),
    ],
)
def test_wrong_flags_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(["train", "digits", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.long
def test_what_cannot_go_on_is_said(tmp_path, capsys):
    (tmp_path / "file").touch()
    for arguments, message in (
        (["--batch-size", "2000"], "1437 training"),
        (["--out", str(tmp_path / "file")], "folder"),
    ):
        assert main(["train", "digits", *arguments]) == 1
        assert message in capsys.readouterr().err
    assert main(["train", "digits", "--lr", "1e9", "--steps", "30", "--out", str(tmp_path)]) == 1
    assert "diverged" in capsys.readouterr().err
    refuse = lambda constant: pytest.fail(f"{constant} is not JSON")
    assert json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)["nats"] is None


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["train", "digits", "--help"])
    assert "-P.expect(log(Q))" in capsys.readouterr().out
