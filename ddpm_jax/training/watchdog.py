"""A watchdog: ends a process in which nothing moves any more."""

import contextlib
import faulthandler
import os
import sys
import threading
from collections.abc import Iterator

from ddpm_jax.distributed.multihost import EXIT_RETRY


class Watchdog(contextlib.AbstractContextManager):
    """Ends the process where no step ends for too long.

    A device or a collective that hangs raises nothing and answers no signal; so this
    says where things stood, prints the stacks of all threads, and exits with 75. What
    was being saved is not complete then, and the checkpoints before it are.
    """

    def __init__(self, seconds: float):
        """Starts watching.

        Args:
          seconds: the longest time from one `heartbeat` to the next. Seconds in which
            the machine or the process slept do not count.
        """
        self._seconds = seconds
        self._where = "the start"
        self._moves = 0
        self._rests = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def heartbeat(self, where: str) -> None:
        """Something moved: `where` says what, as in "step 12"."""
        self._where = where
        self._moves += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not watch what takes as long as it takes, such as drawing samples."""
        self._rests = True
        try:
            yield
        finally:
            self._rests = False

    def __exit__(self, *exception):
        self._ended.set()
        self._thread.join()

    def _watch(self):
        tick = min(1.0, self._seconds / 4)
        left, moves = self._seconds, self._moves
        while left > 0:
            if self._ended.wait(tick):
                return
            if self._rests or self._moves != moves:
                left, moves = self._seconds, self._moves
            else:
                left -= tick
        faulthandler.dump_traceback()
        print(
            f"error: nothing has moved for {self._seconds:g} seconds since "
            f"{self._where}: a device or another process hangs, or train.timeout is "
            "too short; the same command goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_RETRY)
