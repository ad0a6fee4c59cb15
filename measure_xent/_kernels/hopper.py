"""A block's scaled exponentials on Hopper GPUs, made of the product hidden @ weight while it is in registers.

XLA writes the logits in float32 and reads them to write E. Here a tile of the product leaves its multiprocessor as E, in the
weight's dtype, and as sums over its classes in float32. A multiprocessor takes tile after tile: one group of threads copies
what is to be multiplied, two others multiply, each half of the rows.
"""

import functools
import math
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from .matrix import Epilogue, Matrix
from .mesh import vary, varying

# "0": nowhere; "1": on Hopper GPUs, and in programs compiled where no GPU is; else on Hopper GPUs where it was measured to be
# faster.
SETTING = os.environ.get("MEASURE_XENT_MOSAIC_GPU", "")
MEASURED_ROWS, MEASURED_FEATURES = 4096, 2048
HOPPER = "9.0"
# The logits at so many classes of each row are sums of their own.
MOST_ATOMS = 4


class Tiles(NamedTuple):
    """What a multiprocessor makes at a time."""

    rows: int = 128
    classes: int = 256
    features: int = 256  # on their way into its memory, in steps of 128 or 64
    outgoing: int = 32  # classes of E that are written at once
    width: int = 8  # tiles of classes next to each other, taken by turns, so that their operands stay in the cache


TILES = Tiles()


def takes(hidden: Float[Array, "R D"], matrix: Matrix, epilogue: Epilogue) -> bool:
    """Whether the kernel is for such rows of such a head, on the GPUs of this process."""
    rows, features = hidden.shape
    # Arrays are copied in tiles of 8 rows of 128 bytes.
    fits = features % 64 == 0 and matrix.classes % 64 == 0
    large = rows >= TILES.rows and matrix.classes >= TILES.classes
    half = (matrix.dtype or hidden.dtype) == matrix.weight.dtype == jnp.bfloat16
    return fits and large and half and epilogue.softcap is None and _is_used(rows, features)


def _is_used(rows, features):
    if SETTING == "0" or jax.__version_info__ < (0, 11, 2):
        return False
    if SETTING == "1":
        return _capability() in (HOPPER, None)
    # JAX 0.12.0's compiler ignores that the threads that multiply are to have the registers of those that copy.
    measured = jax.__version_info__ < (0, 12) and rows >= MEASURED_ROWS and features >= MEASURED_FEATURES
    return measured and _capability() == HOPPER


@functools.cache
def _capability():
    return jax.local_devices()[0].compute_capability if jax.default_backend() == "gpu" else None


@functools.cache
def _multiprocessors():
    return jax.local_devices()[0].core_count if _capability() else 132


class Sums(NamedTuple):
    """Of each row, over the classes here."""

    exponentials: Float[Array, "R"]  # without the pivot
    logits: Float[Array, "R k"] | None  # at the atoms
    gaps: Float[Array, "R"] | None  # reference − z


