"""The order of the data: the batch of step k as a pure function of (seed, k).

The stream of examples has positions 0, 1, 2, ...; with N images, position p lies in
epoch p // N and shows image permutation(seed, epoch)[p % N], mirrored or not by the
coin of (seed, p). Step k reads positions k * batch_size onwards. So nothing but the
step has to be stored to resume, and any number of processes, each taking its slice,
reads the same global batches.
"""

import functools
import itertools
import operator
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from ddpm_jax.data.base import Source, gather
from ddpm_jax.data.contents import Contents

Batch = dict[str, np.ndarray]

# The share of the time from which on waiting for images is worth a line.
_TOO_LONG = 0.1

# Philox keys are (seed, stream): the epochs are streams 0, 1, ..., the coins the last.
_COINS = 2**64 - 1


def _philox(seed: int, stream: int, counter: int = 0) -> np.random.Philox:
    key = np.array([seed % 2**64, stream], np.uint64)
    return np.random.Philox(key=key, counter=counter)


def _coins(seed: int, first: int, count: int) -> np.ndarray:
    """Tosses the coins of the positions first .. first + count - 1, bool [count]."""
    # One value of the counter gives four numbers: start at the block that holds first.
    block, skip = divmod(first, 4)
    raw = _philox(seed, _COINS, block).random_raw(skip + count)
    return raw[skip:] >> np.uint64(63) == 1


