"""The command ``measure-xent``."""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

from .terminal import CommandError

EXTRAS = {
    **dict.fromkeys(("sklearn", "matplotlib", "rich", "tokenizers", "orbax", "pyarrow"), "examples"),
    **dict.fromkeys(("dask", "distributed", "upath"), "cluster"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs a command; gives the exit status."""
    from . import bench, digits, lm, score

    parser = argparse.ArgumentParser(
        prog="measure-xent",
        description="Cross-entropy, done right: -P.expect(log(Q)). Train something with it, score predictions, time it.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"measure-xent {version('measure-xent')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train a model with the loss -P.expect(log(Q))")
    tasks = train.add_subparsers(title="tasks", required=True, metavar="TASK")
    digits.add_parser(tasks)
    lm.add_parser(tasks)
    bench.add_parser(commands)
    score.add_parser(commands)

    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("measure-xent: interrupted", file=sys.stderr)
        return 130
    except CommandError as error:
        print(f"measure-xent: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if extra := EXTRAS.get((error.name or "").split(".")[0]):
            print(f"measure-xent: {error.name} is not installed: pip install 'measure-xent[{extra}]'", file=sys.stderr)
            return 1
        raise
