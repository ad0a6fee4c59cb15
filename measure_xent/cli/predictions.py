"""Predictions on disk, a block of rows at a time: npz, safetensors, csv, parquet. Nothing is ever held whole."""

import json
import math
import re
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from .terminal import CommandError

KINDS = {
    "logits": ("logits", "logit"),
    "log-probs": ("log_probs", "log_probabilities", "logprobs"),
    "probs": ("probs", "probabilities"),
}
UNSAID = "predictions"  # found by its name, which does not say what kind they are
STEMS = {"logits": ("logit",), "log-probs": ("log_prob", "logprob"), "probs": ("prob",)}  # of columns, one a class
ALIGNED = 64
LABELS, WEIGHTS, GROUPS = ("labels", "label", "targets", "target", "y"), ("weights", "weight"), ("groups", "group")
SAFETENSORS = {
    **{f"F{n}": np.dtype(f"<f{n // 8}") for n in (16, 32, 64)},
    **{f"I{n}": np.dtype(f"<i{n // 8}") for n in (8, 16, 32, 64)},
    **{f"U{n}": np.dtype(f"<u{n // 8}") for n in (8, 16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BOOL": np.dtype(bool),
}


class Names(NamedTuple):
    """Which arrays or columns of a file are what; None where the usual names say."""

    predictions: str | None = None
    kind: str | None = None
    labels: str | None = None
    weights: str | None = None
    groups: str | None = None


class Block(NamedTuple):
    """Some rows of a file."""

    predictions: np.ndarray  # [rows, V]
    labels: np.ndarray  # [rows], integers; as they are stored, before ``_of_classes``
    weights: np.ndarray | None
    groups: np.ndarray | None  # any values
    bytes: int  # of the file, until the end of these


class Predictions(NamedTuple):
    """What is known of a file before it is read."""

    kind: str  # "logits", "log-probs" or "probs"
    size: int  # in bytes
    blocks: Any  # () -> Iterator[Block]
    text: bool = False  # labels are words
    names: tuple[str, ...] | None = None  # of the classes, where labels are words or columns have names


def open_predictions(path: Path, names: Names, block_bytes: int) -> Predictions:
    """Opens a file by its suffix and finds predictions and labels in it.

    Raises:
        CommandError: there is no such file or format, it is cut off or broken, or arrays are missing or do not fit.
    """
    openers = {".npz": _npz, ".safetensors": _safetensors, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in openers:
        raise CommandError(f"{path}: its name must end in .npz, .safetensors, .csv or .parquet")
    try:
        return _of_classes(path, openers[path.suffix](path, names, block_bytes))
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or error}") from None


def _of_classes(path: Path, stored: Predictions) -> Predictions:
    """The same with integers for labels, and a column for each class.

    Words are the names of the columns, or as many as there are classes, in their order (so scikit-learn has them); in a file of
    words the labels are read once more. Of one column it is the second of two classes: p, its logarithm, or its log-odds.
    """
    names = _class_names(path, stored) if stored.text else None
    index = {name: i for i, name in enumerate(names or ())}

    def blocks() -> Iterator[Block]:
        seen = 0
        for block in stored.blocks():
            z, labels = block.predictions, block.labels
            if stored.text:
                words, where = np.unique(_words(labels), return_inverse=True)
                labels = np.array([index.get(w, int(w) if INTEGER.fullmatch(w) else -1) for w in words])[where.ravel()]
            labels = _whole(path, labels, seen)
            seen += len(labels)
            yield block._replace(predictions=_two_classes(z, stored.kind) if z.shape[1] == 1 else z, labels=labels)

    return stored._replace(blocks=blocks, names=names)


INTEGER = re.compile(r"-?\d+")


def _words(labels: np.ndarray) -> np.ndarray:
    return np.char.decode(labels, "utf-8") if labels.dtype.kind == "S" else labels.astype(str)


def _class_names(path: Path, stored: Predictions) -> tuple[str, ...] | None:
    """The names of the classes whose labels are words; None if these are numbers."""
    words: set[str] = set()
    width = 0
    for block in stored.blocks():
        width = max(block.predictions.shape[1], 2)
        words |= set(np.unique(_words(block.labels)).tolist())
        if len(words) > 2 * width + SHOWN_WORDS:
            break
    named = {word for word in words if not INTEGER.fullmatch(word)}
    if not named:
        return None
    if stored.names is not None and len(stored.names) == width and named & set(stored.names):
        return stored.names
    if len(named) == width:
        return tuple(sorted(named))
    some = ", ".join(sorted(named)[:SHOWN_WORDS]) + (", …" if len(named) > SHOWN_WORDS else "")
    raise CommandError(
        f"{path}: labels are words, {some}: {len(named)} of them for {width} classes; "
        "name the columns of predictions after them, or number the labels"
    )


SHOWN_WORDS = 5


def _whole(path: Path, labels: np.ndarray, seen: int) -> np.ndarray:
    """Labels as int64. Floats that are whole are integers; a NaN is none, and told of if its row counts."""
    if labels.dtype.kind in "iub":
        return (np.minimum(labels, 2**62) if labels.dtype == np.uint64 else labels).astype(np.int64)
    number = np.isfinite(labels.astype(np.float64))
    x = np.where(number, labels, -1).astype(np.float64)
    if np.any(broken := x != np.floor(x)):
        row = int(np.argmax(broken))
        raise CommandError(f"{path}: labels are {labels.dtype}, not integers: row {seen + row} has {x[row]}")
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


def _choose(path: Path, found: Sequence[str], names: Names) -> tuple[str | None, str | None, dict[str, str | None]]:
    """(predictions, kind, the others) among the names found; predictions None where no usual name is there."""
    usual = [(kind, name) for kind, all_names in KINDS.items() for name in all_names if name in found]
    prediction, kind = names.predictions, names.kind
    if prediction is None and len({name for _, name in usual}) > 1:
        raise CommandError(f"{path}: {', '.join(name for _, name in usual)} are all there; choose one by --predictions")
    if prediction is None and usual:
        prediction = usual[0][1]
    if prediction is None and UNSAID in found:
        prediction = UNSAID
    kind = kind or next((k for k, name in usual if name == prediction), None)
    others = {
        what: asked if asked is not None else next((name for name in all_names if name in found), None)
        for what, asked, all_names in (
            ("labels", names.labels, LABELS),
            ("weights", names.weights, WEIGHTS),
            ("groups", names.groups, GROUPS),
        )
    }
    for option, name in (("predictions", names.predictions), *others.items()):
        stem = option == "predictions" and any(column.startswith(name or "") for column in found)
        if name is not None and name not in found and not stem:
            raise CommandError(f"{path}: no {name!r} for --{option}; there are {', '.join(found)}")
    if others["labels"] is None:
        raise CommandError(f"{path}: no labels; name them by --labels, among {', '.join(found)}")
    return prediction, kind, others


# ---- arrays


class Stored(NamedTuple):
    """An array in a file: its dtype and shape, and how to open a stream of its bytes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    open: Any  # () -> a binary stream at the first element
    fault: str | None = None  # why it cannot be read, if it is asked for


def _npz(path: Path, names: Names, block_bytes: int) -> Predictions:
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as stream:
                    version = np.lib.format.read_magic(stream)
                    read_header = {
                        (1, 0): np.lib.format.read_array_header_1_0,
                        (2, 0): np.lib.format.read_array_header_2_0,
                    }
                    shape, fortran, dtype = read_header[version](stream)
                    start = stream.tell()
                if member.compress_type == zipfile.ZIP_STORED:
                    # As is, without the archive's sums: checking them takes longer than reading.
                    open_ = _at(path, _first_byte(path, member) + start)
                else:
                    open_ = _member(path, member.filename, start)
                fault = None
                if dtype.hasobject:
                    fault = "holds objects, not numbers"
                elif fortran and len(shape) > 1:
                    fault = "is stored column by column, in Fortran's order; save np.ascontiguousarray of it"
                elif member.file_size - start != dtype.itemsize * int(np.prod(shape)):
                    fault = f"is cut off: {shape} of {dtype} do not fill it"
                arrays[member.filename.removesuffix(".npy")] = Stored(dtype, shape, open_, fault)
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        raise CommandError(f"{path}: broken or cut off: {error}") from None
    return _of_arrays(path, arrays, names, block_bytes)


def _first_byte(path: Path, member: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: behind its local header of 30 bytes, its name and what more there is."""
    with path.open("rb") as stream:
        stream.seek(member.header_offset + 26)
        return member.header_offset + 30 + sum(struct.unpack("<HH", stream.read(4)))


def _member(path: Path, name: str, start: int) -> Any:
    @contextmanager
    def open_():
        with zipfile.ZipFile(path) as archive, archive.open(name) as stream:
            stream.read(start)
            yield stream

    return open_


def _safetensors(path: Path, names: Names, block_bytes: int) -> Predictions:
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(length) if length < size else b"")
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            arrays = {name: _tensor(path, 8 + length, **entry) for name, entry in tensors.items()}
            end = 8 + length + sum(e["data_offsets"][1] - e["data_offsets"][0] for e in tensors.values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CommandError(f"{path}: not a safetensors file, or cut off in its header: {error}") from None
    if end != size:
        raise CommandError(f"{path}: cut off or broken: its header tells of {end} bytes, it has {size}")
    return _of_arrays(path, arrays, names, block_bytes)


def _tensor(path: Path, start: int, dtype: str, shape: list[int], data_offsets: list[int]) -> Stored:
    known, (begin, end) = SAFETENSORS.get(dtype, np.dtype(np.uint8)), data_offsets
    fault = None if dtype in SAFETENSORS else f"holds {dtype}, not one of {', '.join(SAFETENSORS)}"
    if fault is None and (min(shape, default=0) < 0 or end - begin != math.prod(shape) * known.itemsize):
        fault = f"has bytes {begin} to {end}, which are not {shape} of {dtype}"
    return Stored(known, tuple(shape), _at(path, start + begin), fault)


def _at(path: Path, offset: int) -> Any:
    def open_():
        stream = path.open("rb", buffering=0)
        stream.seek(offset)
        return stream

    return open_


def _of_arrays(path: Path, arrays: dict[str, Stored], names: Names, block_bytes: int) -> Predictions:
    prediction, kind, others = _choose(path, list(arrays), names)
    if prediction not in arrays:
        raise CommandError(f"{path}: no predictions; name them by --predictions, among {', '.join(arrays)}")
    kind = _known(path, prediction, kind)
    chosen = {"predictions": arrays[prediction]} | {k: arrays[v] for k, v in others.items() if v is not None}
    for what, array in chosen.items():
        if array.fault is not None:
            raise CommandError(f"{path}: {prediction if what == 'predictions' else others[what]} {array.fault}")
    shape = chosen["predictions"].shape
    one = shape == chosen["labels"].shape  # a number a row
    of_rows, classes = (shape, 1) if one else (shape[:-1], shape[-1] if shape else 0)
    if len(shape) < 2 and not one:
        raise CommandError(
            f"{path}: {prediction} has shape {shape}; its last axis is the classes, those before the rows, or it has a number "
            f"for each of the labels, which have shape {chosen['labels'].shape}"
        )
    rows = int(np.prod(of_rows))
    for what, array in chosen.items():
        expected = shape if what == "predictions" else of_rows
        if array.shape != expected:
            raise CommandError(f"{path}: {others[what]} for --{what} has shape {array.shape}; predictions have {shape}")
    if rows == 0 or classes == 0:
        raise CommandError(f"{path}: {prediction} is empty: shape {shape}")
    _check_dtypes(path, {k: a.dtype for k, a in chosen.items()})
    at_once = max(1, block_bytes // (classes * chosen["predictions"].dtype.itemsize))

    def blocks() -> Iterator[Block]:
        with ExitStack() as stack:
            streams = {k: stack.enter_context(a.open()) for k, a in chosen.items()}
            for first in range(0, rows, at_once):
                n = min(at_once, rows - first)
                parts = {
                    k: _read(path, streams[k], a.dtype, n * (classes if k == "predictions" else 1))
                    for k, a in chosen.items()
                }
                done = path.stat().st_size * (first + n) // rows
                yield Block(
                    parts["predictions"].reshape(n, classes),
                    parts["labels"],
                    parts.get("weights"),
                    parts.get("groups"),
                    done,
                )

    return Predictions(kind, path.stat().st_size, blocks, chosen["labels"].dtype.kind in "US")


def _read(path: Path, stream: Any, dtype: np.dtype, n: int) -> np.ndarray:
    # Aligned as XLA wants its arrays, which then need no copy.
    room = np.empty(n * dtype.itemsize + ALIGNED, np.uint8)
    array = room[(first := -room.ctypes.data % ALIGNED) : first + n * dtype.itemsize]
    view, got = array.data, 0
    try:
        while got < len(view):
            more = stream.readinto(view[got:])
            if not more:
                raise CommandError(f"{path}: cut off in the middle of its rows")
            got += more
    except (zipfile.BadZipFile, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
        raise CommandError(f"{path}: broken: {error}") from None
    return array.view(dtype).astype(dtype.newbyteorder("="), copy=False)  # XLA knows the machine's order alone


def _check_dtypes(path: Path, dtypes: dict[str, np.dtype]) -> None:
    floating = lambda dtype: dtype.kind == "f" or dtype == ml_dtypes.bfloat16
    if not floating(dtypes["predictions"]):
        raise CommandError(f"{path}: predictions are {dtypes['predictions']}, not floating")
    if not (floating(dtypes["labels"]) or dtypes["labels"].kind in "iubUSO"):
        raise CommandError(f"{path}: labels are {dtypes['labels']}, not integers or words")
    if "weights" in dtypes and not (floating(dtypes["weights"]) or dtypes["weights"].kind in "iub"):
        raise CommandError(f"{path}: weights are {dtypes['weights']}, not numbers")


def _known(path: Path, prediction: str, kind: str | None) -> str:
    if kind is None:
        raise CommandError(f"{path}: are {prediction} logits, log-probs or probs? Say so by --kind")
    return kind


# ---- tables


def _csv(path: Path, names: Names, block_bytes: int) -> Predictions:
    from pyarrow import ArrowInvalid, csv

    def open_csv(stream: Any):
        return csv.open_csv(stream, read_options=csv.ReadOptions(block_size=block_bytes))

    def batches():
        with path.open("rb") as stream:
            for batch in open_csv(stream):
                yield batch, stream.tell()

    try:
        with path.open("rb") as stream:
            schema = open_csv(stream).schema
    except ArrowInvalid as error:
        raise CommandError(f"{path}: {error}") from None
    return _of_table(path, schema, names, batches)


def _parquet(path: Path, names: Names, block_bytes: int) -> Predictions:
    from pyarrow import ArrowInvalid, parquet

    try:
        with parquet.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            row_bytes = max(
                1, sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups)) // max(rows, 1)
            )
    except (ArrowInvalid, OSError) as error:
        raise CommandError(f"{path}: broken or cut off: {error}") from None

    def batches():
        with parquet.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
            seen = 0
            for batch in file.iter_batches(batch_size=max(1, block_bytes // row_bytes)):
                seen += batch.num_rows
                yield batch, path.stat().st_size * seen // rows

    return _of_table(path, schema, names, batches)


def _of_table(path: Path, schema: Any, names: Names, batches: Any) -> Predictions:
    """Predictions are one column of lists, or numeric columns, one a class: those that begin with ``logit``, ``log_prob`` or
    ``prob``, or as ``--predictions`` says; else every one that is nothing else, if they all have names."""
    from pyarrow import ArrowInvalid, types

    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise CommandError(f"{path}: several columns are named {', '.join(map(repr, twice))}")
    prediction, kind, others = _choose(path, schema.names, names)
    used = {name for name in others.values() if name is not None}
    number = lambda kind: types.is_floating(kind) or types.is_integer(kind)
    is_list = lambda kind: types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    of = lambda name: schema.field(name).type
    for name in used:
        if types.is_nested(of(name)):
            raise CommandError(f"{path}: {name} is a column of {of(name)}, not of one value a row")
    if prediction in schema.names and is_list(of(prediction)):
        if not number(of(prediction).value_type):
            raise CommandError(f"{path}: {prediction} is a column of {of(prediction)}, not of lists of numbers")
        columns = None
    else:
        columns = [name for name in schema.names if name not in used and number(of(name))]
        stems = {kind: stems for kind, stems in STEMS.items() if any(name.startswith(stems) for name in columns)}
        if prediction is not None:
            columns = [name for name in columns if name.startswith(prediction)]
        elif len(stems) == 1:
            (stem_kind,) = stems
            columns, kind = [name for name in columns if name.startswith(stems[stem_kind])], kind or stem_kind
        elif not all(columns) or any(name.startswith("Unnamed") for name in columns):
            raise CommandError(
                f"{path}: a column without a name among those of numbers; say by --predictions how classes begin"
            )
        kind = kind or next((k for k, begin in STEMS.items() if columns and columns[0].startswith(begin)), None)
        if not columns:
            raise CommandError(f"{path}: no predictions: neither a column of lists nor numeric columns, one a class")
        prediction = "the columns " + ", ".join([*columns[:3], "…"] if len(columns) > 3 else columns)
    if columns is not None:
        # Classes are numbered where columns are, however these are sorted.
        numbers = [re.search(r"\d+$", name) for name in columns]
        if all(numbers):
            columns.sort(key=lambda name: int(re.search(r"\d+$", name)[0]))
    kind = _known(path, str(prediction), kind)
    label = of(others["labels"])
    label = label.value_type if types.is_dictionary(label) else label
    text = types.is_string(label) or types.is_large_string(label)
    begins = re.escape(names.predictions) if names.predictions else r"(log_?)?prob(abilit(y|ies)|s)?|logits?"
    stem = re.compile(rf"({begins})[\W_]*")
    class_names = None if columns is None else tuple(stem.sub("", c, count=1) if stem.match(c) else c for c in columns)
    first_width: list[int] = []

    def array(batch: Any, name: str, seen: int) -> np.ndarray:
        column = batch.column(name)
        if column.null_count:
            rows = (seen + np.flatnonzero(np.asarray(column.is_null()))).tolist()
            raise CommandError(
                f"{path}: {name} is missing in rows, counted from 0, {rows[:5]}{'…' if rows[5:] else ''}"
            )
        column = column.dictionary_decode() if types.is_dictionary(column.type) else column
        return column.to_numpy(zero_copy_only=False)

    def blocks() -> Iterator[Block]:
        seen = 0
        try:
            for batch, done in batches():
                if batch.num_rows == 0:
                    continue
                if columns is None:
                    lists = batch.column(prediction)
                    flat = lists.flatten().to_numpy(zero_copy_only=False)
                    if flat.size % batch.num_rows or len({*np.diff(_offsets(lists)).tolist()}) > 1:
                        raise CommandError(f"{path}: {prediction} has rows of different lengths near row {seen}")
                    z = flat.reshape(batch.num_rows, -1)
                else:
                    z = np.stack([array(batch, name, seen) for name in columns], axis=1)
                first_width.append(z.shape[1])
                if z.shape[1] != first_width[0]:
                    raise CommandError(f"{path}: {first_width[0]} classes, and {z.shape[1]} at row {seen}")
                parts = {what: array(batch, name, seen) for what, name in others.items() if name is not None}
                z = z if z.dtype.kind == "f" else z.astype(np.float64)
                _check_dtypes(path, {k: a.dtype for k, a in parts.items()} | {"predictions": z.dtype})
                seen += batch.num_rows
                yield Block(z, parts["labels"], parts.get("weights"), parts.get("groups"), done)
        except (ArrowInvalid, OSError) as error:
            raise CommandError(f"{path}: broken or cut off after row {seen}: {error}") from None
        if seen == 0:
            raise CommandError(f"{path}: no rows")

    return Predictions(kind, path.stat().st_size, blocks, text, class_names)


def _offsets(lists: Any) -> np.ndarray:
    """Where each list begins and the last ends."""
    return np.arange(2) if not hasattr(lists, "offsets") else np.asarray(lists.offsets)
