"""``measure-xent bench head --target``: what the compilers of accelerators that are not there say of a head."""

import functools
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from .._kernels import hopper
from .contestants import Case
from .terminal import CommandError


class Gpu(NamedTuple):
    """What XLA's GPU compiler asks of a card that is not there."""

    name: str
    capability: int
    cores: int
    bytes_a_second: int
    memory: int
    l2: int
    ghz: float

    @property
    def description(self) -> str:
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
              shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: {self.cores} fpus_per_core: 128
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              memory_bandwidth: {self.bytes_a_second} l2_cache_size: {self.l2} clock_rate_ghz: {self.ghz}
              device_memory_size: {self.memory} shared_memory_per_block_optin: 232448
              cuda_compute_capability {{ major: {self.capability} minor: 0 }}
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
            }}
            platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{self.name}"
        """


GIB = 1 << 30
GPUS = {
    "h100": Gpu("NVIDIA H100 80GB HBM3", 9, 132, 3_352_320_000_000, 79 * GIB, 50 << 20, 1.98),
    "h200": Gpu("NVIDIA H200", 9, 132, 4_800_000_000_000, 140 * GIB, 50 << 20, 1.98),
    "b200": Gpu("NVIDIA B200", 10, 148, 8_000_000_000_000, 178 * GIB, 126 << 20, 1.965),
}
TPUS = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
TARGETS = (*TPUS, *GPUS)


class Compiled(NamedTuple):
    """A head as a target's compiler has it, by contestant: MiB, and on TPUs 10⁶ cycles; nothing of what does not fit."""

    target: str
    operation: str
    shape: str
    dtype: str
    megacycles: dict[str, float]
    temporaries: dict[str, float]
    peak: dict[str, float]


def compile_for(target: str, case: Case) -> Compiled:
    """The figures of every contestant, compiled for one device of the target."""
    sharding, options = _device(target)
    of = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    operands = jax.tree.map(of, jax.eval_shape(lambda: case.operands(0)))
    cycles, temporaries, peak = {}, {}, {}
    for name, function in case.contestants().items():
        try:
            program = jax.jit(function).lower(*operands).compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            continue
        m = program.memory_analysis()
        temporaries[name] = m.temp_size_in_bytes / 2**20
        everything = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
        peak[name] = (everything - m.alias_size_in_bytes) / 2**20
        if target in TPUS:
            cycles[name] = estimated_cycles(program.as_text() or "") / 1e6
    return Compiled(target, *case, cycles, temporaries, peak)


def versions(target: str) -> dict[str, str]:
    compiler = "libtpu" if target in TPUS else _cuda_plugin() or ""
    return {name: importlib.metadata.version(name) for name in ("jax", "optax", compiler)}


@functools.cache
def _device(target: str) -> tuple[Any, dict[str, Any]]:
    """(The sharding of arrays on one such device, options of its compiler)."""
    from jax.experimental import topologies

    # Nothing runs on an accelerator, and looking for one takes its time.
    jax.config.update("jax_platforms", "cpu")
    if target in TPUS:
        if not importlib.util.find_spec("libtpu"):
            raise CommandError(f"--target {target}: the TPU's compiler is not installed: pip install libtpu")
        for name in ("TPU_SKIP_MDS_QUERY", "TPU_LOG_TO_STDERR"):
            os.environ.setdefault(name, "1" if name == "TPU_SKIP_MDS_QUERY" else "0")
        topology = topologies.get_topology_desc(TPUS[target], "tpu")
        options: dict[str, Any] = {}
    else:
        if _cuda_plugin() is None:
            raise CommandError(f"--target {target}: the GPU's compiler is not installed: pip install 'jax[cuda13]'")
        if hopper.SETTING == "1" and GPUS[target].capability != 9:
            raise CommandError(
                f"--target {target}: MEASURE_XENT_MOSAIC_GPU=1 asks for a kernel that is Hopper's, h100 and h200"
            )
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
        known = dict(target_config=GPUS[target].description, topology="1x1x1")
        topology = topologies.get_topology_desc("", "cuda", **known)
        options = {"xla_gpu_autotune_level": "0"}  # no card to try on
    return jax.sharding.SingleDeviceSharding(topology.devices[0]), options


def _cuda_plugin() -> str | None:
    found = (f"jax-cuda{n}-plugin" for n in (13, 12) if importlib.util.find_spec(f"jax_cuda{n}_plugin"))
    return next(found, None)


def estimated_cycles(text: str) -> int:
    """The cycles that the TPU's compiler estimates for a compiled program, from its text.

    A loop's body counts as often as it runs, and of a conditional's branches the cheapest: a head's fallbacks are left out.
    """
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?(%[\w.\-]+) \(.*\{$", line):
            name = head[2]
            computations[name] = []
            entry = name if head[1] else entry
        elif name:
            computations[name].append(line)

    def trips(condition: str) -> int:
        body = "\n".join(computations[condition])
        bound = re.search(r"ROOT .*compare\(%[\w.\-]+, (%[\w.\-]+)\), direction=LT", body)
        count = bound and re.search(re.escape(bound[1]) + r" = s32\[\]\S* constant\((\d+)\)", body)
        if not count:
            raise ValueError(f"a loop runs an unknown number of times: {body}")
        return int(count[1])

    def of_line(line: str) -> int:
        if loop := re.search(r" while\(.*condition=(%[\w.\-]+), body=(%[\w.\-]+)", line):
            return trips(loop[1]) * of(loop[2])
        if " conditional(" in line:
            known = re.search(r"branch_computations=\{([^}]*)\}", line)
            branches = known[1].split(", ") if known else re.findall(r"(?:true|false)_computation=(%[\w.\-]+)", line)
            return min(map(of, branches))
        if call := re.search(r" (?:call|async-start)\(.*(?:to_apply|calls)=(%[\w.\-]+)", line):
            return of(call[1])
        found = re.search(r'"estimated_cycles":"(\d+)"', line)
        return int(found[1]) if found else 0

    of: Callable[[str], int] = functools.cache(lambda computation: sum(map(of_line, computations[computation])))
    return of(entry)
