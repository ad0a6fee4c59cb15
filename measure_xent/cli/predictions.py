"""Predictions in one file, a block of rows at a time: which arrays or columns are what. Nothing is ever held whole."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from .terminal import CommandError

KINDS = {
    "logits": ("logits", "logit"),
    "log-probs": ("log_probs", "log_probabilities", "logprobs"),
    "probs": ("probs", "probabilities"),
}
UNSAID = "predictions"  # found by its name, which does not say what kind they are
LABELS, WEIGHTS, GROUPS = ("labels", "label", "targets", "target", "y"), ("weights", "weight"), ("groups", "group")


class Names(NamedTuple):
    """Which arrays or columns of a file are what; None where the usual names say."""

    predictions: str | None = None
    kind: str | None = None
    labels: str | None = None
    weights: str | None = None
    groups: str | None = None


@dataclass(frozen=True)
class Block:
    """Some rows of a file."""

    path: Path
    first: int  # its row, counted from 0
    predictions: np.ndarray  # [rows, V]
    labels: np.ndarray  # [rows]
    weights: np.ndarray | None
    groups: np.ndarray | None  # any values
    bytes: int  # that the rows take in the file, about

    @property
    def rows(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice) -> "Block":
        start, stop, _ = rows.indices(self.rows)
        cut = lambda x: None if x is None else x[rows]
        return Block(
            self.path,
            self.first + start,
            self.predictions[rows],
            self.labels[rows],
            cut(self.weights),
            cut(self.groups),
            self.bytes * (stop - start) // max(self.rows, 1),
        )


class Predictions(NamedTuple):
    """What is known of a file before its rows are read."""

    path: Path
    kind: str  # "logits", "log-probs" or "probs"
    size: int  # in bytes
    classes: int  # columns
    rows: int | None  # None: nobody knows before they are read
    starts: Sequence[int] | None  # the rows where reading may begin at no cost; None: any
    blocks: Callable[[int, int | None], Iterator[Block]]  # of rows from the first to before the last, None for the end
    labels: Callable[[], Iterator[np.ndarray]]  # all of them, as they are stored
    beside: frozenset[str]  # of weights and groups, what there is
    text: bool = False  # labels are words
    columns: tuple[str, ...] | None = None  # the names of columns, one a class


def choose(path: Path, found: Sequence[str], names: Names) -> tuple[str | None, str | None, dict[str, str | None]]:
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


def known(path: Path, prediction: str, kind: str | None) -> str:
    if kind is None:
        raise CommandError(f"{path}: are {prediction} logits, log-probs or probs? Say so by --kind")
    return kind


def check_dtypes(path: Path, dtypes: dict[str, np.dtype]) -> None:
    floating = lambda dtype: dtype.kind == "f" or dtype == ml_dtypes.bfloat16
    if not floating(dtypes["predictions"]):
        raise CommandError(f"{path}: predictions are {dtypes['predictions']}, not floating")
    if not (floating(dtypes["labels"]) or dtypes["labels"].kind in "iubUSO"):
        raise CommandError(f"{path}: labels are {dtypes['labels']}, not integers or words")
    if "weights" in dtypes and not (floating(dtypes["weights"]) or dtypes["weights"].kind in "iub"):
        raise CommandError(f"{path}: weights are {dtypes['weights']}, not numbers")
