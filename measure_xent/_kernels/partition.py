"""Functions of sharded arrays under plain ``jit``: each device does its share, whatever kind of mesh axes the arrays are on.

A kernel is a loop over blocks, and a compiler that partitions programs takes a loop for one step after the other: every device
would do all of it. So a kernel says which axes of its arrays are rows and which are classes, and is written for a device's
part of both, as ``shard_map`` calls it. Along explicit mesh axes the arrays' types say how they are sharded; along automatic
ones that is known when the program is partitioned, and the kernel is traced then, but on TPUs, whose compiler asks for no such
thing. On one device the program is the kernel's.
"""

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray, Tracer, eval_jaxpr
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from .._strict import promoting
from .layout import ROWS, Dims, Layout, are_rows, of_equal_length, spec
from .mesh import vary

Local = Callable[[dict[str, tuple[str, ...]]], Callable]


def partitioned(local: Local, operands: PyTree[Array], dims: PyTree, out_dims: Callable) -> PyTree[Array]:
    """``local({})(*operands)``, each device of a mesh doing its share.

    Args:
        local: of the mesh axes that named axes are spread over, a function of a device's part of the operands, which gives
            what is of the device's own rows and of all classes.
        operands: a tuple of pytrees of arrays.
        dims: the same with ``Dims`` in the place of arrays.
        out_dims: of the result's shapes, ``Dims`` in their place; without rows, the result is the sum over all rows.
    """
    leaves, tree = jax.tree.flatten(jax.tree.map(jnp.asarray, operands))
    mesh = explicit_mesh(leaves)  # of one device, too, whose types are no others
    if mesh is None and (jax.sharding.get_abstract_mesh().manual_axes or not may_be_spread(leaves)):
        return local({})(*operands)

    def flat(axes):
        return lambda *leaves: jax.tree.leaves(local(axes)(*tree.unflatten(leaves)))

    def kernel(result):
        names = [*tree.flatten_up_to(dims), *jax.tree.structure(result).flatten_up_to(out_dims(result))]
        named = of_equal_length([x.shape for x in (*leaves, *jax.tree.leaves(result))], names)
        return _Kernel(flat, tuple(named[: len(leaves)]), tuple(named[len(leaves) :]))

    if mesh is not None:
        result = jax.eval_shape(local({}), *jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), operands))
        out = kernel(result).along_explicit_axes(mesh, leaves)
    else:
        program, result = jax.make_jaxpr(promoting(local({})), return_shape=True)(*operands)
        out = kernel(result).along_automatic_axes(program, leaves)
    return jax.tree.structure(result).unflatten(out)


def may_be_spread(arrays):
    """Whether arrays may be on several devices. Their types know a mesh that they are on, but not one that ``jit`` names."""
    meshes = (jax.sharding.get_abstract_mesh(), *(jax.typeof(x).sharding.mesh for x in arrays))
    return any(mesh.size > 1 for mesh in meshes if not mesh.empty) or jax.device_count() > 1


def explicit_mesh(arrays: PyTree[Array]) -> Any:
    """The mesh of explicit axes that some array is on, or None. Inside shard_map a device has its part already."""
    meshes = (jax.typeof(x).sharding.mesh for x in jax.tree.leaves(arrays))
    return next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types and not mesh.manual_axes), None)


def placed_as(x: Array, like: Any) -> Array:
    """x where another array, or what is of its type, is along explicit axes; a kernel may have it elsewhere."""
    kind = like if isinstance(like, ShapedArray) else jax.typeof(like)
    mesh = kind.sharding.mesh  # type: ignore[attr-defined]
    return jax.reshard(x, kind.sharding) if AxisType.Explicit in mesh.axis_types and not mesh.manual_axes else x  # type: ignore[attr-defined]


