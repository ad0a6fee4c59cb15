"""The command ``measure-xent train lm``: it learns, its figures are right, and it goes on exactly where it stopped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import measure_xent
from measure_xent.cli import corpus, lm, main
from measure_xent.cli.transformer import hidden_states, rotated

from . import oracle

SOURCE = Path(measure_xent.__file__).parent
tiny = "--vocabulary 300 --width 16 --layers 2 --heads 2 --context 16 --batch-size 4 --steps 9 --checkpoint-every 4"
TINY = tiny.split()
SETTINGS = lm.Settings(9, 4, 16, 300, 16, 2, 2, 2e-3, 0)


def train(out, *more):
    return main(["train", "lm", "--source", str(SOURCE), "--out", str(out), *TINY, *more])


def outcome(out):
    """What a run ends with: its parameters and optimiser's state to the bit, its figures."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(out / "checkpoints") as checkpoints:
        saved = checkpoints.restore(
            checkpoints.latest_step(), args=ocp.args.Composite(state=ocp.args.StandardRestore())
        )
    return jax.tree.leaves(saved["state"]), json.loads((out / "metrics.json").read_text())


def same(a, b):
    assert a[1] == b[1]
    for x, y in zip(a[0], b[0], strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("lm") / "whole"
    assert train(out) == 0
    return out


def test_a_run(whole, capsys):
    _, metrics = outcome(whole)
    assert len(metrics["train_loss"]) == 9
    assert metrics["held_out_loss"]["9"] < metrics["held_out_loss"]["1"] < 1.1 * np.log(300)
    assert (whole / "report.png").stat().st_size > 10_000
    assert (whole / "sample.txt").read_text().startswith("def ")
    assert sorted(int(p.name) for p in (whole / "checkpoints").iterdir()) == [8, 9]  # the last two


def test_held_out_figures_are_the_whole_texts_own(whole):
    """Nats, bits a byte, accuracy against float64 on all of the logits, the ragged last batch too."""
    from tokenizers import Tokenizer

    parts = corpus.read(SOURCE)
    text = corpus.encode(parts, Tokenizer.from_file(str(whole / "tokenizer.json")))
    text = text._replace(held_out=text.held_out[: 16 * 5 + 8])  # 87 targets: 5 windows and a part of one, batches of 4
    state, _ = lm.start(SETTINGS, text, SOURCE)
    figures = lm.evaluate(state.parameters, text, SETTINGS, 100)
    nats, right, size = [], [], 0
    for i in range(0, 87, 16):
        window = text.held_out[i : i + 17]
        hidden = hidden_states(state.parameters, jnp.asarray(window[None, :-1]), 2)[0]
        log_p = oracle.log_softmax(
            np.asarray(hidden, np.float64) @ np.asarray(state.parameters["embedding"], np.float64).T
        )
        nats += (-log_p[np.arange(len(window) - 1), window[1:]]).tolist()
        right += (log_p.argmax(-1) == window[1:]).tolist()
        size += text.byte_lengths[window[1:]].sum()
    assert figures["tokens"] == len(nats) == 87
    np.testing.assert_allclose(figures["nats"], np.mean(nats), rtol=1e-5)
    np.testing.assert_allclose(figures["bits_per_byte"], np.sum(nats) / size / np.log(2), rtol=1e-5)
    np.testing.assert_allclose(figures["accuracy"], np.mean(right), rtol=1e-6)
    np.testing.assert_allclose(figures["nats_by_place"][0], np.mean(nats[::16]), rtol=1e-5)


def test_tokens_are_the_text():
    """No byte is lost or counted twice; windows of an epoch are disjoint, and known from the step alone."""
    parts = corpus.read(SOURCE)
    tokenizer = corpus.train_tokenizer(parts[0], 300)
    text = corpus.encode(parts, tokenizer)
    for stream, texts in zip(text[:2], parts, strict=True):
        assert text.byte_lengths[stream].sum() == sum(len(t.encode()) for t in texts)
        assert tokenizer.decode(stream.tolist(), skip_special_tokens=True) == "".join(texts)
    numbered = text._replace(train=np.arange(1000))
    epoch = [numbered.batch(step, 4, 16, seed=1) for step in range((1000 - 17) // 16 // 4)]
    inputs = np.concatenate([batch[:, :-1].ravel() for batch in epoch])
    assert len(np.unique(inputs)) == len(inputs) > 900
    np.testing.assert_array_equal(epoch[2], numbered.batch(2, 4, 16, seed=1))
    assert np.any(epoch[2] != numbered.batch(2 + len(epoch), 4, 16, seed=1))


def test_the_future_is_not_seen():
    """Hidden states depend on tokens before and at their place alone, and on places by their distance."""
    parameters = lm.start(SETTINGS, corpus.Corpus(np.zeros(1), np.zeros(1), np.ones(300)), SOURCE)[0].parameters
    tokens = jax.random.randint(jax.random.key(0), (2, 16), 0, 300)
    before, after = (hidden_states(parameters, t, 2) for t in (tokens, tokens.at[:, 9].set(5)))
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert np.all(np.any(before[:, 9:] != after[:, 9:], axis=-1))
    q = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (8,)), (1, 12, 1, 8))
    products = jnp.einsum("xshd,xthd->st", rotated(q), rotated(q))
    np.testing.assert_allclose(products[0, 3], products[5, 8], rtol=1e-5)


@pytest.mark.slow("trains three times")
def test_resuming_after_an_interrupt_is_exact(whole, tmp_path, monkeypatch):
    batch = corpus.Corpus.batch

    def interrupted(self, step, *rest):
        if step == 8:
            raise KeyboardInterrupt
        return batch(self, step, *rest)

    monkeypatch.setattr(corpus.Corpus, "batch", interrupted)
    assert train(tmp_path / "run") == 0
    assert len(outcome(tmp_path / "run")[1]["train_loss"]) == 8
    monkeypatch.undo()
    assert train(tmp_path / "run", "--resume") == 0
    same(outcome(tmp_path / "run"), outcome(whole))


KILLED = """
import os, pathlib, signal, sys
from measure_xent.cli import main

rename = os.rename
def killed(source, target, *rest, **options):
    if os.path.basename(os.fspath(target)) == "8":  # all is written, nothing committed
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(source, target, *rest, **options)
os.rename = os.replace = killed
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow("trains until it is killed, several times")
def test_killed_while_it_writes(whole, tmp_path):
    """The second checkpoint is cut off before it is one: the first is what the run goes on from."""
    out = tmp_path / "run"
    arguments = ["train", "lm", "--source", str(SOURCE), "--out", str(out), *TINY]
    env = os.environ | {"JAX_NUM_CPU_DEVICES": str(jax.device_count())}  # sums over other devices are rounded otherwise
    died = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, env=env, timeout=300)
    assert died.returncode == -signal.SIGKILL, died.stderr[-2000:]
    left = [path.name for path in (out / "checkpoints").iterdir()]
    assert "4" in left
    assert any(name.startswith("8.") for name in left)
    assert "8" not in left
    assert train(out, "--resume") == 0
    same(outcome(out), outcome(whole))


def test_resuming_a_finished_run_says_so(whole, capsys):
    before = outcome(whole)
    assert main(["train", "lm", "--resume", "--out", str(whole)]) == 0
    assert "had all of its 9 steps already" in capsys.readouterr().err
    same(outcome(whole), before)


def test_an_interrupt_before_the_first_step_ends_quietly(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    for name in ("encode", "update"):
        with monkeypatch.context() as patch:
            patch.setattr(lm, name, interrupted)
            assert train(tmp_path / name) == 130
        assert "interrupted" in capsys.readouterr().err


def test_what_cannot_go_on_is_said(whole, tmp_path, capsys):
    def says(*arguments):
        assert main(["train", "lm", *arguments]) == 1
        return capsys.readouterr().err

    base = ["--source", str(SOURCE), *TINY]
    assert "has a run of 9 steps; --resume goes on with it" in says(*base, "--out", str(whole))
    assert "--resume: no checkpoint in" in says(*base, "--out", str(tmp_path / "d"), "--resume")
    assert not (tmp_path / "d").exists()
    again = ["--out", str(whole), "--resume"]
    assert "--lr 1.0: the run to --resume has 0.002" in says(*again, "--lr", "1")
    assert "--width 32: the run to --resume has 16" in says(*again, "--width", "32")
    assert "the run to --resume has" in says(*again, "--source", str(SOURCE / "cli"))
    assert "--width 16: has to be a multiple of 6, twice --heads" in says(*base, "--heads", "3", "--out", str(tmp_path))
    small = tmp_path / "small.txt"
    small.write_text("to be or not to be " * 9)
    assert "too few for a step of 4 sequences of 16" in says(
        "--source", str(small), *TINY, "--out", str(tmp_path / "a")
    )
    assert "no such file or folder" in says("--source", str(tmp_path / "none"), "--out", str(tmp_path / "b"))
    (tmp_path / "binary").write_bytes(b"\xff\x00" * 100)
    assert "no texts in UTF-8" in says("--source", str(tmp_path / "binary"), "--out", str(tmp_path / "c"))
    with pytest.raises(SystemExit):
        main(["train", "lm", "--vocabulary", "256"])
    assert "at least 257" in capsys.readouterr().err
