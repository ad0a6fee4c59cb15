"""Outside of ``jit`` a call is one compiled program, and a call that is alike meets it again.

What a program is made for is the structure of the arguments; arrays are operands, and JAX's that functions close over are, too.
A function is known by its code, its defaults, what it closes over and the globals that it reads, as they are at the call: one
made anew is the same, and one of which anything has changed is another. Only what stays as it is, or can be told apart, counts.
Where anything else is met, such as an object with fields that may change, or where no program can be made, as of a function
that asks for an array's value, the call runs as it is written.
"""

import contextlib
import dis
import enum
import functools
import sys
import sysconfig
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.core
import numpy as np
from jax.extend.core import find_top_trace

from ._strict import at_home, seen_by_user

_F = TypeVar("_F", bound=Callable)
_PLAIN = (bool, int, float, complex, str, bytes, slice, range, type(None), type(...))
_READS_MORE = {"eval", "exec", "globals", "locals", "vars", "__import__"}  # than a look at the code tells
# Not in a program: what makes a node, and what compares and shows it.
_NOT_CALLED = {
    "__init__",
    "__post_init__",
    "__repr__",
    "__eq__",
    "__hash__",
    "__setattr__",
    "__delattr__",
    "__replace__",
}
_FUNCTIONS = types.FunctionType | property | staticmethod | classmethod
LARGEST = 10_000  # nodes, and bytes of NumPy's arrays: more would take longer to compare than is saved
_PRIMAL = {"JVPTracer": "primal", "LinearizeTracer": "primal", "BatchTracer": "val"}
_INSTALLED = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}


def program(function: _F, numbers: bool = False) -> _F:
    """Decorator: outside of any trace, calls are compiled, one program for all that are alike.

    The function gives arrays, and is one of its arguments' arrays and structure alone; with ``numbers`` those that it is called
    with are operands, too.
    """
    call = lambda structure, *operands: structure.call(function, operands)
    compiled = jax.jit(call, static_argnums=0, inline=True)
    small = jax.jit(call, static_argnums=0, inline=True, compiler_options={"xla_backend_optimization_level": 0})

    @functools.wraps(function)
    def called(*args, **kwargs):
        if _thread.tracing:
            return function(*args, **kwargs)
        try:
            structure, operands = _structure_of((args, kwargs), numbers)
        except (_Unknown, RecursionError):
            return function(*args, **kwargs)
        if not all(map(_has_value, operands)):
            return _traced(function, args, kwargs)
        alike = function, structure, *((np.shape(x), getattr(x, "dtype", type(x))) for x in operands)
        if alike not in _REFUSED:
            try:
                return (small if _is_small(alike, compiled, structure, operands) else compiled)(structure, *operands)
            except Exception:  # whatever it is, the call as it is written has it too, or needs no program
                _remember(_REFUSED, alike, True)
        return function(*args, **kwargs)

    return called  # type: ignore[return-value]


# By function, structure, shapes and dtypes: the calls that have no program, and whether the others' are small.
_REFUSED: dict[Any, bool] = {}
_SMALL: dict[Any, bool] = {}
SMALL = 1 << 14  # numbers in each array of a program that a CPU runs in less time than LLVM takes to optimise it


class Parts(NamedTuple):
    """What an object is made of: its arrays, those that functions in it close over among them, what makes it of others, and
    whether there is a user's function in it."""

    arrays: list[Any]
    make: Callable[[Any], Any]
    of_user: bool


def parts_of(x: Any) -> Parts | None:
    """The parts of an object, or None where nobody can say what a function in it reads."""
    walk = _Walk()
    try:
        at = walk(x)
    except (_Unknown, RecursionError):
        return None
    nodes = walk.nodes

    def make(operands: Any) -> Any:
        made: list[Any] = []
        for node in nodes:
            made.append(node.make(made, operands))
        return made[at]

    return Parts(list(map(jax.numpy.asarray, walk.operands)), make, walk.of_user)


def _remember(known: dict, key: Any, value: bool) -> None:
    known[key] = value
    if len(known) > 1000:
        known.pop(next(iter(known)), None)


def _is_small(call: Any, compiled: Any, structure: "_Structure", operands: list) -> bool:
    """Whether on a CPU a call is worth no more than a quick look of the compiler's: half of the time until it first answers."""
    # What is inside of a program is compiled with it.
    if type(find_top_trace(())).__name__ != "EvalTrace" or jax.default_backend() != "cpu":
        return False
    if any(isinstance(x, jax.core.Tracer) for x in operands):
        return False
    small = _SMALL.get(call)
    if small is None:
        program = compiled.trace(structure, *operands).jaxpr
        small = all(x.aval.size <= SMALL for eqn in equations(program) for x in (*eqn.invars, *eqn.outvars))
        _remember(_SMALL, call, small)
    return small