def make_batch_fn(
    source: Source,
    batch_size: int,
    seed: int = 0,
    flip: bool = False,
    process_index: int = 0,
    process_count: int = 1,
) -> Callable[[SupportsIndex], Batch]:
    """Makes the function from a step to this process's share of its batch.

    Every epoch shows each image of the source exactly once, in a new order; a batch
    may cross epochs. The global batch does not depend on the process count: the
    shares of process 0, 1, ... one after the other are the batch of one process.

    Args:
        source: the images.
        batch_size: images in the global batch of all processes, B.
        seed: an integer of 64 bits, negative or not.
        flip: whether a fair coin for each example mirrors it left to right.
        process_index: this process, 0 .. P - 1.
        process_count: number of processes, P; divides the batch size.

    Returns:
        batch_fn(step) for step = 0, 1, ..., safe to call from several threads, giving
        "image" uint8 [B/P, H, W, C], "label" int32 [B/P] and "id" uint32 [B/P]: the
        position in the stream, step * B + j, modulo 2**32.

    Raises:
        ValueError: if the sizes do not fit each other.
    """
    num_images = len(source)
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"the seed must have 64 bits, got {seed}")
    if not num_images:
        raise ValueError("the source holds no images: check its path and split")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size {batch_size} does not divide over {process_count} processes: "
            "give a positive multiple of the process count"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(
            f"process_index {process_index} is outside 0 .. {process_count - 1}: "
            "count the processes from 0"
        )
    share = batch_size // process_count

    # Batches computed ahead touch the present epoch and the next, hence two.
    @functools.lru_cache(maxsize=2)
    def permutation(epoch: int) -> np.ndarray:
        return np.random.Generator(_philox(seed, epoch)).permutation(num_images)

    def batch_fn(step: SupportsIndex) -> Batch:
        first = operator.index(step) * batch_size + process_index * share
        end = first + share
        order = []
        for epoch in range(first // num_images, (end - 1) // num_images + 1):
            start = epoch * num_images
            order.append(permutation(epoch)[max(first - start, 0) : end - start])
        images, labels = gather(source, np.concatenate(order))
        if flip:
            mirrored = _coins(seed, first, share)
            images[mirrored] = images[mirrored, :, ::-1]
        ids = (np.arange(first, end) % 2**32).astype(np.uint32)
        return {"image": images, "label": labels, "id": ids}

    return batch_fn


def prefetch(
    batch_fn: Callable[[int], Batch],
    first_step: int,
    end_step: int,
    num_workers: int = 4,
    depth: int = 8,
) -> Iterator[Batch]:
    """Yields the batches of range(first_step, end_step), computed ahead in threads.

    An exception of batch_fn is raised where its batch would have come. Closing the
    iterator, or leaving it to be collected, ends the threads.

    Args:
        batch_fn: a function of the step that several threads may call.
        first_step: the first step.
        end_step: one past the last step, as in `range`.
        num_workers: threads; each computes whole batches, so images are decoded in
            parallel as far as PIL lets go of the interpreter's lock.
        depth: batches in flight or waiting, which bounds the memory.

    Raises:
        ValueError: if num_workers or depth is not positive.
    """
    if num_workers < 1 or depth < 1:
        raise ValueError(
            f"num_workers is {num_workers} and depth is {depth}: both must be positive"
        )
    steps = iter(range(first_step, end_step))
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="prefetch")
    try:
        ahead = itertools.islice(steps, depth)
        pending = deque(pool.submit(batch_fn, step) for step in ahead)
        while pending:
            batch = pending.popleft().result()
            pending.extend(pool.submit(batch_fn, s) for s in itertools.islice(steps, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


class Feed(NamedTuple):
    """The batches of a training, and how they are computed ahead.

    Attributes:
        batch_fn: a function of the step that several threads may call.
        batch_size: images in a batch of all processes.
        num_workers: see `prefetch`, and for `depth`.
        depth: batches in flight or waiting.
        first_pass: steps that decode images which later ones find decoded.
        advice: what to do where training waits for images.
        contents: what the source holds.
        notes: what else to say of it, in words.
    """

    batch_fn: Callable[[SupportsIndex], Batch]
    batch_size: int
    num_workers: int = 4
    depth: int = 8
    first_pass: int = 0
    advice: str = "raise data.num_workers"
    contents: Contents | None = None
    notes: Sequence[str] = ()

    def ahead(
        self, first_step: int, end_step: int, say: Callable[[str], Any] = print
    ) -> "Ahead":
        """Yields the batches of range(first_step, end_step), computed ahead.

        Args:
            first_step: the first step.
            end_step: one past the last step, as in `range`.
            say: told once, in a line, where training waits for images.
        """
        return Ahead(self, first_step, end_step, say)


class _Pace:
    """How fast the workers are, all together."""

    def __init__(self):
        self._lock = threading.Lock()
        self._batches, self._seconds, self._newest = 0, 0.0, 0.0

    def timed(self, batch_fn: Callable) -> Callable:
        """Returns the function, whose calls are counted and timed from now on."""

        def run(step):
            start = time.perf_counter()
            batch = batch_fn(step)
            with self._lock:
                self._batches += 1
                self._seconds += time.perf_counter() - start
            return batch

        return run

    def take(self) -> float:
        """Returns the batches of a second of a worker since the last call with any."""
        with self._lock:
            if self._batches:
                self._newest = self._batches / self._seconds
            self._batches, self._seconds = 0, 0.0
        return self._newest


class Ahead:
    """An iterator over the batches of `prefetch` that knows its pace."""

    def __init__(self, feed: Feed, first_step: int, end_step: int, say: Callable):
        """Begins; see `Feed.ahead`."""
        self._feed, self._say, self._pace = feed, say, _Pace()
        self._batches = prefetch(
            self._pace.timed(feed.batch_fn),
            first_step,
            end_step,
            feed.num_workers,
            feed.depth,
        )
        self._taken, self._waited, self._since = 0, 0.0, time.perf_counter()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        batch = next(self._batches)
        now = time.perf_counter()
        if self._taken:
            self._waited += now - start
        else:  # nobody can be ahead of the first
            self._since = now
        self._taken += 1
        return batch

    def close(self) -> None:
        """Ends the threads."""
        self._batches.close()

    def measured(self) -> dict[str, float]:
        """Returns the pace since the last call; says once if training waits.

        Returns:
            "input_wait", the share of the time that was spent waiting for a batch, and
            "input_images_per_sec", how many images the workers of all processes can
            compute in a second; where none had to, as it was before.
        """
        now, feed = time.perf_counter(), self._feed
        wait = self._waited / (now - self._since)
        self._waited, self._since = 0.0, now
        if wait > _TOO_LONG and self._taken > feed.first_pass and self._say:
            self._say(
                f"training waits for images {wait:.0%} of the time: {feed.advice}"
            )
            self._say = None
        images = self._pace.take() * feed.batch_size
        workers = min(feed.num_workers, feed.depth)
        return {"input_wait": wait, "input_images_per_sec": images * workers}
