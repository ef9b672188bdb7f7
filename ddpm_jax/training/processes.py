"""Processes: how this one joins the others, what they share, and how it leaves them.

While training, process 0 alone reads and writes the run's folder, and tells the others.
Whoever shares something here waits for all others to do the same, in the same order.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import NoReturn

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather

# The exit code that asks for being started again (EX_TEMPFAIL of sysexits.h).
TRY_AGAIN = 75

# One that has not answered for so long is given up, and all others end.
_HEARTBEAT_SECONDS = 30
# At the end the others wait so long for process 0 to finish its files.
_SHUTDOWN_SECONDS = 1800


def initialize(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins this process to the others, where there are any.

    Without arguments, JAX finds them on TPU pods (Google Cloud and GKE), under SLURM
    and Open MPI; elsewhere the process stays alone. If the others do not come within
    five minutes, JAX ends the process and says so.

    Args:
      coordinator: "HOST:PORT" of process 0.
      num_processes: how many there are.
      process_id: which one this is.

    Raises:
      ValueError: if only some of the three are given, or they make no sense.
      RuntimeError: if there is no joining, as where the port is taken.
    """
    given = [x is not None for x in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise ValueError(
            "--coordinator, --num_processes and --process_id belong together"
        )
    if any(given):
        print(f"waiting for {num_processes} processes at {coordinator}", flush=True)
    # Until a run listens to signals, one is to end the process, as ever.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        if any(given) or "coordinator_address" not in str(error):
            raise


def gather(text: str) -> list[str]:
    """Returns the texts of all processes, in order."""
    if jax.process_count() == 1:
        return [text]
    encoded = np.frombuffer(text.encode(), np.uint8)
    sizes = process_allgather(np.array(encoded.size))
    padded = np.zeros(max(sizes.max(), 1), np.uint8)
    padded[: encoded.size] = encoded
    rows = process_allgather(padded)
    return [
        row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)
    ]


def all_agree(flag: bool) -> bool:
    """Returns whether it is so on every process."""
    if jax.process_count() == 1:
        return flag
    return bool(np.all(process_allgather(np.array(flag))))


def of_first(tree):
    """Returns the tree of process 0, of NumPy arrays of the same shapes everywhere."""
    if jax.process_count() == 1:
        return tree
    received = broadcast_one_to_all(jax.tree.map(_bits, tree))
    return jax.tree.map(
        lambda x, bits: bits.view(x.dtype).reshape(x.shape), tree, received
    )


def on_first(make: Callable):
    """Returns make() on process 0, and elsewhere an object that does nothing."""
    return make() if jax.process_index() == 0 else Elsewhere()


def abandon(code: int) -> NoReturn:
    """Ends this process without waiting for the others, which it lost or which fail."""
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:  # the others depend on it: they may say their part
        time.sleep(2)
    os._exit(code)


class Elsewhere:
    """Stands in for what only process 0 has: its methods do nothing."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def _bits(x):
    """As integers, for what is sent is summed: -0.0 would arrive as 0.0."""
    x = np.atleast_1d(np.asarray(x))
    return x.view(f"u{min(x.itemsize, 4)}")