def equations(jaxpr: Any) -> Iterator[Any]:
    """All of a program's equations, those of programs in it, too."""
    for eqn in jaxpr.eqns:
        yield eqn
        for x in jax.tree.leaves(list(eqn.params.values())):
            if hasattr(inner := getattr(x, "jaxpr", x), "eqns"):
                yield from equations(inner)


class _Thread(threading.local):
    tracing = False  # a program, of which whatever is called is a part


_thread = _Thread()


def _traced(function: Callable, args: Any, kwargs: Any) -> Any:
    before, _thread.tracing = _thread.tracing, True
    try:
        return function(*args, **kwargs)
    finally:
        _thread.tracing = before


class _Unknown(Exception):
    """Nobody can say whether the object is what it was."""


class _Same:
    """An object that is equal to itself alone."""

    def __init__(self, x: Any):
        self.x = x

    def __hash__(self):
        return id(self.x)

    def __eq__(self, other):
        return isinstance(other, _Same) and self.x is other.x


class _Structure:
    """What a call is but for its operands: a list of nodes, the last one the arguments. Nodes that are one stay one."""

    def __init__(self, nodes: list["_Node"], settings: Any):
        self.nodes, self.key = nodes, (tuple(node.key for node in nodes), settings)
        self.hash = hash(self.key)

    def __hash__(self):
        return self.hash

    def __eq__(self, other):
        return isinstance(other, _Structure) and self.hash == other.hash and self.key == other.key

    def call(self, function: Callable, operands: tuple) -> Any:
        made: list[Any] = []
        for node in self.nodes:
            made.append(node.make(made, operands))
        return _traced(function, *made[-1])


class _Node:
    """A part of the arguments: ``key`` says what it is, ``make`` makes it of the nodes before it and of operands."""

    def __init__(self, key: Any, make: Callable[[list, tuple], Any], operands: bool):
        self.key, self.make, self.operands = key, make, operands


def depend_on(function: Callable) -> None:
    """Has programs be what a function is, too, that any call may come to, as a user's rule is."""
    if not _is_installed(function):
        _DEPENDENCIES.append(function)


_DEPENDENCIES: list[Callable] = []


def _structure_of(arguments: Any, numbers: bool) -> tuple[_Structure, list]:
    walk = _Walk()
    for function in _DEPENDENCIES:
        walk.as_is(function)
    walk.ours = numbers
    walk(arguments)
    try:
        return _Structure(walk.nodes, seen_by_user()), walk.operands
    except TypeError:  # static fields that have no hash
        raise _Unknown from None


