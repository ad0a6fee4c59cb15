"""Parts of a data set on several processes: of this machine, or on a Dask cluster."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .terminal import CommandError, keep_compiled
from .totals import Scoring, Totals

STARTING = 60  # seconds that workers may take


@contextlib.contextmanager
def cluster(workers: int | None, scheduler: str | None) -> Iterator[Any]:
    """A client of Dask's, of so many processes of this machine or at a scheduler's address.

    Raises:
        CommandError: there is no scheduler or no worker.
    """
    from dask import config
    from distributed import Client, LocalCluster

    with contextlib.ExitStack() as stack:
        try:
            if scheduler is None:
                # Processes that share a GPU take of its memory what they need.
                share = {"distributed.nanny.pre-spawn-environ.XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
                stack.enter_context(config.set(share))
                how: dict[str, Any] = dict(dashboard_address=":0", silence_logs=50, memory_limit=0)
                at: Any = stack.enter_context(LocalCluster(n_workers=workers, threads_per_worker=1, **how))
            else:
                at = scheduler
            client: Any = stack.enter_context(Client(at, timeout=STARTING, set_as_default=False))
            client.wait_for_workers(1, timeout=STARTING)
        except (OSError, ValueError, TimeoutError) as error:
            asked = f"--workers {workers}" if scheduler is None else f"--scheduler {scheduler}"
            raise CommandError(f"{asked}: {error}") from None
        yield client


def total(client: Any, scoring: Scoring, parts: Sequence[tuple[int, Sequence]], done: Callable[[int], None]) -> Totals:
    """The sum over parts, added in their order. A part whose worker is lost is done again by another.

    Raises:
        CommandError: of any part; or one part has lost its workers again and again.
    """
    from distributed import KilledWorker, as_completed

    futures = client.map(_of_part, [scoring] * len(parts), [pieces for _, pieces in parts], pure=False)
    number = {future.key: i for i, future in enumerate(futures)}
    waiting: dict[int, Totals] = {}
    totals, following = Totals(), 0
    for future in as_completed(futures, loop=client.loop):
        i = number[future.key]
        try:
            waiting[i] = future.result()
        except KilledWorker as error:
            raise CommandError(
                f"part {i + 1} of {len(parts)}: its workers were lost again and again: {error}"
            ) from None
        future.release()
        while following in waiting:
            totals += waiting.pop(following)
            following += 1
        done(parts[i][0])
    return totals


def _of_part(scoring: Scoring, pieces: Sequence) -> Totals:
    keep_compiled()
    return scoring.total(pieces)
