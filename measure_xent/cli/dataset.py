"""Files of predictions as one data set, and its parts; labels are classes, and each class has a column."""

import bisect
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .arrays import open_npz, open_safetensors
from .predictions import Block, Names, Predictions
from .tables import open_csv, open_parquet
from .terminal import CommandError

OPENERS = {".npz": open_npz, ".safetensors": open_safetensors, ".csv": open_csv, ".parquet": open_parquet}
SUFFIXES = " or ".join(", ".join(OPENERS).rsplit(", ", 1))
SHOWN_WORDS = 5
INTEGER = re.compile(r"-?\d+")


class Piece(NamedTuple):
    """Rows of a file, from the first to before the last, or to the end."""

    path: Path
    first: int = 0
    last: int | None = None


class Reading(NamedTuple):
    """How the files of a data set are read."""

    names: Names
    block_bytes: int
    class_names: tuple[str, ...] | None = None

    def blocks(self, pieces: Sequence[Piece]) -> Iterator[Block]:
        """Labels are numbers of classes, and predictions have a column for each."""
        index = {name: i for i, name in enumerate(self.class_names or ())}
        for piece in pieces:
            file = open_predictions(piece.path, self.names, self.block_bytes)
            for block in file.blocks(piece.first, piece.last):
                z, labels = block.predictions, block.labels
                if file.text:
                    words, where = np.unique(as_text(labels), return_inverse=True)
                    numbers = [index.get(w, int(w) if INTEGER.fullmatch(w) else -1) for w in words]
                    labels = np.array(numbers)[where.ravel()]
                labels = _whole(block, labels)
                z = _two_classes(z, file.kind) if file.classes == 1 else z
                yield Block(block.path, block.first, z, labels, block.weights, block.groups, block.bytes)


def open_predictions(path: Path, names: Names, block_bytes: int) -> Predictions:
    """Opens a file by its suffix and finds predictions and labels in it.

    Raises:
        CommandError: there is no such file or format, it is cut off or broken, or arrays are missing or do not fit.
    """
    if path.suffix not in OPENERS:
        raise CommandError(f"{path}: its name must end in {SUFFIXES}")
    try:
        return OPENERS[path.suffix](path, names, block_bytes)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or error}") from None


class DataSet(NamedTuple):
    """Files whose rows follow one another."""

    title: str
    files: tuple[Predictions, ...]
    reading: Reading

    @property
    def kind(self) -> str:
        return self.files[0].kind

    @property
    def classes(self) -> int:
        return max(self.files[0].classes, 2)  # one column is of two classes

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def open_dataset(texts: Sequence[str], names: Names, block_bytes: int) -> DataSet:
    """Opens files, globs, folders and URLs as one data set. Where labels are words, all of them are read once.

    Words are the names of the columns, or as many as there are classes, in their order (so scikit-learn has them). Of
    one column it is the second of two classes: p, its logarithm, or its log-odds.

    Raises:
        CommandError: there is no such file or format, one is cut off or broken, arrays are missing or do not fit, or files
            differ in what they hold.
    """
    files = tuple(open_predictions(path, names, block_bytes) for path in find(texts))
    files = tuple(file for file in files if file.rows != 0) or files[:1]  # a part may be empty
    first, *others = files
    for file in others:
        for what in ("kind", "classes", "columns"):
            a, b = (getattr(f, what) for f in (first, file))
            if a != b and not (a is None or b is None):
                a, b = map(_short, (a, b))
                raise CommandError(f"{file.path}: its {what} are {b}, and those of {first.path} {a}")
        for what in file.beside ^ first.beside:
            one, other = (file, first) if what in file.beside else (first, file)
            raise CommandError(f"{one.path} has {what}, and {other.path} has none")
    title = str(first.path) if not others else f"{len(files)} files, {first.path} to {others[-1].path.name}"
    return DataSet(title, files, Reading(names, block_bytes, _class_names(title, files)))


def find(texts: Sequence[str]) -> list[Path]:
    """The files that are meant: of globs and folders in the order of their names."""
    paths = [path for text in texts for path in _find(text)]
    seen = set()
    for path in paths:
        same = str(path.resolve() if isinstance(path, Path) else path)
        if same in seen:
            raise CommandError(f"{path}: given twice; its rows would count twice")
        seen.add(same)
    return paths


def _find(text: str) -> list[Path]:
    path = _path(text)
    try:
        if path.exists():
            if not path.is_dir():
                return [path]
            hidden = lambda p: any(part.startswith((".", "_")) for part in p.relative_to(path).parts)
            found = [p for p in path.rglob("*") if p.suffix in OPENERS and not hidden(p) and p.is_file()]
            if not found:
                raise CommandError(f"{text}: a folder without {SUFFIXES} files")
        elif wild := re.search(r"[*?[]", text):
            cut = text.rfind("/", 0, wild.start()) + 1
            found = [p for p in _path(text[:cut] or ".").glob(text[cut:]) if p.is_file()]
            if not found:
                raise CommandError(f"{text}: no file is named so")
        else:
            return [path]  # what is wrong with it is told when it is opened
    except (OSError, ImportError, ValueError) as error:  # what is missing for a URL, its protocol, or the other side
        raise CommandError(f"{text}: {getattr(error, 'strerror', None) or error}") from None
    return sorted(found, key=str)


def _path(text: str) -> Path:
    """A path of this machine, or a URL as something that is used like one."""
    if "://" not in text:
        return Path(text)
    from upath import UPath

    try:
        return UPath(text)  # type: ignore[return-value]
    except (ImportError, ValueError) as error:
        raise CommandError(f"{text}: {error}") from None


