"""Processes: how this one joins the others, what they share, and how it leaves them.

While training, process 0 alone reads and writes the run's folder, and tells the others.
Whoever shares something here waits for all others to do the same, in the same order.
"""

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather

from ddpm_jax.errors import one_line

# The exit code that asks for being started again (EX_TEMPFAIL of sysexits.h).
EXIT_RETRY = 75

# At the start the others are waited for so long, and then JAX ends the process.
_START_SECONDS = 300
# One that has not answered for so long is given up, and all others end.
_HEARTBEAT_SECONDS = 30
# At the end the others wait so long for process 0 to finish its files.
_SHUTDOWN_SECONDS = 1800


class RemoteError(Exception):
    """Something on another process, which ends this one too."""


def initialize(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins this process to the others, where there are any.

    Without arguments, JAX finds them on TPU pods (Google Cloud and GKE), under SLURM
    and Open MPI; elsewhere the process stays alone.

    Args:
      coordinator: "HOST:PORT" of process 0.
      num_processes: how many there are.
      process_id: which one this is.

    Raises:
      ValueError: if only some of the three are given, or they make no sense.
      OSError: if the port is taken.
    """
    given = [x is not None for x in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise ValueError(
            "--coordinator, --num_processes and --process_id belong together"
        )
    if any(given):
        port = _port(coordinator)
        if process_id == 0:
            _check_free(port)
        print(
            f"waiting for {num_processes} processes at {coordinator}, at most "
            f"{_START_SECONDS // 60} minutes",
            flush=True,
        )
    # Until a run listens to signals, one is to end the process, as ever.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        if any(given) or "coordinator_address" not in str(error):
            raise


def all_gather(text: str) -> list[str]:
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


def assert_equal(values: dict[str, Any]) -> None:
    """Compares values that JSON can hold with those of process 0; all must ask.

    Raises:
      RemoteError: on every process, naming the first that differ.
    """
    first, *others = map(json.loads, all_gather(json.dumps(values)))
    for index, other in enumerate(others, 1):
        for key in sorted({*first, *other}):
            here, there = first.get(key), other.get(key)
            if here != there:
                raise RemoteError(
                    f"{key} is {here} on process 0 and {there} on process {index}: "
                    "start all processes with the same command and the same files"
                )


@contextlib.contextmanager
def error_barrier() -> Iterator[None]:
    """What fails within on one process fails on all of them; all must come here.

    Nothing may be shared within: who failed would share its failure with the others.
    Not so what a device or an exchange raises, for to tell it would need them: this
    process ends, and the others find it lost, and are started again.

    Raises:
      RemoteError: on the processes where nothing failed.
    """
    own = None
    try:
        yield
    except jax.errors.JaxRuntimeError:
        raise
    except Exception as error:  # also a defect: none may wait for who has it
        own = error
    said = all_gather("" if own is None else one_line(own) or type(own).__name__)
    if own is not None:
        raise own
    for index, text in enumerate(said):
        if text:
            raise RemoteError(f"process {index}: {text}")


def broadcast(tree):
    """Returns the tree of process 0, of NumPy arrays of the same shapes everywhere."""
    if jax.process_count() == 1:
        return tree
    received = broadcast_one_to_all(jax.tree.map(_bits, tree))
    return jax.tree.map(
        lambda x, bits: bits.view(x.dtype).reshape(x.shape), tree, received
    )


def on_primary(make: Callable):
    """Returns make() on process 0, and elsewhere an object that does nothing."""
    return make() if jax.process_index() == 0 else Null()


def exit_now(code: int) -> NoReturn:
    """Ends this process without waiting for the others, which it lost or which fail."""
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:  # the others depend on it: they may say their part
        time.sleep(2)
    os._exit(code)


def _port(coordinator: str) -> int:
    port = coordinator.rpartition(":")[2]
    if ":" not in coordinator or not port.isdigit():
        raise ValueError(f"--coordinator must be HOST:PORT, got {coordinator!r}")
    return int(port)


def _check_free(port: int) -> None:
    """JAX would end with a stack of its own."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise OSError(f"port {port} is in use: choose another") from error


class Null:
    """Stands in for what only process 0 has: its methods do nothing."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def _bits(x):
    """As integers, for what is sent is summed: -0.0 would arrive as 0.0."""
    x = np.atleast_1d(np.asarray(x))
    return x.view(f"u{min(x.itemsize, 4)}")
