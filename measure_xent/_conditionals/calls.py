"""Integrals of a user's function of points that calls a head, such as a policy's clipped ratio.

The mean knows its rows' weights. So what the function makes of the head's values is looked at while a block of logits is there:
three matrix products, where values that are given out before take four. For that the function is traced at one point and cut:
what is before the calls is made of all points, and what is after them of a block of rows at a time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal
from jax.sharding import NamedSharding, PartitionSpec

from .._forms.normal_form import NormalForm
from .._forms.null_rows import stand_in
from .._integrands.integrand import Function, Pointwise, at
from .._integrands.rules import rule
from .._kernels.mesh import vary, varying
from .._kernels.null import differentiated, values_at
from .._kernels.partition import explicit_mesh, may_be_spread
from .._kernels.summand import OfFigures, is_smooth
from .._measures.measure import Measure
from .._measures.shapes import sample_axes
from .._strict import custom_jvp
from .heads import over_rows
from .linear_softmax import Call, Operands, recorded

FEW = 64  # numbers that each point may have a copy of
CONSTANT, POINT, ROW = range(3)  # what a value is made of: of nothing that varies; of a point; of the head's row there


class _Cut(NamedTuple):
    """A function of a point that calls a head, in parts."""

    calls: list[Call]
    head: Any
    shared: list[Any]  # by all rows, what each call has
    constants: list[Any]  # that are read at a row
    of_point: Callable  # point ↦ (hidden, what each call has of its own, its indices, what is read at the row)
    of_row: Callable  # (constants, what is read of the point, each call's value) ↦ the value


@rule(Measure, Pointwise)
@rule(Measure, Function)
def integral_of_calls(P: Measure, f: Any) -> Any:
    """∫ f dP of a function that calls a head at its points."""
    if f.shape or not sample_axes(P):
        return NotImplemented
    form, *others = P.forms()
    if others or not isinstance(form, NormalForm) or form.weights is None or form.classes is not None:
        return NotImplemented
    ((points, weights, no_null_atoms),) = form.atom_lists()
    leaves = jax.tree.leaves(points)
    if weights.ndim != 1:
        return NotImplemented
    if {len(x) for x in leaves} != {len(weights)}:
        return NotImplemented
    if not any(x.ndim > 1 and is_smooth(x) for x in leaves):  # none is a hidden state
        return NotImplemented
    cut = _cut(f, jax.tree.map(_one, points))
    if cut is None:
        return NotImplemented
    of_points, replaced = jax.vmap(cut.of_point), lambda absent, points: (stand_in(points, absent),)
    known = of_points(points) if no_null_atoms else values_at(of_points, weights, (points,), replaced)
    hidden, own, indices, (smooth, fixed) = known

    def values(axis_name, axes, logits, shared, own, indices):
        each = zip(cut.calls, shared[0], own[0], indices[0], strict=True)
        found = [call.function(axis_name, axes, logits, *parts) for call, *parts in each]
        return _of_rows(cut, shared, own, indices, found)

    shared, own, indices = (cut.shared, cut.constants), (own, smooth, jnp.ones_like(weights)), (indices, fixed)
    copies = max(call.copies for call in cut.calls)
    how: Any = dict(of_figures=_of_figures(cut), no_null_rows=no_null_atoms, copies=copies)
    return over_rows(P, values, cut.head, hidden, weights, shared, own, indices, **how)


def _one(x: Any) -> Any:
    """The first of an array's rows, which along explicit axes is where any of them is."""
    if explicit_mesh(x) is None:
        return x[0]
    kind = jax.typeof(x)
    place = NamedSharding(kind.sharding.mesh, PartitionSpec(*kind.sharding.spec[1:]))
    return jax.ShapeDtypeStruct(kind.shape[1:], kind.dtype, sharding=place)


def _of_rows(cut: _Cut, shared: Any, own: Any, indices: Any, found: list[Any]) -> Any:
    """The values of a block's rows."""
    (_, constants), (_, smooth, present), (_, fixed) = shared, own, indices
    # A null row, or one that fills a block, may be where the function has no derivative, in what all rows share either. Another
    # stands in for it; where there is none, no derivative is taken.
    there = present != 0
    along = lambda x: there.reshape(-1, *(1,) * (x.ndim - 1))
    known = lambda x: jnp.where(along(x), x, lax.stop_gradient(x[jnp.argmax(there)]))
    *of_point, found = jax.tree.map(known, (smooth, fixed, found))
    constants = jax.tree.map(lambda x: jnp.where(jnp.any(there), x, lax.stop_gradient(x)), constants)
    return jax.vmap(cut.of_row, in_axes=(None, 0, 0))(constants, tuple(of_point), found)


