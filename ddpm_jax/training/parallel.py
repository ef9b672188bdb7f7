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


def shard(sample_fn: Callable) -> Callable:
    """Compiles sample_fn(params, keys, cond), cut over this process's devices.

    Args:
      sample_fn: works on each image by itself.

    Returns:
      The same function, for a number of keys that the devices share equally.
    """
    return jax.jit(
        jax.shard_map(
            sample_fn,
            mesh=Mesh(np.array(jax.local_devices()), (AXIS,)),
            in_specs=(P(), P(AXIS), P(AXIS)),
            out_specs=P(AXIS),
            check_vma=False,
        )
    )


def parallel_sample(sample_fn: Callable, batch_size: int) -> Callable:
    """Samples any number of images, batch by batch, with one compiled program.

    Args:
      sample_fn: (params, keys, cond) -> images, working on each image by itself.
      batch_size: how many images at a time; made a multiple of the devices.

    Returns:
      The same function for any number of keys, with NumPy images; a progress bar shows
      the batches where there are several.
    """
    devices = jax.local_device_count()
    batch_size = -(-batch_size // devices) * devices
    sharded = shard(sample_fn)

    def sample(params, keys, cond=None):
        num = len(keys)
        starts = range(0, num, batch_size)
        quiet = True if len(starts) == 1 else None  # None: quiet without a terminal
        batches = []
        for start in tqdm(starts, "sampling", unit="batch", disable=quiet):
            part = np.arange(start, start + batch_size) % num  # fills the last batch
            labels = None if cond is None else cond[part]
            batches.append(np.asarray(sharded(params, keys[part], labels)))
        return np.concatenate(batches)[:num]

    return sample


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
