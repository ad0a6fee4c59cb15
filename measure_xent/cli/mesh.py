"""The mesh that a training run's arrays are on, of one process or of several."""

import argparse
import math
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from .terminal import CommandError, positive

AXES = "data", "fsdp", "model"
ROWS = PartitionSpec(("data", "fsdp"))
HEARTBEAT = 30  # seconds without a sign of life after which a process counts as ended


def add_options(add: Callable) -> None:
    add("--mesh", type=_mesh, metavar="AXES", help="devices by axis, all of them: data=4,model=2; also fsdp= (by data)")
    add("--coordinator", metavar="HOST:PORT", help="where process 0 of several listens")
    add("--processes", type=positive(int), metavar="N", help="how many there are")
    add("--process", type=int, metavar="I", help="which this one is, from 0")
    add("--distributed", action="store_true", help="all three as the cluster says (Slurm, Open MPI, Kubernetes, TPU)")


def _mesh(text: str) -> dict[str, int]:
    try:
        pairs = [(name, int(size)) for name, size in (part.split("=") for part in text.split(","))]
    except ValueError:
        pairs = []
    names = [name for name, _ in pairs]
    if not pairs or set(names) - set(AXES) or len(set(names)) < len(names) or any(size < 1 for _, size in pairs):
        raise argparse.ArgumentTypeError(f"devices by data, fsdp, model, such as data=4,model=2, got {text}")
    return dict(pairs)


def connect(arguments: argparse.Namespace) -> None:
    """Makes this process one of several, if the options say so."""
    given = {name: getattr(arguments, name) for name in ("coordinator", "processes", "process")}
    if arguments.distributed:
        if any(value is not None for value in given.values()):
            raise CommandError("--distributed: alone, for the cluster names --coordinator, --processes and --process")
        options = {}
    elif all(value is None for value in given.values()):
        return
    else:
        if missing := [name for name, value in given.items() if value is None]:
            raise CommandError(f"--{missing[0]}: --coordinator, --processes and --process go together")
        if not 0 <= arguments.process < arguments.processes:
            raise CommandError(f"--process {arguments.process}: one of 0 to {arguments.processes - 1}")
        options = dict(
            coordinator_address=arguments.coordinator, num_processes=arguments.processes, process_id=arguments.process
        )
    try:
        jax.distributed.initialize(**options, initialization_timeout=2 * HEARTBEAT, heartbeat_timeout_seconds=HEARTBEAT)
    except (ValueError, RuntimeError) as error:
        raise CommandError(f"several processes: {error}") from None


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def make_mesh(sizes: dict[str, int] | None, batch_size: int) -> Mesh:
    """The mesh as asked, or of all devices by data, or of one process's as many as have rows alike."""
    devices = jax.devices()
    if sizes is None:
        several = jax.process_count() > 1
        sizes = {"data": len(devices) if several else math.gcd(len(devices), batch_size)}
        devices = devices[: sizes["data"]]
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    if math.prod(shape) != len(devices):
        raise CommandError(
            f"--mesh: {math.prod(shape)} devices, and there are {len(devices)}: the product must be that"
        )
    if batch_size % (rows := shape[0] * shape[1]):
        raise CommandError(f"--batch-size {batch_size}: has to be a multiple of {rows}, the mesh's data times fsdp")
    # Along explicit axes a head shares its work on TPUs, too.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Explicit,) * len(AXES), devices=devices)


def automatic(function: Callable, spec: PartitionSpec, *arrays: Any) -> Any:
    """The function of the arrays, as the compiler partitions it, and its result so."""
    meshes = {jax.typeof(x).sharding.mesh for x in jax.tree.leaves(arrays)}
    mesh = next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)
    if mesh is None:
        return function(*arrays)
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.sharding.auto_axes(function, out_sharding=spec)(*arrays)


def sharding(mesh: Mesh, shape: tuple[int, ...], axes: tuple[Any, ...]) -> NamedSharding:
    """An array's sharding, but over axes that do not divide it."""
    fits = lambda n, axis: axis is not None and n % mesh.shape[axis] == 0
    return NamedSharding(
        mesh, PartitionSpec(*(axis if fits(n, axis) else None for n, axis in zip(shape, axes, strict=True)))
    )


def by_rows(mesh: Mesh, rows_of: Callable[[slice], np.ndarray], shape: tuple[int, ...]) -> jax.Array:
    """A batch whose rows each process reads for its own devices."""
    spread = NamedSharding(mesh, ROWS)
    return jax.make_array_from_callback(shape, spread, lambda index: rows_of(index[0]))


def end_with_the_others(error: BaseException) -> None:
    """Ends a process whose collectives fail, for the others will not come back."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    print(
        f"measure-xent: another process has ended, or cannot be reached, so this one ends; start all of them again with "
        f"--resume, which goes on from the last checkpoint ({first})",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)  # leaving by the door would wait for the others
