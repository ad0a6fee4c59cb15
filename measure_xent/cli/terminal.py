"""What commands share: arguments with a range, output folders, compiled programs, the bar of a training run."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class CommandError(Exception):
    """Ends a command with its message and exit status 1."""


def positive(kind: type, at_most: float = math.inf) -> Callable[[str], Any]:
    """The parser of a positive finite number."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value < math.inf or value > at_most:
            limit = "" if at_most == math.inf else f" up to {at_most}"
            raise argparse.ArgumentTypeError(f"a positive {kind.__name__}{limit}, got {text}")
        return value

    parse.__name__ = kind.__name__  # argparse's own message names it
    return parse


def seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"between 0 and 2**32 - 1, got {text}")
    return value


def fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"between 0 and 1, got {text}")
    return value


def output_folder(path: Path) -> None:
    """Makes --out."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"--out {path}: not a folder that can be written: {error.strerror}") from None


def keep_compiled() -> None:
    """What one run has compiled the next ones load, from the user's cache, unless JAX is told of another place."""
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "measure-xent"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def training_bar(*fields: str) -> Any:
    """A progress bar on stderr that shows steps, the time left, and fields in their own format."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, *map(TextColumn, fields), console=Console(stderr=True))
