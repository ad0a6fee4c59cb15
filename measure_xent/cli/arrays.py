"""Predictions in archives of arrays: npz and safetensors."""

import io
import json
import math
import struct
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from .predictions import Block, Names, Predictions, check_dtypes, choose, known
from .terminal import CommandError

ALIGNED = 64
LABELS_AT_ONCE = 1 << 20
SAFETENSORS = {
    **{f"F{n}": np.dtype(f"<f{n // 8}") for n in (16, 32, 64)},
    **{f"I{n}": np.dtype(f"<i{n // 8}") for n in (8, 16, 32, 64)},
    **{f"U{n}": np.dtype(f"<u{n // 8}") for n in (8, 16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BOOL": np.dtype(bool),
}


class Stored(NamedTuple):
    """An array in a file: its dtype and shape, and how to open a stream of its bytes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    open: Any  # (so many bytes are left out) -> a binary stream
    anywhere: bool = True  # leaving out costs nothing
    fault: str | None = None  # why it cannot be read, if it is asked for


def open_npz(path: Path, names: Names, block_bytes: int) -> Predictions:
    return _of_arrays(path, _npz(path), names, block_bytes)


def open_safetensors(path: Path, names: Names, block_bytes: int) -> Predictions:
    return _of_arrays(path, _safetensors(path), names, block_bytes)


def _of_arrays(path: Path, arrays: dict[str, Stored], names: Names, block_bytes: int) -> Predictions:
    prediction, kind, others = choose(path, list(arrays), names)
    if prediction not in arrays:
        raise CommandError(f"{path}: no predictions; name them by --predictions, among {', '.join(arrays)}")
    kind = known(path, prediction, kind)
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
    rows = math.prod(of_rows)
    for what, array in chosen.items():
        expected = shape if what == "predictions" else of_rows
        if array.shape != expected:
            raise CommandError(f"{path}: {others[what]} for --{what} has shape {array.shape}; predictions have {shape}")
    if classes == 0 < rows:
        raise CommandError(f"{path}: {prediction} is empty: shape {shape}")
    check_dtypes(path, {k: a.dtype for k, a in chosen.items()})
    size, starts = path.stat().st_size, None if all(a.anywhere for a in chosen.values()) else [0]
    width = lambda what: classes if what == "predictions" else 1

    def read(
        what: dict[str, Stored], at_once: int, first: int, last: int
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        with ExitStack() as stack:
            open_ = lambda k, a: stack.enter_context(a.open(first * width(k) * a.dtype.itemsize))
            streams = {k: open_(k, a) for k, a in what.items()}
            for row in range(first, last, at_once):
                n = min(at_once, last - row)
                yield row, {k: _read(path, streams[k], a.dtype, n * width(k)) for k, a in what.items()}

    def blocks(first: int, last: int | None) -> Iterator[Block]:
        at_once = max(1, block_bytes // (max(1, classes) * chosen["predictions"].dtype.itemsize))
        for row, parts in read(chosen, at_once, first, rows if last is None else last):
            z, y = parts["predictions"].reshape(-1, classes), parts["labels"]
            yield Block(path, row, z, y, parts.get("weights"), parts.get("groups"), size * len(y) // rows)

    def labels() -> Iterator[np.ndarray]:
        for _, parts in read({"labels": chosen["labels"]}, LABELS_AT_ONCE, 0, rows):
            yield parts["labels"]

    text = chosen["labels"].dtype.kind in "US"
    beside = frozenset(chosen) - {"predictions", "labels"}
    return Predictions(path, kind, size, classes, rows, starts, blocks, labels, beside, text)


def _npz(path: Path) -> dict[str, Stored]:
    arrays = {}
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                with archive.open(member) as stream:
                    version = np.lib.format.read_magic(stream)
                    read_header = {
                        (1, 0): np.lib.format.read_array_header_1_0,
                        (2, 0): np.lib.format.read_array_header_2_0,
                    }
                    shape, fortran, dtype = read_header[version](stream)
                    start = stream.tell()
                # As is, without the archive's sums: checking them takes longer than reading.
                plain = member.compress_type == zipfile.ZIP_STORED
                open_ = _at(path, _first_byte(file, member) + start) if plain else _member(path, member.filename, start)
                fault = None
                if dtype.hasobject:
                    fault = "holds objects, not numbers"
                elif fortran and len(shape) > 1:
                    fault = "is stored column by column, in Fortran's order; save np.ascontiguousarray of it"
                elif member.file_size - start != dtype.itemsize * math.prod(shape):
                    fault = f"is cut off: {shape} of {dtype} do not fill it"
                arrays[member.filename.removesuffix(".npy")] = Stored(dtype, shape, open_, plain, fault)
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        raise CommandError(f"{path}: broken or cut off: {error}") from None
    return arrays


def _first_byte(file: Any, member: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: behind its local header of 30 bytes, its name and what more there is."""
    file.seek(member.header_offset + 26)
    return member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))


def _member(path: Path, name: str, start: int) -> Any:
    @contextmanager
    def open_(skip: int) -> Iterator[Any]:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive, archive.open(name) as stream:
            stream.seek(start + skip)
            yield stream

    return open_


def _safetensors(path: Path) -> dict[str, Stored]:
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
    return arrays


def _tensor(path: Path, start: int, dtype: str, shape: list[int], data_offsets: list[int]) -> Stored:
    known, (begin, end) = SAFETENSORS.get(dtype, np.dtype(np.uint8)), data_offsets
    fault = None if dtype in SAFETENSORS else f"holds {dtype}, not one of {', '.join(SAFETENSORS)}"
    if fault is None and (min(shape, default=0) < 0 or end - begin != math.prod(shape) * known.itemsize):
        fault = f"has bytes {begin} to {end}, which are not {shape} of {dtype}"
    return Stored(known, tuple(shape), _at(path, start + begin), fault=fault)


def _at(path: Path, offset: int) -> Any:
    def open_(skip: int) -> AbstractContextManager[Any]:
        # Blocks are large: a buffer of Python's would be one copy more.
        stream = path.open("rb", buffering=0) if isinstance(path, Path) else _Ranges(path)
        stream.seek(offset + skip)
        return stream

    return open_


class _Ranges(io.RawIOBase):
    """A remote file whose every read is one request for a range: of several streams none moves another."""

    def __init__(self, path: Any):
        self.path, self.at = path, 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        data = self.path.fs.cat_file(self.path.path, self.at, self.at + len(buffer))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


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