def exponentials(
    hidden: Float[Array, "R D"],
    reference: Float[Array, "R"],
    pivot: Int[Array, "R"] | None,
    atoms: Int[Array, "R k"] | None,
    matrix: Matrix,
    bias: Float[Array, "V"] | None,
    *,
    total: bool,
    keep: bool,
) -> tuple[Float[Array, "R V"] | None, Sums]:
    """(E = exp(hidden @ weight + bias − reference), 0 at the pivot, if it is kept; its rows' sums).

    The pivot and the atoms are of the classes here, or −1.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import mosaic_gpu

    gpu: Any = mosaic_gpu  # not typed well enough to be checked
    (count, features), classes, dtype, tiles = hidden.shape, matrix.classes, matrix.weight.dtype, TILES
    groups, of_group, of_step = 2, tiles.rows // 2, 128 if features % 128 == 0 else 64
    grid = -(-count // tiles.rows), -(-classes // tiles.classes)
    ragged = classes % tiles.classes != 0  # what is beyond is read as zeros, and not written
    of_atoms = [] if atoms is None else list(atoms.T)
    # One atom is the pivot itself.
    by_row = [reference, *(of_atoms if len(of_atoms) <= 1 else [pivot, *of_atoms])]
    by_row = [jnp.pad(x, (0, -count % tiles.rows), constant_values=-1) for x in by_row]
    by_class = [] if bias is None else [jnp.pad(bias.astype(jnp.float32), (0, -classes % tiles.classes))]

    def in_tiles(width):
        swizzle = gpu.find_swizzle(width * dtype.itemsize * 8)
        return gpu.TilingTransform((8, swizzle // dtype.itemsize)), gpu.SwizzleTransform(swizzle)

    def product(step, with_sum):
        def operand(rows, columns, index):
            return gpu.BlockSpec((rows, columns), index, transforms=in_tiles(columns), memory_space=gpu.SMEM)

        of_weight = (
            operand(of_step, tiles.classes, lambda k: (k, 0))
            if matrix.class_axis
            else operand(tiles.classes, of_step, lambda k: (0, k))
        )
        return gpu.emit_pipeline_warp_specialized(
            step,
            grid=(features // of_step,),
            in_specs=[operand(tiles.rows, of_step, lambda k: (0, k)), of_weight],
            memory_registers=40,
            wg_axis="group",
            num_compute_wgs=groups,
            max_concurrent_steps=tiles.features // of_step,
            compute_context=with_sum,
        )

    def kernel(hidden, weight, *refs):
        refs = iter(refs)
        row_refs, class_refs = ([next(refs) for _ in of] for of in (by_row, by_class))
        kept = next(refs) if keep else None
        sums = list(refs)
        nothing = lambda *_: None
        shared: dict[str, Any] = {"operands": product(nothing, nothing).get_allocations(hidden, weight)}
        if keep:
            outgoing = groups, 2, of_group, tiles.outgoing
            shared["outgoing"] = gpu.SMEM(outgoing, dtype, transforms=in_tiles(tiles.outgoing))

        @functools.partial(pl.run_scoped, **shared, collective_axes="group")
        def _(operands, outgoing=None):
            group = lax.axis_index("group")

            @gpu.nd_loop((math.prod(grid),), collective_axes="multiprocessor")
            def _(loop):
                row, column = gpu.planar_snake(loop.index[0], grid, 1, tiles.width)
                own = pl.ds(row * tiles.rows + group * of_group, of_group)

                def step(_, hidden, weight, sum_):
                    weight = weight if matrix.class_axis else weight.transpose((1, 0))
                    gpu.wgmma(sum_, hidden.at[pl.ds(group * of_group, of_group)], weight)
                    gpu.wgmma_wait(0)
                    return sum_

                def with_sum(run):
                    def scope(sum_):
                        run(sum_)
                        write(sum_[...])

                    pl.run_scoped(scope, gpu.ACC((of_group, tiles.classes), jnp.float32))

                def write(z):
                    shape = of_group, tiles.outgoing

                    def along(ref, at, axis):
                        x = gpu.load(ref.at[at], layout=gpu.Layout.WGMMA.reduce(1 - axis), optimized=False)
                        return lax.broadcast_in_dim(x, shape, [axis])

                    reference, *at = (along(ref, own, 0) for ref in row_refs)
                    zero = gpu.layout_cast(jnp.zeros(shape, jnp.float32), gpu.Layout.WGMMA)
                    totals = [zero] * len(sums)
                    for i in range(tiles.classes // tiles.outgoing):
                        here = pl.ds(column * tiles.classes + i * tiles.outgoing, tiles.outgoing)
                        c = gpu.broadcasted_iota(jnp.int32, shape, 1, layout=gpu.Layout.WGMMA) + here.start
                        logits = z[:, i * tiles.outgoing : (i + 1) * tiles.outgoing]
                        for ref in class_refs:
                            logits += along(ref, here, 1)
                        e = jnp.exp2((logits - reference) * math.log2(math.e))
                        e = jnp.where(c == at[0], 0.0, e) if at else e
                        e = jnp.where(c < classes, e, 0.0) if ragged else e
                        new = [e, *(jnp.where(c == a, logits, 0.0) for a in at[1:] or at)]
                        if total:
                            new.append(jnp.where(c < classes, reference - logits, 0.0))
                        totals = [old + x for old, x in zip(totals, new, strict=True)]
                        if keep:
                            # One copy into global memory is under way while the next is made.
                            gpu.wait_smem_to_gmem(1, wait_read_only=True)
                            outgoing[group, i % 2] = e.astype(dtype)
                            gpu.commit_smem()
                            gpu.copy_smem_to_gmem(outgoing.at[group, i % 2], kept.at[own, here])
                    for ref, sum_ in zip(sums, totals, strict=True):
                        ref[column, own] = jnp.sum(sum_, axis=1)

                rows, columns = pl.ds(row * tiles.rows, tiles.rows), pl.ds(column * tiles.classes, tiles.classes)
                of_weight = weight.at[:, columns] if matrix.class_axis else weight.at[columns, :]
                product(step, with_sum)(hidden.at[rows, :], of_weight, allocations=operands)

            if keep:
                gpu.wait_smem_to_gmem(0, wait_read_only=True)

    arguments = hidden, matrix.weight, *by_row, *by_class
    parts = jax.ShapeDtypeStruct((grid[1], grid[0] * tiles.rows), jnp.float32)
    made = gpu.kernel(
        kernel,
        out_type=[jax.ShapeDtypeStruct((count, classes), dtype)] * keep + [parts] * (1 + len(of_atoms) + total),
        grid=(_multiprocessors(),),
        grid_names=("multiprocessor",),
        num_threads=groups + 1,
        thread_name="group",
        compiler_params=gpu.CompilerParams(approx_math=True),
    )(*arguments)
    made = [vary(x, varying(arguments)) for x in made]  # inside shard_map a kernel's results are of no axes
    first, *others = (jnp.sum(x, axis=0)[:count] for x in made[keep:])
    gaps = others.pop() if total else None
    return made[0] if keep else None, Sums(first, jnp.stack(others, axis=-1) if others else None, gaps)