def _of_figures(cut: _Cut) -> OfFigures | None:
    """The same by scaled exponentials, if each call's value is: the atoms of all calls are one list."""
    if any(call.of_figures is None for call in cut.calls):
        return None
    kinds: list[Any] = [call.of_figures for call in cut.calls]

    def lists(shared, own, indices):
        of_calls = zip(kinds, shared[0], own[0], indices[0], strict=True)
        pairs = [None if kind.atoms is None else kind.atoms(*parts) for kind, *parts in of_calls]
        return [None if pair is None else jnp.broadcast_arrays(*pair) for pair in pairs]

    def atoms(shared, own, indices):
        known = [pair for pair in lists(shared, own, indices) if pair is not None]
        return tuple(jnp.concatenate(x, axis=-1) for x in zip(*known, strict=True))

    def values(figures, classes, shared, own, indices):
        found, start = [], 0
        of_calls = zip(kinds, lists(shared, own, indices), shared[0], own[0], indices[0], strict=True)
        for kind, pair, *parts in of_calls:
            end = start + (0 if pair is None else pair[0].shape[-1])
            cut_out = lambda x, start=start, end=end: None if x is None or start == end else x[:, start:end]
            here = {name: cut_out(getattr(figures, name)) for name in ("surprisals", "are_modes")}
            found.append(kind.values(figures._replace(**here), classes, *parts))
            start = end
        return _of_rows(cut, shared, own, indices, found)

    total, entropy, modes = (any(getattr(kind, name) for kind in kinds) for name in ("total", "entropy", "modes"))
    some = any(kind.atoms is not None for kind in kinds)
    return OfFigures(atoms if some else None, total, entropy, modes, values, cut.head.axis_name)


class _Traced(NamedTuple):
    """A function at a point, its head's values replaced by stand-ins: trees of the program's variables."""

    program: Any
    value: Any
    calls: list[Call]
    operands: list[Operands]
    stand_ins: list[Any]


def _cut(f: Any, point: Any) -> _Cut | None:
    """The parts of a function of a point; None where it calls no head, or is not one number, or is not to be cut."""
    try:
        traced = _traced(f, point)
    except Exception:  # whatever it is, the function as it is written has it, too
        return None
    which = _of_one_row(traced)
    if len(which) < len(traced.calls):  # other heads' values, or another row's, are made before
        traced = _traced(f, point, which)
    program, value, calls, operands, stand_ins = traced
    outs, stand_ins = map(jax.tree.leaves, (value, stand_ins))
    effects = {type(effect).__name__ for effect in program.effects} - {"NamedAxisEffect"}  # that of sums over devices
    if not calls or len(outs) != 1 or outs[0].aval.shape or not is_smooth(outs[0].aval) or effects:
        return None
    level = _levels(program.jaxpr, stand_ins)
    at_most = lambda most, *trees: all(level(x) <= most for x in jax.tree.leaves(trees))
    hidden, head, shared, own, indices = operands[0][:2] + tuple(zip(*(call[2:] for call in operands), strict=True))
    large = any(level(x) == CONSTANT and x.aval.size > FEW for x in jax.tree.leaves((own, indices)))
    if (
        large
        or level(outs[0]) != ROW
        or not at_most(CONSTANT, head, shared)
        or not at_most(POINT, hidden, own, indices)
    ):
        return None
    below = lambda kind: lambda x: level(x) < kind or x in stand_ins
    eqns, read = _slice(program.jaxpr, below(ROW), value)
    on_devices = may_be_spread(program.consts) or jax.sharding.get_abstract_mesh().manual_axes
    if on_devices and any(map(_has_programs, eqns)):
        return None
    if any(jnp.issubdtype(x.aval.dtype, jax.dtypes.extended) for x in read):  # keys of random numbers
        return None
    constants, of_point = ([x for x in read if level(x) == kind] for kind in (CONSTANT, POINT))
    smooth, fixed = ([x for x in of_point if is_smooth(x.aval) == kind] for kind in (True, False))
    wanted = hidden, own, indices, (smooth, fixed)
    _, closed = _slice(program.jaxpr, below(POINT), wanted)
    of_points = _part(program.jaxpr, (closed, program.jaxpr.invars), wanted)
    of_row = _part(program.jaxpr, (constants, (smooth, fixed), stand_ins), value)
    once = _part(program.jaxpr, program.jaxpr.constvars, (head, shared, constants, closed))
    head, shared, constants, arrays = once(program.consts)
    of_point = lambda point: of_points((arrays, point))
    return _Cut(calls, head, shared, constants, of_point, lambda *known: of_row(known))


def _traced(f: Any, point: Any, which: set[int] | None = None) -> _Traced:
    calls: list[Call] = []

    def traced(point):
        with recorded(which) as seen:
            value = at(f, point)
        taken = [call for call in seen if call is not None]
        calls.extend(call for call, _, _ in taken)
        return value, [operands for _, operands, _ in taken], [stand_in for *_, stand_in in taken]

    program, shapes = jax.make_jaxpr(traced, return_shape=True)(point)
    value, operands, stand_ins = jax.tree.unflatten(jax.tree.structure(shapes), program.jaxpr.outvars)
    return _Traced(program, value, calls, operands, stand_ins)


