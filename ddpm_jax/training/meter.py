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
        self, every: int, write: Callable, batch_size: int, in_flight: int = 3
    ):
        """Makes a meter.

        Args:
          every: steps in an interval.
          write: called as write(step, averages) at the end of each interval.
          batch_size: images in a step, for "images_per_sec", which leaves out the
            first step, that compiles.
          in_flight: how many steps may be under way.
        """
        self._every = every
        self._write = write
        self._batch_size = batch_size
        self._in_flight = in_flight
        self._pending = deque()
        self._last = None
        self._restart()

    def add(self, step: int, metrics: dict) -> None:
        """Takes the metrics of a step just dispatched.

        Raises:
          NonFiniteError: if an older step's metrics are not finite.
        """
        self._pending.append((step, metrics))
        while len(self._pending) > self._in_flight:
            self._take()

    def finish(self) -> None:
        """Waits for all steps, so that what they left is known to be finite.

        Raises:
          NonFiniteError: if a step's metrics are not finite.
        """
        while self._pending:
            self._take()

    def pause(self) -> None:
        """Leaves what is done until the next step out of the time of steps."""
        self.finish()
        self._last = None

    def write_rest(self, step: int) -> None:
        """Hands on what an interval has so far, where the run ends in its middle."""
        self.finish()
        if self._count:
            self._emit(step)

    def _take(self):
        step, metrics = self._pending.popleft()
        for name, value in jax.device_get(metrics).items():
            if not math.isfinite(value):
                raise NonFiniteError(f"{name} is {value} at step {step}")
            self._sums[name] += float(value)
        self._count += 1
        now = time.perf_counter()
        if self._last is not None:  # the first step compiles
            self._seconds += now - self._last
            self._timed += 1
        self._last = now
        if step % self._every == 0:
            self._emit(step)

    def _emit(self, step):
        averages = {name: total / self._count for name, total in self._sums.items()}
        if self._timed:
            averages["images_per_sec"] = self._timed * self._batch_size / self._seconds
        self._write(step, averages)
        self._restart()

    def _restart(self):
        self._sums = defaultdict(float)
        self._count = self._timed = 0
        self._seconds = 0.0
