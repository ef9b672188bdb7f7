"""Metrics of steps still under way, read without making the device wait."""

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable

import jax
import numpy as np

# What is not averaged: the last step of an interval has it.
NEWEST = ("learning_rate",)


class DivergedError(ArithmeticError):
    """A loss or a gradient is no longer a number."""


class Meter:
    """Averages the metrics of each interval of steps and hands them on.

    Steps are dispatched ahead of the device, one or several a call; the meter reads a
    call's metrics when a few younger ones are under way. That also bounds how far the
    host runs ahead.
    """

    def __init__(
        self,
        every: int,
        write: Callable,
        speeds: Callable[[float], dict[str, float]] = lambda seconds: {},
        in_flight: int = 3,
        max_skipped: int = 0,
        skip: Callable = lambda step, why, skipped: None,
    ):
        """Makes a meter.

        Args:
          every: steps in an interval.
          write: called as write(step, averages) at the end of each interval.
          speeds: what to record of the seconds that a step takes, the first call left
            out, that compiles.
          in_flight: how many calls may be under way.
          max_skipped: how many steps may have metrics that are not finite; the step
            itself must then have left its state as it was.
          skip: called as skip(step, why, number so far) for each of them.
        """
        self._every = every
        self._write = write
        self._speeds = speeds
        self._in_flight = in_flight
        self._max_skipped = max_skipped
        self._skip = skip
        self._skipped = 0
        self._pending = deque()
        self._last = None
        self._newest = {}
        self._restart()

    def add(self, step: int, metrics: dict, count: int = 1) -> None:
        """Takes the metrics of a call just dispatched.

        Args:
          step: the last step of the call.
          metrics: scalars, or arrays that begin with a value for each step; or pairs
            of them, a share of a mean and its weight (see `diffusion.losses`).
          count: how many steps it takes.

        Raises:
          DivergedError: if an older step's metrics are not finite, and no more such
            steps may be skipped.
        """
        self._pending.append((range(step - count + 1, step + 1), metrics))
        while len(self._pending) > self._in_flight:
            self._take()

    def pause(self) -> None:
        """Waits for all steps, so that what they left is known to be finite.

        What is done until the next step is left out of the time of steps.

        Raises:
          DivergedError: as `add`.
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
        steps, metrics = self._pending.popleft()
        metrics = jax.device_get(metrics)
        now = time.perf_counter()
        seconds = None  # the first call compiles
        if self._last is not None:
            seconds = (now - self._last) / len(steps)
        self._last = now
        for i, step in enumerate(steps):
            values = jax.tree.map(lambda x, i=i: float(np.ravel(x)[i]), metrics)
            self._take_step(step, values, seconds)

    def _take_step(self, step, values, seconds):
        pairs = {k: v if isinstance(v, tuple) else (v, 1.0) for k, v in values.items()}
        bad = [f"{k} is {v}" for k, (v, _) in pairs.items() if not math.isfinite(v)]
        if bad:
            self._refuse(step, bad[0])
        else:
            self._count += 1
            for name, (value, weight) in pairs.items():
                self._sums[name] += value
                self._weights[name] += weight
        self._newest = {k: v for k, v in values.items() if k in NEWEST}
        if seconds is not None:
            self._seconds += seconds
            self._timed += 1
        if step % self._every == 0:
            self._emit(step)

    def _refuse(self, step, why):
        if self._skipped == self._max_skipped:
            after = f", after {self._skipped} skipped" if self._skipped else ""
            raise DivergedError(f"{why} at step {step}{after}")
        self._skipped += 1
        self._skip(step, why, self._skipped)

    def _emit(self, step):
        found = {
            name: total for name, total in self._sums.items() if self._weights[name]
        }
        averages = {name: total / self._weights[name] for name, total in found.items()}
        averages |= self._newest
        if self._skipped:
            averages["skipped"] = self._skipped
        if self._timed:
            averages |= self._speeds(self._seconds / self._timed)
        self._write(step, averages)
        self._restart()

    def _restart(self):
        self._sums, self._weights = defaultdict(float), defaultdict(float)
        self._count = self._timed = 0
        self._seconds = 0.0
