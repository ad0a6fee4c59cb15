"""Two processes of four virtual devices each: what one process of eight has, and training runs on any mesh."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import measure_xent

from .sweeps import sweep

SOURCE = Path(measure_xent.__file__).parent
RUN = (
    f"--source {SOURCE} --vocabulary 300 --width 16 --layers 2 --heads 2 --context 16 --batch-size 8 --steps 12 "
    "--checkpoint-every 5"
).split()

WORKER = """
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as S

import measure_xent as mx
from measure_xent import log

jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
assert jax.process_count() == 2 and jax.device_count() == 8 and jax.local_device_count() == 4
rng = np.random.default_rng(0)
hidden, weight = (rng.normal(size=s).astype(np.float32) for s in ((32, 8), (8, 24)))
labels = rng.integers(24, size=32)
loss = lambda w, h, y: mx.cross_entropy(mx.Empirical((h, y)), mx.LinearSoftmax(w, batch_size=3))
expected = jax.jit(jax.value_and_grad(loss, (0, 1)))(weight, hidden, labels)


def check(got, expected):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        b = np.asarray(b)
        for shard in a.addressable_shards:
            np.testing.assert_allclose(shard.data, b[shard.index], rtol=1e-5, atol=1e-7)


for kind, shape, spec in ((AxisType.Auto, (4, 2), S("data", "model")), (AxisType.Explicit, (8, 1), S("data"))):
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(kind,) * 2)
    place = lambda x, s: jax.make_array_from_callback(x.shape, NamedSharding(mesh, s), x.__getitem__)
    arrays = place(weight, spec), place(hidden, S("data")), place(labels, S("data"))
    check(jax.jit(jax.value_and_grad(loss, (0, 1)))(*arrays), expected)

# What each process has of its own rows is half of the integral.
own = slice(16 * jax.process_index(), 16 * (jax.process_index() + 1))
step = jax.jit(mx.value_and_grad(lambda w: mx.Atoms((hidden[own], labels[own])).integrate(-log(mx.LinearSoftmax(w)))))
halves = multihost_utils.process_allgather(step(weight))
total, gradient = jax.tree.map(lambda x: x.sum(0), halves)
np.testing.assert_allclose(total.mean, expected[0], rtol=1e-5)
np.testing.assert_allclose(gradient.mean, expected[1][0], rtol=1e-4, atol=1e-7)
"""


def address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def start(*command, devices):
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment.pop("JAX_NUM_CPU_DEVICES", None)
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(processes, timeout=300):
    for process in processes:
        said, _ = process.communicate(timeout=timeout)
        assert process.returncode == 0, said


def train(out, *more, devices=8):
    return start("-m", "measure_xent", "train", "lm", "--out", out, *more, devices=devices)


def two(out, *more):
    where = address()
    options = "--coordinator", where, "--processes", 2, "--process"
    return [train(out, *more, *options, i, devices=4) for i in range(2)]


def losses(out):
    return np.array(json.loads((out / "metrics.json").read_text())["train_loss"])


@pytest.mark.slow("two processes of JAX")
def test_one_integral_of_two_processes():
    where = address()
    finish([start("-c", WORKER, where, i, devices=4) for i in range(2)])


@pytest.mark.slow("trains twice")
@sweep("mesh", ["data=8", "data=4,model=2", "fsdp=8", "fsdp=4,model=2", "two processes"])
def test_a_run_on_any_mesh_is_the_same(tmp_path, mesh):
    finish([train(tmp_path / "one", *RUN, devices=1)])
    finish(two(tmp_path / "run", *RUN) if mesh == "two processes" else [train(tmp_path / "run", *RUN, "--mesh", mesh)])
    assert len(losses(tmp_path / "run")) == 12
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "one"), rtol=1e-5)


@pytest.mark.slow("trains three times, and waits for a process that has ended")
def test_a_killed_process_ends_the_other_and_the_run_goes_on_elsewhere(tmp_path):
    finish([train(tmp_path / "whole", *RUN, "--steps", 300, devices=1)])
    run = tmp_path / "killed"
    both = two(run, *RUN, "--steps", 300)
    while not (run / "checkpoints" / "10").exists():
        assert all(process.poll() is None for process in both)
        time.sleep(0.1)
    both[1].kill()
    before = time.monotonic()
    said, _ = both[0].communicate(timeout=120)
    both[1].communicate()
    assert both[0].returncode != 0
    assert time.monotonic() - before < 60
    assert "another" in said
    finish([train(run, "--resume", "--mesh", "data=4,model=2")])
    np.testing.assert_allclose(losses(run), losses(tmp_path / "whole"), rtol=1e-4)


def test_what_cannot_be_a_mesh_is_said(tmp_path, capsys):
    from measure_xent.cli import main

    for options, message in (
        (["--mesh", "data=3"], "--mesh: 3 devices, and there are 8"),
        (
            ["--mesh", "data=8", "--batch-size", "4"],
            "--batch-size 4: has to be a multiple of 8, the mesh's data times fsdp",
        ),
        (["--process", "0"], "--coordinator: --coordinator, --processes and --process go together"),
        (["--coordinator", "x:1", "--processes", "2", "--process", "2"], "--process 2: one of 0 to 1"),
        (["--distributed", "--process", "0"], "--distributed: alone, for the cluster names"),
    ):
        assert main(["train", "lm", "--source", str(SOURCE), "--out", str(tmp_path), *options]) == 1
        assert message in capsys.readouterr().err
    for text in ("data", "data=0", "rows=2", "data=2,data=4"):
        with pytest.raises(SystemExit):
            main(["train", "lm", "--mesh", text])
        assert "devices by data, fsdp, model" in capsys.readouterr().err
