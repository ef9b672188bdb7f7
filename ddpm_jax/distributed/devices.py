"""Devices: the only file that knows how work is spread over them.

Training is one `pmap`: the state goes in whole and comes out whole (no device axis),
each device sees its part of the batch, and the step's own `pmean` joins them. Sampling
and evaluation are each a `shard_map`: examples are cut over the devices, and nothing is
exchanged but the results, between processes.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.extend.core import Jaxpr
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

AXIS = "batch"


class TracedSteps(NamedTuple):
    """What is known of `parallel_steps` before its first call.

    Attributes:
      program: of a device; where a call takes several steps, that of one is in a loop.
      compile: compiles it, as another thread may, for the first call to find; one of
        several processes leaves that to the call.
    """

    program: Jaxpr
    compile: Callable[[], None]


def mapped_step(train_step: Callable, devices: Sequence[jax.Device] | None = None):
    """The program of one step a call, for devices that need not be here.

    Args:
      train_step: see `parallel_steps`.
      devices: those to compile for, by default all there are.

    Returns:
      mapped(state, batch, key, votes), whose batch is [devices, batch of a device, ...]
      and votes [devices]; it can be lowered for shapes.
    """

    def train_and_vote(state, batch, key, vote):
        return *train_step(state, batch, key), jax.lax.pmean(vote, AXIS)

    return jax.pmap(
        train_and_vote,
        axis_name=AXIS,
        in_axes=(None, 0, None, 0),
        out_axes=(None, None, None),
        donate_argnums=0,
        devices=devices,
    )


def parallel_steps(train_step: Callable, most: int) -> Callable:
    """Maps several training steps over all devices of all processes, in one call.

    What a call costs the host is paid once: over several processes `pmap` converts each
    leaf of the state, 13 to 53 ms for a U-Net of 1,000 leaves. All steps go through one
    program, a loop whose length is an argument, so how they are cut into calls changes
    no bit. (XLA may round otherwise in a loop than in the program of a single step.)

    Args:
      train_step: (state, batch, key) -> (state, metrics), made with `axis_name=AXIS`.
      most: the most steps of a call; 1 for a program without a loop.

    Returns:
      steps(state, batches, key, vote=False) -> (state, metrics, votes), for a sequence
      of 1 ... `most` batches, which hold this process's examples, [local batch, ...].
      The state is donated. Metrics are those of each step, [most], of which the first
      len(batches) count (no axis if most is 1). The votes are the share of processes
      that gave True, the same number on all of them.
    """
    mapped = _mapped_steps(train_step, most)

    def steps(state, batches, key, vote=False):
        votes = np.full(jax.local_device_count(), vote, np.float32)
        if most == 1:
            (batch,) = batches
            return mapped(state, jax.tree.map(_cut, batch), key, votes)
        stacked = jax.tree.map(lambda *parts: _stacked(parts, most), *batches)
        return mapped(state, stacked, key, votes, np.int32(len(batches)))

    return steps


def trace_steps(train_step: Callable, most: int, state, batch, key) -> TracedSteps:
    """Goes through the program of `parallel_steps` without compiling it.

    What is wrong with the step raises here; its first call does not trace it again.

    Args:
      train_step: as for `parallel_steps`.
      most: as there.
      state: the state, or its shapes.
      batch: a host batch of this process, or its shapes.
      key: of the run.
    """
    local = jax.local_device_count()
    whole = NamedSharding(_local_mesh(), P())

    def laid(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)

    def cut(x):
        size, *rest = x.shape
        steps = () if most == 1 else (most,)
        return jax.ShapeDtypeStruct((local, *steps, size // local, *rest), x.dtype)

    given = [jax.tree.map(laid, state), jax.tree.map(cut, batch), key]
    given += [np.zeros(local, np.float32), np.int32(1)][: 1 if most == 1 else 2]
    mapped = _mapped_steps(train_step, most)

    def compile_it():
        if jax.process_count() == 1:
            mapped.lower(*given).compile()

    return TracedSteps(jax.make_jaxpr(mapped)(*given).jaxpr, compile_it)


@functools.lru_cache(maxsize=8)
def _mapped_steps(train_step: Callable, most: int):
    """The program of `parallel_steps`; for the same step, the same."""
    if most == 1:
        return mapped_step(train_step)

    def train_and_vote(state, batches, key, vote, count):
        def take(i, carried):
            state, metrics = carried
            batch = jax.tree.map(lambda x: x[i], batches)
            state, made = train_step(state, batch, key)
            return state, jax.tree.map(lambda x, y: x.at[i].set(y), metrics, made)

        first = jax.tree.map(lambda x: x[0], batches)
        _, shapes = jax.eval_shape(train_step, state, first, key)
        metrics = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), shapes)
        state, metrics = jax.lax.fori_loop(0, count, take, (state, metrics))
        return state, metrics, jax.lax.pmean(vote, AXIS)

    return jax.pmap(
        train_and_vote,
        axis_name=AXIS,
        in_axes=(None, 0, None, 0, None),
        out_axes=(None, None, None),
        donate_argnums=0,
    )


@functools.lru_cache(maxsize=16)
def shard(fn: Callable) -> Callable:
    """Compiles fn(params, *examples), cut over this process's devices.

    Args:
      fn: works on each example by itself.

    Returns:
      The same function, for a number of examples that the devices share equally; for
      the same `fn`, the same program.
    """
    mapped = mapped_examples(fn)
    return lambda params, *examples: mapped(params, examples)


def mapped_examples(fn: Callable, devices: Sequence[jax.Device] | None = None):
    """The program of `shard`, for devices that need not be here.

    Args:
      fn: see there.
      devices: those to compile for, by default those of this process.

    Returns:
      mapped(params, examples), with a tuple of examples; it can be lowered for shapes.
    """
    mesh = _local_mesh() if devices is None else Mesh(np.array(devices), (AXIS,))
    return jax.jit(
        jax.shard_map(
            lambda params, examples: fn(params, *examples),
            mesh=mesh,
            in_specs=(P(), P(AXIS)),
            out_specs=P(AXIS),
            check_vma=False,
        )
    )


def replicate(params):
    """Puts a tree of arrays on all devices of this process, whole on each."""
    return jax.device_put(params, NamedSharding(_local_mesh(), P()))


def in_batches(
    fn: Callable,
    num: int,
    batch_size: int,
    title: str,
    cache: Callable = lambda positions, compute: compute(),
    first: int = 0,
) -> Iterator:
    """Yields the results for examples first ... num - 1, in order, batch by batch.

    Processes share each batch: every one treats its part of it, and gets the whole.

    Args:
      fn: positions [part] -> results of these examples, a tree of arrays [part, ...].
      num: how many examples.
      batch_size: the most at a time on each device, so that more devices take less
        time; fewer where all share them at once.
      title: of the progress bar, which shows the batches where there are several.
      cache: called as cache(positions, compute) for each part; it returns compute(), or
        what that returned before.
      first: the example to begin with.

    Yields:
      NumPy results [batch, ...]; those of the last batch may be fewer.
    """
    devices, processes = jax.local_device_count(), jax.process_count()
    part = min(batch_size, -(-num // (devices * processes))) * devices
    starts = range(first, num, part * processes)
    quiet = True if len(starts) == 1 or jax.process_index() else None
    for start in tqdm(starts, title, unit="batch", disable=quiet):  # None: on terminals
        own = start + part * jax.process_index()
        positions = np.arange(own, own + part) % num  # fills the last batch

        def compute(positions=positions):
            return jax.device_get(fn(positions))

        results = cache(positions, compute)
        if processes > 1:
            results = jax.tree.map(_merged, process_allgather(results))
        yield jax.tree.map(lambda x, left=num - start: x[:left], results)


def map_batches(
    fn: Callable, params, examples, batch_size: int, title: str = "sampling", **how
) -> Iterator:
    """Treats any number of examples, batch by batch, with one compiled program.

    Args:
      fn: (params, *examples) -> results, working on each example by itself, such as a
        `sample_fn` with its keys and labels.
      params: the first argument.
      examples: the others, trees of arrays [num, ...] or None.
      batch_size: see `in_batches`, and for `title`.
      title: of the progress bar.
      **how: see `in_batches`.

    Yields:
      NumPy results of each batch. Processes share the work, and each gets all results.
    """
    sharded, params = shard(fn), replicate(params)

    def run_batch(positions):
        return sharded(params, *jax.tree.map(lambda x: x[positions], examples))

    num = len(jax.tree.leaves(examples)[0])
    return in_batches(run_batch, num, batch_size, title, **how)


def joined(batches: Iterable):
    """Joins results of batches, trees of arrays [batch, ...], to one [num, ...]."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


def parallel_map(fn: Callable, *how, **more) -> Callable:
    """Returns the function (params, *examples) -> results of any number of examples.

    See `map_batches`, whose further arguments these are.
    """
    return lambda params, *given: joined(map_batches(fn, params, given, *how, **more))


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


def _local_mesh():
    return Mesh(np.array(jax.local_devices()), (AXIS,))


def _merged(x):
    """[processes, part, ...] -> [batch, ...]."""
    return x.reshape(-1, *x.shape[2:])


def _cut(x):
    """[local batch, ...] -> [local devices, batch of a device, ...]."""
    return x.reshape(jax.local_device_count(), -1, *x.shape[1:])


def _stacked(parts: Sequence[np.ndarray], most: int):
    """[local batch, ...] of some steps -> [local devices, most, batch of a device, ...]

    Steps beyond those given are not taken, so their place may hold anything.
    """
    first = _cut(parts[0])
    stacked = np.zeros((len(first), most, *first.shape[1:]), first.dtype)
    for i, part in enumerate(parts):
        stacked[:, i] = _cut(part)
    return stacked