# ---- parts


def parts(sets: Sequence[DataSet], n: int) -> list[tuple[int, tuple[tuple[Piece, ...], ...]]]:
    """About n parts of data sets that have the same rows: (its bytes, the pieces of each set).

    A part begins where reading it costs nothing in any set: at a file, at a row group of parquet, at any row of plain arrays.
    """
    if n == 1:
        return [(sum(s.size for s in sets), tuple(tuple(Piece(file.path) for file in s.files) for s in sets))]
    ends = [list(itertools.accumulate(map(_count, s.files))) for s in sets]
    rows = ends[0][-1]

    def common(cut: int) -> int:
        while (lower := min(_start_before(cut, s, end) for s, end in zip(sets, ends, strict=True))) < cut:
            cut = lower
        return cut

    cuts = sorted({common(rows * i // n) for i in range(1, n)} - {0})
    made = []
    for first, last in itertools.pairwise([0, *cuts, rows]):
        share = sum(s.size for s in sets) * (last - first) // max(rows, 1)
        made.append((share, tuple(_pieces(s, end, first, last) for s, end in zip(sets, ends, strict=True))))
    return made


def _count(file: Predictions) -> int:
    return sum(map(len, file.labels())) if file.rows is None else file.rows


def _start_before(row: int, data: DataSet, ends: list[int]) -> int:
    """The last row until this one where reading may begin."""
    i = bisect.bisect_right(ends, row)
    if i == len(ends):
        return row
    file, begin = data.files[i], ends[i - 1] if i else 0
    return row if file.starts is None else begin + file.starts[bisect.bisect_right(file.starts, row - begin) - 1]


def _pieces(data: DataSet, ends: list[int], first: int, last: int) -> tuple[Piece, ...]:
    pieces = []
    for file, begin, end in zip(data.files, [0, *ends], ends, strict=False):
        if begin < last and first < end:
            pieces.append(Piece(file.path, max(first - begin, 0), None if end <= last else last - begin))
    return tuple(pieces)


def paired(a: Iterator[Block], b: Iterator[Block]) -> Iterator[tuple[Block, Block]]:
    """Blocks of the same rows.

    Raises:
        CommandError: one of the two has more rows.
    """
    waiting: list[Block | None] = [None, None]
    while True:
        x, y = (next(blocks, None) if block is None else block for block, blocks in zip(waiting, (a, b), strict=True))
        if x is None or y is None:
            if x is not y:
                more = x or y
                raise CommandError(f"{more.path}: more rows than the other has, from row {more.first} on")
            return
        n = min(x.rows, y.rows)
        yield x[:n], y[:n]
        waiting = [block[n:] if block.rows > n else None for block in (x, y)]


# ---- labels


def _class_names(title: str, files: Sequence[Predictions]) -> tuple[str, ...] | None:
    """The names of the classes whose labels are words; None if these are numbers."""
    words: set[str] = set()
    width = max(files[0].classes, 2)
    columns = next((file.columns for file in files if file.columns is not None), None)
    for labels in itertools.chain.from_iterable(file.labels() for file in files if file.text):
        words |= set(np.unique(as_text(labels)).tolist())
        if len(words) > 2 * width + SHOWN_WORDS:
            break
    named = {word for word in words if not INTEGER.fullmatch(word)}
    if not named:
        return None
    if columns is not None and len(columns) == width and named & set(columns):
        return columns
    if len(named) == width:
        return tuple(sorted(named))
    raise CommandError(
        f"{title}: labels are words, {_short(tuple(sorted(named)))}: {len(named)} of them for {width} classes; "
        "name the columns of predictions after them, or number the labels"
    )


def _short(what: Any) -> str:
    if not isinstance(what, tuple):
        return str(what)
    return ", ".join(map(str, what[:SHOWN_WORDS])) + (", …" if len(what) > SHOWN_WORDS else "")


def as_text(labels: np.ndarray) -> np.ndarray:
    """Numbers, bytes and strings as strings."""
    return np.char.decode(labels, "utf-8") if labels.dtype.kind == "S" else labels.astype(str)


def _whole(block: Block, labels: np.ndarray) -> np.ndarray:
    """Labels as int64. Floats that are whole are integers; a NaN is none, and told of if its row counts."""
    if labels.dtype.kind in "iub":
        return (np.minimum(labels, 2**62) if labels.dtype == np.uint64 else labels).astype(np.int64)
    number = np.isfinite(labels.astype(np.float64))
    x = np.where(number, labels, -1).astype(np.float64)
    if np.any(broken := x != np.floor(x)):
        i = int(np.argmax(broken))
        raise CommandError(f"{block.path}: labels are {labels.dtype}, not integers: row {block.first + i} has {x[i]}")
    return np.clip(x, -(2.0**53), 2.0**53).astype(np.int64)


def _two_classes(z: np.ndarray, kind: str) -> np.ndarray:
    """[rows, 2] of one column: what belongs to the second class, and what is left for the first."""
    if kind == "probs":
        return np.concatenate([1 - z, z], axis=1)
    if kind == "logits":
        return np.concatenate([np.zeros_like(z), z], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):  # log 0; a NaN, or more than 1, is told of
        x = z.astype(np.float64)
        rest = np.where(x < -math.log(2), np.log1p(-np.exp(x)), np.log(-np.expm1(x)))
    return np.concatenate([rest, x], axis=1)