class _Walk:
    """Makes nodes of an object, those it is made of before itself."""

    def __init__(self):
        self.nodes: list[_Node] = []
        self.operands: list[Any] = []
        self.found: dict[tuple[int, bool], tuple[Any, int]] = {}  # an id's object is kept, so that no other gets it
        self.open = 0  # how many objects it is in, of which those that are found again are numbered from −1 down
        self.fixed = 0  # in what cannot be made anew, as classes and modules, arrays are no operands
        self.codes: list[types.CodeType] = []  # of the functions that lead to where it is
        self.of_user = False  # whether a function is a user's
        self.ours = False  # in a node of this package, numbers are operands, too

    def __call__(self, x: Any) -> int:
        """The number of x's node."""
        if len(self.nodes) > LARGEST:
            raise _Unknown
        number = isinstance(x, int | float | complex | np.number) and not isinstance(x, bool)
        if number and self.ours and not self.fixed:
            return self.array(x) if isinstance(x, np.number) else self.operand(x)
        if type(x) in _PLAIN or isinstance(x, np.generic | np.dtype | enum.Enum):
            return self.add(x, (type(x), repr(x) if isinstance(x, float | complex | slice | np.generic) else x), ())
        if isinstance(x, types.ModuleType):
            return self.module(x)
        place = id(x), self.fixed > 0
        if place in self.found:
            _, i = self.found[place]
            if i < 0 and not self.fixed:
                raise _Unknown  # what holds itself cannot be made in any order
            return i
        self.open += 1
        self.found[place] = x, -self.open
        self.found[place] = x, self.node(x)
        self.open -= 1
        return self.found[place][1]

    def add(self, x: Any, key: Any, children: Any, make: Callable | None = None) -> int:
        children = tuple(children)
        operands = any(self.nodes[i].operands for i in children if i >= 0)
        if make is None or not operands:
            make = lambda made, given: x  # as it is: what a function appends to a list of the user's is there
        self.nodes.append(_Node((key, children), make, operands))
        return len(self.nodes) - 1

    def node(self, x: Any) -> int:
        if isinstance(x, jax.Array | np.ndarray):
            return self.array(x)
        if isinstance(x, types.FunctionType):
            return self.function(x)
        if isinstance(x, types.MethodType):
            children = self(x.__func__), self(x.__self__)
            return self.add(x, "method", children, lambda made, _: types.MethodType(*(made[i] for i in children)))
        if isinstance(x, functools.partial) and type(x) in (functools.partial, jax.tree_util.Partial):
            with self.numbers(at_home(x.func)):
                children, kind = [self(x.func), self(x.args), self(x.keywords)], type(x)

            def make(made, _):
                f, args, keywords = (made[i] for i in children)
                return kind(f, *args, **keywords)

            return self.add(x, kind, children, make)
        if isinstance(x, type):
            return self.add(x, _Same(x), () if _is_installed(x) else self.members(x))
        if type(x) is dict:
            return self.dictionary(x)
        if isinstance(x, types.BuiltinFunctionType) and isinstance(x.__self__, types.ModuleType | type(None)):
            return self.add(x, _Same(x), ())
        if isinstance(x, np.ufunc) or _is_of_jax(x):
            return self.add(x, _Same(x), ())
        if isinstance(x, types.BuiltinFunctionType) or jax.tree_util.all_leaves([x]):
            raise _Unknown
        return self.tree(x)

    @contextlib.contextmanager
    def numbers(self, ours: bool):
        """In a node of this package numbers are operands."""
        before, self.ours = self.ours, ours
        yield
        self.ours = before

    def dictionary(self, x: dict) -> int:
        """With its order, which a pytree's forgets."""
        children, names = [self(value) for value in x.values()], list(x)
        keys = [self(name) for name in names]
        make = lambda made, _: dict(zip(names, (made[i] for i in children), strict=True))
        return self.add(x, (dict, len(names)), [*children, *keys], make)

    def as_is(self, x: Any) -> int:
        self.fixed += 1
        try:
            return self(x)
        finally:
            self.fixed -= 1

    def array(self, x: Any) -> int:
        if isinstance(x, jax.Array):
            if not self.fixed:
                return self.operand(x)
            if isinstance(x, jax.core.Tracer):
                raise _Unknown
            return self.add(x, _Same(x), ())
        if x.dtype.kind not in "biufc" and x.dtype.name not in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
            raise _Unknown
        if self.fixed or (self.codes and not self.ours):
            # In a user's function it is NumPy's, with NumPy's arithmetic.
            if type(x) is not np.ndarray or x.nbytes > LARGEST:
                raise _Unknown
            return self.add(x.copy(), (np.ndarray, x.shape, x.dtype, x.tobytes()), ())
        if x.dtype.itemsize > 8 and x.dtype.kind != "c":
            raise _Unknown
        if x.dtype.kind in "iu" and x.size:
            held = np.iinfo(jax.dtypes.canonicalize_dtype(x.dtype))
            if not held.min <= x.min() <= x.max() <= held.max:
                raise _Unknown  # as operands they would wrap
        return self.operand(x)

    def operand(self, x: Any) -> int:
        at = len(self.operands)
        self.operands.append(x)
        self.nodes.append(_Node((), lambda _, operands: operands[at], True))
        return len(self.nodes) - 1

    def tree(self, x: Any) -> int:
        parts, tree = jax.tree.flatten(x, is_leaf=lambda part: part is not x)
        with self.numbers(self.ours if type(x) in (tuple, list) else at_home(type(x))):
            children = [self(part) for part in parts]
        if not _is_installed(type(x)):
            children = [*children, self.as_is(type(x))]
        n = len(parts)
        return self.add(x, tree, children, lambda made, _: tree.unflatten([made[i] for i in children[:n]]))

    def function(self, f: types.FunctionType) -> int:
        installed = _is_installed(f)
        self.of_user |= not installed
        if not installed and (_does_more(f.__code__) or set(vars(f)) - {"__wrapped__"}):
            raise _Unknown
        names = () if installed else [name for name in _globals_of(f.__code__) if name in f.__globals__]
        self.codes.append(f.__code__)
        with self.numbers(False):
            cells = [self.cell(cell) for cell in f.__closure__ or ()]
            values = [self(f.__globals__[name]) for name in names]
            defaults = self(f.__defaults__), self(f.__kwdefaults__)
        self.codes.pop()
        children = [*defaults, *cells, *values]

        # Of f only what is no array: a program that is kept keeps none.
        code, space, name, module = f.__code__, f.__globals__, f.__name__, f.__module__
        texts = f.__doc__, f.__qualname__

        def make(made, _):
            own = {**space, **{name: made[i] for name, i in zip(names, values, strict=True)}}
            new = types.FunctionType(code, own, name, made[defaults[0]], tuple(types.CellType(made[i]) for i in cells))
            new.__kwdefaults__, new.__module__ = made[defaults[1]], module
            new.__doc__, new.__qualname__ = texts
            return new

        return self.add(f, (code, module, tuple(names)), children, make)

    def cell(self, cell: types.CellType) -> int:
        try:
            return self(cell.cell_contents)
        except ValueError:  # not filled yet
            raise _Unknown from None

    def module(self, x: types.ModuleType) -> int:
        """Of a user's module its constants, and what the functions that lead here may read of it."""
        if _is_installed(x):
            return self.add(x, _Same(x), ())
        read = frozenset().union(*map(_names_of, self.codes))
        names = [name for name, value in vars(x).items() if name in read or type(value) in _PLAIN]
        return self.add(x, (_Same(x), tuple(names)), [self.as_is(vars(x)[name]) for name in names])

    def members(self, cls: type) -> list[int]:
        """What a user's class does: its own functions, and those of the user's classes that it is made of."""
        if not _is_installed(type(cls)):
            raise _Unknown
        children = [self.as_is(base) for base in cls.__bases__ if not _is_installed(base)]
        for name, member in vars(cls).items():
            of_python = name in ("_abc_impl", "_settled") or (name[:2] == "__" and not isinstance(member, _FUNCTIONS))
            if of_python or name in _NOT_CALLED:
                continue
            for f in (member.fget, member.fset) if isinstance(member, property) else (member,):
                if isinstance(f, types.GetSetDescriptorType | types.MemberDescriptorType):
                    continue
                children.append(self.as_is(f.__func__ if isinstance(f, staticmethod | classmethod) else f))
        return children