def take_one(x: Array, index: Array, axis: int) -> Array:
    """``jnp.take_along_axis`` of one element, along an axis that an explicit mesh axis may split: a sum of one term there."""
    if explicit_mesh(x) is None:
        return jnp.take_along_axis(x, index, axis=axis)
    here = lax.broadcasted_iota(index.dtype, x.shape, axis) == index
    return jnp.sum(jnp.where(here, x, jnp.zeros((), x.dtype)), axis=axis, keepdims=True, dtype=x.dtype)


def unsplit(x: Array) -> Array:
    """x with a last axis that no explicit mesh axis splits, for what is not written for a part of the classes."""
    if (mesh := explicit_mesh(x)) is None:
        return x
    return jax.reshard(x, NamedSharding(mesh, PartitionSpec(*jax.typeof(x).sharding.spec[:-1], None)))


@dataclasses.dataclass(frozen=True, eq=False)
class _Whole:
    """A program as a function of its operands and of what it closes over."""

    program: Any

    def __call__(self, *arrays: Array) -> tuple[Array, ...]:
        n = len(self.program.jaxpr.invars)
        return tuple(eval_jaxpr(self.program.jaxpr, arrays[n:], *arrays[:n]))


def _with_precision_of_now(function: Callable) -> Callable:
    """The function under the setting for matrix products that its call has been traced under, however late it is called."""
    precision = jax.default_matmul_precision.value

    def later(*args):
        with jax.default_matmul_precision(precision):
            return function(*args)

    return later


@dataclasses.dataclass(frozen=True, eq=False)
class _Kernel:
    """A function of lists of arrays, and the names of their axes."""

    local: Local
    dims: tuple[Dims, ...]
    out_dims: tuple[Dims, ...]

    def __call__(self, *leaves: Array) -> list[Array]:
        return self.along_automatic_axes(jax.make_jaxpr(promoting(self.local({})))(*leaves), leaves)

    def along_explicit_axes(self, mesh: Any, leaves: Sequence[Array]) -> list[Array]:
        layout = Layout.of(mesh, [jax.typeof(x).sharding.spec for x in leaves], self.dims, [x.shape for x in leaves])
        placed = [
            jax.reshard(x, NamedSharding(mesh, spec(entries)))
            for x, entries in zip(leaves, layout.operands, strict=True)
        ]
        return self.on_devices(layout, frozenset(mesh.explicit_axes))(*placed)

    def along_automatic_axes(self, program: Any, leaves: Sequence[Array]) -> list[Array]:
        """The program, which is the function of all rows and classes, or each device's share of it when it is partitioned."""
        # What it closes over cannot be had then, and what newer JAX lowers late (ldexp, frexp) is not lowered in a callback.
        if any(isinstance(x, Tracer) for x in program.consts) or getattr(program.jaxpr, "is_high", False):
            return eval_jaxpr(program.jaxpr, program.consts, *leaves)
        consts, n = [jnp.asarray(x) for x in program.consts], len(leaves)
        kernel = dataclasses.replace(
            self,
            local=lambda axes: lambda *arrays: self.local(axes)(*arrays[:n]),
            dims=(*self.dims, *((None,) * x.ndim for x in consts)),
        )
        whole = _Whole(program)
        function = custom_partitioning(whole)
        function.def_partition(
            _with_precision_of_now(promoting(kernel.partition)),
            infer_sharding_from_operands=kernel.result_shardings,
            sharding_rule=kernel.sharding_rule(),
        )
        call = jax.make_jaxpr(function)(*leaves, *consts)
        return _partitioned_p.bind(*leaves, *consts, call=call, whole=whole, kernel=kernel)

    def partition(self, mesh, operands, results):
        """As ``custom_partitioning`` asks: (mesh, the program of one device, shardings of the results, of the operands)."""
        if mesh.empty:  # nothing that the program is given is on a mesh
            everywhere = NamedSharding(jax.sharding.get_mesh(), PartitionSpec())
            return (
                mesh,
                lambda *arrays: tuple(self.local({})(*arrays)),
                *((everywhere,) * len(x) for x in (results, operands)),
            )
        layout = self.layout(mesh, operands)
        program: Any = jax.make_jaxpr(self.on_devices(layout, frozenset(mesh.axis_names)))(
            *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands)
        )
        # Traced by shard_map, for its types say which sums over devices a derivative takes.
        eqn = next(eqn for eqn in program.jaxpr.eqns if eqn.primitive.name == "shard_map")
        body = eqn.params["jaxpr"]
        body = body if hasattr(body, "consts") else type(program)(body, ())
        known = dict(zip(program.jaxpr.constvars, program.consts, strict=True))

        def on_one(*arrays):
            where = known | dict(zip(program.jaxpr.invars, arrays, strict=True))
            return _on_one_device_p.bind(*(where[x] for x in eqn.invars), body=body)

        placed = tuple(NamedSharding(mesh, spec(entries)) for entries in layout.operands)
        return mesh, on_one, self.result_shardings(mesh, operands, results), placed

    def result_shardings(self, mesh, operands, results):
        del results
        layout = self.layout(mesh, operands)
        return tuple(NamedSharding(mesh, spec(layout.result(names))) for names in self.out_dims)

    def layout(self, mesh, operands) -> Layout:
        specs = [getattr(x.sharding, "spec", None) or PartitionSpec() for x in operands]
        return Layout.of(mesh, specs, self.dims, [x.shape for x in operands])

    def on_devices(self, layout: Layout, axis_names: frozenset[str]) -> Callable:
        """The function of whole arrays that each device of a mesh does its share of."""

        def on_device(*arrays):
            out = self.local(layout.axes)(*layout.gather(arrays))
            return [layout.sum(x, names) for x, names in zip(out, self.out_dims, strict=True)]

        return jax.shard_map(
            promoting(on_device),
            mesh=layout.mesh,
            in_specs=tuple(map(spec, layout.operands)),
            out_specs=[spec(layout.result(names)) for names in self.out_dims],
            axis_names=axis_names,
        )

    def sharding_rule(self) -> str:
        """How arrays' axes go together, as ``custom_partitioning`` reads it."""
        factors, fresh = {}, itertools.count()

        def factor(name):
            return f"x{next(fresh)}" if name is None else factors.setdefault(name, f"f{len(factors)}")

        side = lambda dims: ", ".join(" ".join(map(factor, names)) for names in dims)
        return f"{side(self.dims)} -> {side(self.out_dims)}"


