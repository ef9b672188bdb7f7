"""Devices: the only file that knows how work is spread over them.

Training is one `pmap`: the state goes in whole and comes out whole (no device axis),
each device sees its part of the batch, and the step's own `pmean` joins them. Sampling
is one `shard_map`: keys are cut over the devices, and nothing is exchanged.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

AXIS = "batch"


def parallel_step(train_step: Callable) -> Callable:
    """Maps a training step over all devices of all processes.

    Args:
      train_step: (state, batch, key) -> (state, metrics), made with `axis_name=AXIS`.

    Returns:
      The same function for a batch that holds this process's examples, [local batch,
      ...]; the state is donated.
    """
    mapped = jax.pmap(
        train_step,
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=(None, None),
        donate_argnums=0,
    )

    def step(state, batch, key):
        return mapped(state, jax.tree.map(_cut, batch), key)

    return step


def shard(fn: Callable) -> Callable:
    """Compiles fn(params, *examples), cut over this process's devices.

    Args:
      fn: works on each example by itself.

    Returns:
      The same function, for a number of examples that the devices share equally.
    """
    mapped = jax.jit(
        jax.shard_map(
            lambda params, examples: fn(params, *examples),
            mesh=Mesh(np.array(jax.local_devices()), (AXIS,)),
            in_specs=(P(), P(AXIS)),
            out_specs=P(AXIS),
            check_vma=False,
        )
    )
    return lambda params, *examples: mapped(params, examples)


def parallel_map(fn: Callable, batch_size: int, title: str = "sampling") -> Callable:
    """Treats any number of examples, batch by batch, with one compiled program.

    Args:
      fn: (params, *examples) -> results, working on each example by itself, such as a
        `sample_fn` with its keys and labels.
      batch_size: how many examples at a time; made a multiple of the devices.
      title: of the progress bar, which shows the batches where there are several.

    Returns:
      The same function for any number of examples, with NumPy results; an argument may
      be None.
    """
    devices = jax.local_device_count()
    batch_size = -(-batch_size // devices) * devices
    sharded = shard(fn)

    def run(params, *examples):
        num = len(jax.tree.leaves(examples)[0])
        starts = range(0, num, batch_size)
        quiet = True if len(starts) == 1 else None  # None: quiet without a terminal
        batches = []
        for start in tqdm(starts, title, unit="batch", disable=quiet):
            part = np.arange(start, start + batch_size) % num  # fills the last batch
            cut = jax.tree.map(lambda x, part=part: x[part], examples)
            batches.append(jax.device_get(sharded(params, *cut)))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:num], *batches)

    return run


def check_batch_size(batch_size: int, num_microbatches: int = 1) -> None:
    """Refuses a global batch that the devices cannot share equally.

    Raises:
      ValueError: naming both numbers.
    """
    devices = jax.device_count()
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be whole and at least 1, got {batch_size!r}")
    if batch_size % (devices * num_microbatches):
        parts = f" in {num_microbatches} microbatches" if num_microbatches > 1 else ""
        raise ValueError(
            f"batch_size {batch_size} cannot be shared by {devices} devices{parts}: "
            f"choose a multiple of {devices * num_microbatches}"
        )


def initialize(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins this process to the others, where a coordinator is given.

    Args:
      coordinator: "HOST:PORT" of process 0, or None for a single process.
      num_processes: how many there are.
      process_id: which one this is.

    Raises:
      ValueError: if only some of the three are given.
    """
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if not any(given):
        return
    if not all(given):
        raise ValueError(
            "--coordinator, --num_processes and --process_id belong together"
        )
    jax.distributed.initialize(coordinator, num_processes, process_id)


def _cut(x):
    """[local batch, ...] -> [local devices, batch of a device, ...]."""
    return x.reshape(jax.local_device_count(), -1, *x.shape[1:])