def _of_one_row(traced: _Traced) -> set[int]:
    """The calls of the head's row that is looked at: the first of those in whose weight a derivative is taken, or of all."""
    jaxpr = traced.program.jaxpr
    level, rows = _levels(jaxpr, jax.tree.leaves(traced.stand_ins)), {}
    for i, operands in enumerate(traced.operands):
        leaves, tree = jax.tree.flatten((operands.hidden, operands.head))
        if level(operands.head.weight) == CONSTANT:
            rows.setdefault((tree, *map(id, leaves)), set()).add(i)
    if len(rows) < 2:
        return next(iter(rows.values()), set())
    weights = _part(jaxpr, jaxpr.constvars, [traced.operands[min(which)].head.weight for which in rows.values()])
    moving = _moving(weights(traced.program.consts))
    return list(rows.values())[moving.index(any(moving))]


def _moving(arrays: list[Any]) -> list[bool]:
    """In which of the arrays a derivative is taken, where that can be told: not inside of a ``jit`` whose derivative it is."""
    moving = [False] * len(arrays)
    probe = custom_jvp(lambda arrays: jnp.zeros(()))

    def jvp(_, tangents):
        moving[:] = [differentiated(tangent) is not None for tangent in tangents[0]]
        return jnp.zeros(()), jnp.zeros(())

    probe.defjvp(jvp, symbolic_zeros=True)
    probe(arrays)
    return moving


def _levels(jaxpr: Any, stand_ins: list[Any]) -> Callable[[Any], int]:
    """What each variable of a program is made of."""
    levels = dict.fromkeys(jaxpr.constvars, CONSTANT) | dict.fromkeys(jaxpr.invars, POINT)
    level = lambda x: CONSTANT if isinstance(x, Literal) else levels[x]
    for eqn in jaxpr.eqns:
        made_of = max(map(level, eqn.invars), default=CONSTANT)
        levels |= {x: ROW if x in stand_ins else made_of for x in eqn.outvars}
    return level


def _part(jaxpr: Any, given: Any, wanted: Any) -> Callable:
    """The part of a program that makes what is wanted of what is given, as a function of values in its place."""
    known = jax.tree.leaves(given)
    eqns, _ = _slice(jaxpr, set(known).__contains__, wanted)
    names = jaxpr.debug_info.with_unknown_names()
    part = jaxpr.replace(constvars=[], invars=known, outvars=jax.tree.leaves(wanted), eqns=eqns, debug_info=names)
    tree = jax.tree.structure(wanted)
    return lambda values: tree.unflatten(_evaluated(part, [], jax.tree.leaves(values)))


def _evaluated(jaxpr: Any, consts: list[Any], args: list[Any]) -> list[Any]:
    """A program's results. What JAX itself does of a program is for devices as they were when it was traced; a block of rows is
    on one of them, where constants do not vary as rows do."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    of_literal = lambda x: jnp.asarray(x.val, x.aval.dtype)  # else a number of Python's, which a head's arrays are not
    read = lambda x: of_literal(x) if isinstance(x, Literal) else known[x]
    for eqn in jaxpr.eqns:
        operands = list(map(read, eqn.invars))
        if _is_inlined(eqn):
            results = _evaluated(eqn.params["jaxpr"].jaxpr, eqn.params["jaxpr"].consts, operands)
        elif eqn.primitive.name == "pvary":  # what may vary already
            results = vary(operands[0], frozenset(eqn.params["axes"]))
        else:
            operands = [vary(x, varying(operands)) for x in operands]
            results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
        known |= zip(eqn.outvars, results if eqn.primitive.multiple_results else [results], strict=True)
    return list(map(read, jaxpr.outvars))


def _is_inlined(eqn: Any) -> bool:
    return eqn.primitive.name in ("jit", "pjit")


def _has_programs(eqn: Any) -> bool:
    """Whether programs are in it that are for the devices that they were traced for, such as a loop's."""
    if _is_inlined(eqn):
        return any(map(_has_programs, eqn.params["jaxpr"].eqns))
    return any(hasattr(getattr(x, "jaxpr", x), "eqns") for x in jax.tree.leaves(list(eqn.params.values())))


def _slice(jaxpr: Any, is_given: Callable, wanted: Any) -> tuple[list[Any], list[Any]]:
    """(The equations that make what is wanted of what is given, what is given that they read)."""
    variables = lambda of: dict.fromkeys(x for x in of if not isinstance(x, Literal))
    read, eqns = variables(jax.tree.leaves(wanted)), []
    for eqn in reversed(jaxpr.eqns):
        if any(x in read and not is_given(x) for x in eqn.outvars):
            eqns.append(eqn)
            read |= variables(eqn.invars)
    return eqns[::-1], list(filter(is_given, read))
