"""Predictions in tables: csv and parquet."""

import bisect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .predictions import Block, Names, Predictions, check_dtypes, choose, known
from .terminal import CommandError

LEAST_OF_CSV, MOST = 1 << 16, 2**31 - 1  # a line has to fit
STEMS = {"logits": ("logit",), "log-probs": ("log_prob", "logprob"), "probs": ("prob",)}  # of columns, one a class
# (columns, the first row asked for, which are real numbers) -> rows, from there or before, the number of the first, their bytes
Batches = Callable[[list[str], int, list[str]], Iterator[tuple[Any, int, int]]]


def open_csv(path: Path, names: Names, block_bytes: int) -> Predictions:
    from pyarrow import ArrowInvalid, csv, float64

    block_bytes = min(max(block_bytes, LEAST_OF_CSV), MOST)

    def opened(stream: Any, columns: Sequence[str] = (), real: Sequence[str] = ()):
        # The first block would say what columns are, though its numbers may all be whole.
        convert = csv.ConvertOptions(include_columns=list(columns), column_types=dict.fromkeys(real, float64()))
        return csv.open_csv(stream, read_options=csv.ReadOptions(block_size=block_bytes), convert_options=convert)

    def batches(columns: list[str], first: int, real: list[str]) -> Iterator[tuple[Any, int, int]]:
        row = before = 0
        with path.open("rb") as stream:
            for batch in opened(stream, columns, real):
                yield batch, row, stream.tell() - before
                row, before = row + batch.num_rows, stream.tell()

    try:
        with path.open("rb") as stream:
            schema = opened(stream).schema
    except ArrowInvalid as error:
        raise CommandError(f"{path}: {error}") from None
    return _of_table(path, schema, names, batches, None, [0])


