"""The house: each storey imports from its own and from those below, and no file is, by way of others, imported by itself."""

import ast
import builtins
import dis
import graphlib
import importlib
import itertools
import pathlib
import types

import measure_xent

ROOT = pathlib.Path(measure_xent.__file__).parent
STOREYS = [  # from the ground up
    "_strict",
    "_program",
    "_pytree",
    "_kernels",
    "generators",
    "_integrands",
    "_forms",
    "_measures",
    "_methods",
    "_conditionals",
    "_display",
    "_functionals",
    "_accumulation",
    "losses",
    "testing",
    "__init__",
    "cli",
    "__main__",
]


def storey(file: pathlib.Path) -> int:
    return STOREYS.index(file.relative_to(ROOT).with_suffix("").parts[0])


def imported(file: pathlib.Path) -> list[tuple[int, pathlib.Path]]:
    """(line, file) of all that a file imports from the package, inside of functions too."""
    package, found = file.relative_to(ROOT).parent.parts, []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*package[: len(package) - node.level + 1], *filter(None, (node.module or "").split(".")))
            names = [(*base, name.name) for name in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(name.name.split(".")[1:]) for name in node.names if name.name.split(".")[0] == ROOT.name]
        else:
            continue
        for path in names:
            places = (ROOT.joinpath(*path[:n]) for n in range(len(path), -1, -1))
            options = itertools.chain.from_iterable((p.with_suffix(".py"), p / "__init__.py") for p in places)
            found.append((node.lineno, next(option for option in options if option.is_file())))
    return found


def test_nothing_is_imported_from_above():
    files = list(ROOT.rglob("*.py"))
    assert {file.relative_to(ROOT).with_suffix("").parts[0] for file in files} == set(STOREYS)
    of = {file: imported(file) for file in files}
    assert sum(map(len, of.values())) > 300
    upward = [
        f"{file.relative_to(ROOT)}:{line} imports {other.relative_to(ROOT)}"
        for file, others in of.items()
        for line, other in others
        if storey(other) > storey(file)
    ]
    assert not upward, "\n".join(upward)
    graphlib.TopologicalSorter({file: {other for _, other in others} for file, others in of.items()}).prepare()


def test_every_name_is_defined():
    """A linter takes the shapes in annotations for names, and so is not asked."""
    for path in pathlib.Path(measure_xent.__path__[0]).rglob("*.py"):
        if path.name != "__main__.py":
            parts = path.relative_to(pathlib.Path(measure_xent.__path__[0]).parent).with_suffix("").parts
            module = importlib.import_module(".".join(part for part in parts if part != "__init__"))
            names = global_names(compile(path.read_text(), str(path), "exec"))
            assert not {name for name in names if not hasattr(module, name) and not hasattr(builtins, name)}, path


def global_names(code):
    own = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    return own.union(*(global_names(x) for x in code.co_consts if isinstance(x, types.CodeType)))


def test_limits_are_of_the_dtype_in_use():
    """``finfo(float)`` is float64's, where float32 is the default: 1 − eps / 2 rounds to 1 then, and tiny to 0."""
    assert not [file for file in ROOT.rglob("*.py") if "finfo(float)" in file.read_text(encoding="utf-8")]