_partitioned_p = Primitive("partitioned")
_partitioned_p.multiple_results = True
_partitioned_p.def_abstract_eval(lambda *arrays, call, **_: [x.aval for x in call.jaxpr.outvars])
_partitioned_p.def_impl(
    lambda *arrays, call, **_: jax.jit(functools.partial(eval_jaxpr, call.jaxpr, call.consts))(*arrays)
)


@functools.partial(mlir.register_lowering, _partitioned_p)
def _lower(ctx, *arrays, call, whole, kernel):
    if ctx.module_context.lowering_parameters.for_export:  # another process cannot call back to this one
        return _lower_whole(ctx, *arrays, call=call, whole=whole, kernel=kernel)
    # To a persistent cache of programs the call is its name alone.
    name = f"partitioned_{hashlib.sha256(str(whole.program).encode()).hexdigest()[:16]}"
    return mlir.core_call_lowering(ctx, *arrays, name=name, call_jaxpr=call)


def _lower_whole(ctx, *arrays, call, whole, kernel):
    """As the compiler partitions it, which takes a loop for one step after the other: right, but all rows on each device."""
    del call, kernel
    return mlir.lower_fun(whole, multiple_results=True)(ctx, *arrays)


# The TPU's compiler knows no custom partitioning (https://github.com/jax-ml/jax/issues/38196).
mlir.register_lowering(_partitioned_p, _lower_whole, platform="tpu")


# A device's program with the types that shard_map gave it.
_on_one_device_p = Primitive("on_one_device")
_on_one_device_p.multiple_results = True
_on_one_device_p.def_abstract_eval(lambda *_, body: [ShapedArray(x.shape, x.dtype) for x in body.out_avals])
mlir.register_lowering(
    _on_one_device_p,
    lambda ctx, *arrays, body: mlir.core_call_lowering(ctx, *arrays, name="on_one_device", call_jaxpr=body),
)