def open_parquet(path: Path, names: Names, block_bytes: int) -> Predictions:
    from pyarrow import ArrowInvalid, parquet

    def opened(stream: Any):
        return parquet.ParquetFile(stream, pre_buffer=False, page_checksum_verification=True)

    try:
        with path.open("rb") as stream, opened(stream) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    except FileNotFoundError:
        raise CommandError(f"{path}: no such file") from None
    except (ArrowInvalid, OSError) as error:
        raise CommandError(f"{path}: broken or cut off: {error}") from None
    starts = np.cumsum([0, *(group.num_rows for group in groups)]).tolist()
    size = path.stat().st_size
    at_once = min(max(1, block_bytes * rows // max(1, sum(group.total_byte_size for group in groups))), MOST)

    def batches(columns: list[str], first: int, real: list[str]) -> Iterator[tuple[Any, int, int]]:
        group = bisect.bisect(starts, first) - 1
        row = starts[group]
        with path.open("rb") as stream, opened(stream) as file:
            for batch in file.iter_batches(at_once, list(range(group, len(groups))), columns):
                yield batch, row, size * batch.num_rows // rows
                row += batch.num_rows

    return _of_table(path, schema, names, batches, rows, starts[:-1])


def _of_table(
    path: Path, schema: Any, names: Names, batches: Batches, rows: int | None, starts: list[int]
) -> Predictions:
    """Predictions are one column of lists, or numeric columns, one a class: those that begin with ``logit``, ``log_prob`` or
    ``prob``, or as ``--predictions`` says; else every one that is nothing else, if they all have names."""
    from pyarrow import ArrowInvalid, types

    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise CommandError(f"{path}: several columns are named {', '.join(map(repr, twice))}")
    prediction, kind, others = choose(path, schema.names, names)
    others = {what: name for what, name in others.items() if name is not None}
    number = lambda kind: types.is_floating(kind) or types.is_integer(kind) or types.is_null(kind)  # of no rows
    is_list = lambda kind: types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    of = lambda name: schema.field(name).type
    for name in others.values():
        if types.is_nested(of(name)):
            raise CommandError(f"{path}: {name} is a column of {of(name)}, not of one value a row")
    if prediction in schema.names and is_list(of(prediction)):
        if not number(of(prediction).value_type):
            raise CommandError(f"{path}: {prediction} is a column of {of(prediction)}, not of lists of numbers")
        columns = None
    else:
        columns = [name for name in schema.names if name not in others.values() and number(of(name))]
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
    kind = known(path, str(prediction), kind)
    label = of(others["labels"])
    label = label.value_type if types.is_dictionary(label) else label
    text = types.is_string(label) or types.is_large_string(label)
    begins = re.escape(names.predictions) if names.predictions else r"(log_?)?prob(abilit(y|ies)|s)?|logits?"
    stem = re.compile(rf"({begins})[\W_]*")
    class_names = None if columns is None else tuple(stem.sub("", c, count=1) if stem.match(c) else c for c in columns)
    real = [*(columns or ()), *(others[what] for what in ("weights",) if what in others)]
    read = [*(columns if columns is not None else [prediction]), *others.values()]

    def array(batch: Any, name: str, row: int) -> np.ndarray:
        column = batch.column(name)
        if column.null_count:
            rows = (row + np.flatnonzero(np.asarray(column.is_null()))).tolist()
            raise CommandError(
                f"{path}: {name} is missing in rows, counted from 0, {rows[:5]}{'…' if rows[5:] else ''}"
            )
        column = column.dictionary_decode() if types.is_dictionary(column.type) else column
        return column.to_numpy(zero_copy_only=False)

    def of_batch(batch: Any, row: int) -> np.ndarray:
        if columns is not None:
            z = np.stack([array(batch, name, row) for name in columns], axis=1)
        else:
            lists = batch.column(prediction)
            flat = lists.flatten().to_numpy(zero_copy_only=False)
            if flat.size % batch.num_rows or len({*np.diff(_offsets(lists)).tolist()}) > 1:
                raise CommandError(f"{path}: {prediction} has rows of different lengths near row {row}")
            z = flat.reshape(batch.num_rows, -1)
        return z if z.dtype.kind == "f" else z.astype(np.float64)

    def told(columns: list[str], first: int) -> Iterator[tuple[Any, int, int]]:
        """The batches that have rows; what breaks them is told of."""
        row = first
        try:
            for batch, row, taken in batches(columns, first, [name for name in real if name in columns]):
                if batch.num_rows:
                    yield batch, row, taken
        except (ArrowInvalid, OSError) as error:
            raise CommandError(f"{path}: after row {row} broken, cut off, or not as before: {error}") from None

    def blocks(first: int, last: int | None) -> Iterator[Block]:
        for batch, row, taken in told(read, first):
            if last is not None and row >= last:
                return
            z = of_batch(batch, row)
            if z.shape[1] != classes:
                raise CommandError(f"{path}: {classes} classes, and {z.shape[1]} at row {row}")
            parts = {what: array(batch, name, row) for what, name in others.items()}
            check_dtypes(path, {k: a.dtype for k, a in parts.items()} | {"predictions": z.dtype})
            block = Block(path, row, z, parts["labels"], parts.get("weights"), parts.get("groups"), taken)
            block = block[max(first - row, 0) : None if last is None else last - row]
            if block.rows:
                yield block

    def labels() -> Iterator[np.ndarray]:
        for batch, row, _ in told([others["labels"]], 0):
            yield array(batch, others["labels"], row)

    if columns is None:
        some = next(told(read, 0), None)
        classes = 0 if some is None else of_batch(some[0].slice(0, 1), 0).shape[1]
    else:
        classes = len(columns)
    size = path.stat().st_size
    return Predictions(
        path, kind, size, classes, rows, starts, blocks, labels, frozenset(others) - {"labels"}, text, class_names
    )


def _offsets(lists: Any) -> np.ndarray:
    """Where each list begins and the last ends."""
    return np.arange(2) if not hasattr(lists, "offsets") else np.asarray(lists.offsets)
