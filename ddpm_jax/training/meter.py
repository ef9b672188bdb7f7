"""Metrics of steps still under way, read without making the device wait."""

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable

import jax


class NonFiniteError(ArithmeticError):
    """A loss or a gradient is no longer a number."""


class Meter:
    """Averages the metrics of each interval of steps and hands them on.

    Steps are dispatched ahead of the device; the meter reads a step's metrics when a
    few younger ones are under way. That also bounds how far the host runs ahead.
    """

    def __init__(
        self,
        every: int,
        write: Callable,
        batch_size: int,
        in_flight: int = 3,
        max_skipped: int = 0,
        skip: Callable = lambda step, why, skipped: None,
    ):
        """Makes a meter.

        Args:
          every: steps in an interval.
          write: called as write(step, averages) at the end of each interval.
          batch_size: images in a step, for "images_per_sec", which leaves out the
            first step, that compiles.
          in_flight: how many steps may be under way.
          max_skipped: how many steps may have metrics that are not finite; the step
            itself must then have left its state as it was.
          skip: called as skip(step, why, number so far) for each of them.
        """
        self._every = every
        self._write = write
        self._batch_size = batch_size
        self._in_flight = in_flight
        self._max_skipped = max_skipped
        self._skip = skip
        self._skipped = 0
        self._pending = deque()
        self._last = None
        self._restart()

    def add(self, step: int, metrics: dict) -> None:
        """Takes the metrics of a step just dispatched.

        Raises:
          NonFiniteError: if an older step's metrics are not finite, and no more such
            steps may be skipped.
        """
        self._pending.append((step, metrics))
        while len(self._pending) > self._in_flight:
            self._take()

    def pause(self) -> None:
        """Waits for all steps, so that what they left is known to be finite.

        What is done until the next step is left out of the time of steps.

        Raises:
          NonFiniteError: as `add`.
        """
        while self._pending:
            self._take()
        self._last = None

    def write_rest(self, step: int) -> None:
        """Hands on what an interval has so far, where the run ends in its middle."""
        self.pause()
        if self._count:
            self._emit(step)

    def _take(self):
        step, metrics = self._pending.popleft()
        values = jax.device_get(metrics)
        bad = [f"{k} is {v}" for k, v in values.items() if not math.isfinite(v)]
        if bad:
            self._refuse(step, bad[0])
        else:
            self._count += 1
            for name, value in values.items():
                self._sums[name] += float(value)
        now = time.perf_counter()
        if self._last is not None:  # the first step compiles
            self._seconds += now - self._last
            self._timed += 1
        self._last = now
        if step % self._every == 0:
            self._emit(step)

    def _refuse(self, step, why):
        if self._skipped == self._max_skipped:
            after = f", after {self._skipped} skipped" if self._skipped else ""
            raise NonFiniteError(f"{why} at step {step}{after}")
        self._skipped += 1
        self._skip(step, why, self._skipped)

    def _emit(self, step):
        averages = {name: total / self._count for name, total in self._sums.items()}
        if self._skipped:
            averages["skipped"] = self._skipped
        if self._timed:
            averages["images_per_sec"] = self._timed * self._batch_size / self._seconds
        self._write(step, averages)
        self._restart()

    def _restart(self):
        self._sums = defaultdict(float)
        self._count = self._timed = 0
        self._seconds = 0.0