@functools.partial(ad.primitive_jvps.__setitem__, _partitioned_p)
def _jvp(primals, tangents, *, kernel, **program):
    out = _partitioned_p.bind(*primals, kernel=kernel, **program)
    moving = [i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero)]
    smooth = [i for i, x in enumerate(out) if jnp.issubdtype(x.dtype, jnp.inexact)]
    n = len(primals)

    def along(axes):
        def tangent(*arrays):
            primals = list(arrays[:n])

            def function(*moved):
                inputs = list(primals)
                for i, x in zip(moving, moved, strict=True):
                    inputs[i] = x
                result = kernel.local(axes)(*inputs)
                return [result[i] for i in smooth]

            return jax.jvp(function, tuple(primals[i] for i in moving), arrays[n:])[1]

        return tangent

    derivative = _Kernel(
        along, (*kernel.dims, *(kernel.dims[i] for i in moving)), tuple(kernel.out_dims[i] for i in smooth)
    )
    known = dict(zip(smooth, derivative(*primals, *(tangents[i] for i in moving)), strict=True))
    return out, [known.get(i, ad.Zero(jax.typeof(x).to_tangent_aval())) for i, x in enumerate(out)]


@functools.partial(ad.primitive_transposes.__setitem__, _partitioned_p)
def _transpose(cotangents, *operands, kernel, **program):
    del program
    linear = [i for i, x in enumerate(operands) if ad.is_undefined_primal(x)]
    known = [i for i in range(len(operands)) if i not in linear]
    present = [i for i, ct in enumerate(cotangents) if not isinstance(ct, ad.Zero)]
    lengths = [operands[i].aval for i in linear]

    def back(axes):
        def pullback(*arrays):
            residuals, cotangents = arrays[: len(known)], arrays[len(known) :]

            def function(*moved):
                inputs = dict(zip(known, residuals, strict=True)) | dict(zip(linear, moved, strict=True))
                result = kernel.local(axes)(*(inputs[i] for i in range(len(operands))))
                return [result[i] for i in present]

            at = [_part(aval, kernel.dims[i], axes) for aval, i in zip(lengths, linear, strict=True)]
            return jax.vjp(function, *at)[1](list(cotangents))

        return pullback

    transposed = _Kernel(
        back,
        (*(kernel.dims[i] for i in known), *(kernel.out_dims[i] for i in present)),
        tuple(kernel.dims[i] for i in linear),
    )
    found = transposed(*(operands[i] for i in known), *(cotangents[i] for i in present))
    found = dict(zip(linear, found, strict=True))
    return [found.get(i) for i in range(len(operands))]


def _part(aval, names, axes):
    """Zeros of the shape and the types of a device's part of an array."""
    spread = [axes.get(name, ()) for name in names]
    shape = [n // math.prod(map(lax.axis_size, entry)) for n, entry in zip(aval.shape, spread, strict=True)]
    rows = [entry for name, entry in axes.items() if are_rows(name)]
    return vary(jnp.zeros(shape, aval.dtype), frozenset(itertools.chain(*spread, *rows)))


@functools.partial(batching.primitive_batchers.__setitem__, _partitioned_p)
def _batch(arrays, batched, *, kernel, **program):
    del program
    name = f"{ROWS} of batch {sum(map(are_rows, set(itertools.chain(*kernel.dims))))}"
    mapped = [0 if axis is not None else None for axis in batched]
    arrays = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(arrays, batched, strict=True)]
    of_batch = _Kernel(
        lambda axes: jax.vmap(kernel.local(axes), in_axes=mapped),
        tuple(d if axis is None else (name, *d) for d, axis in zip(kernel.dims, batched, strict=True)),
        tuple((name, *d) for d in kernel.out_dims),
    )
    out = of_batch(*arrays)
    return out, [0] * len(out)