def _is_of_jax(x: Any) -> bool:
    """Whether x is a function of JAX's own, or of this package, that is compiled or has rules of derivatives."""
    if type(x).__module__.partition(".")[0] not in ("jax", "jaxlib", __name__.partition(".")[0]) or not callable(x):
        return False
    wrapped = getattr(x, "__wrapped__", None)
    known = isinstance(wrapped, types.FunctionType) and wrapped.__closure__ is None and _is_installed(wrapped)
    return known or getattr(jax.numpy, getattr(x, "__name__", ""), None) is x


def _has_value(x: Any) -> bool:
    """Whether an operand has a value, perhaps with a derivative or one of a batch, and is not a name in some program."""
    while isinstance(x, jax.core.Tracer):
        x = getattr(x, _PRIMAL.get(type(x).__name__, ""), None)
        if x is None:
            return False
    return True


@functools.cache
def _globals_of(code: types.CodeType) -> tuple[str, ...]:
    own = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = (name for x in code.co_consts if isinstance(x, types.CodeType) for name in _globals_of(x))
    return tuple(sorted(own.union(inner)))


@functools.cache
def _does_more(code: types.CodeType) -> bool:
    """Whether a function reads what its code does not tell, or writes to what is not its own."""
    for i in dis.get_instructions(code):
        if i.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") or (
            i.opname == "STORE_DEREF" and i.argval in code.co_freevars
        ):
            return True
        if i.opname == "IMPORT_NAME" and not _module_is_installed(i.argval or "."):
            return True
    inner = any(_does_more(x) for x in code.co_consts if isinstance(x, types.CodeType))
    return inner or not _READS_MORE.isdisjoint(code.co_names)


@functools.cache
def _names_of(code: types.CodeType) -> frozenset[str]:
    inner = (_names_of(x) for x in code.co_consts if isinstance(x, types.CodeType))
    return frozenset(code.co_names).union(*inner)


def _is_installed(x: Any) -> bool:
    """Whether a function, a class or a module is of this package, of Python or of an installed one: those do not change."""
    if isinstance(x, types.FunctionType):
        name = x.__globals__.get("__name__", "")  # what it says itself may be copied from a function that it wraps
    else:
        name = x.__name__ if isinstance(x, types.ModuleType) else x.__module__
    return isinstance(name, str) and _module_is_installed(name)


@functools.cache
def _module_is_installed(name: str) -> bool:
    root = name.partition(".")[0]
    if root == __name__.partition(".")[0] or root in sys.builtin_module_names:
        return True
    file = getattr(sys.modules.get(root), "__file__", None)
    return file is not None and any(place in Path(file).resolve().parents for place in _INSTALLED)
