"""Stopping before the end: signals, heard by all processes at the same step."""

import contextlib
import signal
import threading
from collections import deque

import jax


class Preemption(contextlib.AbstractContextManager):
    """Notes SIGTERM, SIGHUP and Ctrl-C, so that a step can be finished and saved.

    A signal may reach one process only: each call of steps carries the vote of every
    process, and all read the same result at the same step.

    Attributes:
      signal: the number of the signal, or None; a second Ctrl-C interrupts at once.
    """

    def __init__(self, lag: int = 3):
        """Begins to listen.

        Args:
          lag: votes are read when so many younger calls are under way, so that nobody
            waits.
        """
        self._lag = lag
        self.signal = None
        self._before = {}
        self._votes = deque()
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGTERM, signal.SIGINT]
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup sets it
                numbers.append(signal.SIGHUP)
            for number in numbers:
                self._before[number] = signal.signal(number, self._note)

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop; its vote."""
        return self.signal is not None

    def request(self) -> None:
        """Asks as SIGTERM does."""
        self.signal = self.signal or signal.SIGTERM

    def agreed(self, votes: jax.Array) -> bool:
        """Takes the votes of the call just dispatched; returns whether to stop now."""
        if jax.process_count() == 1:
            return self.requested
        self._votes.append(votes)
        return len(self._votes) > self._lag and float(self._votes.popleft()) > 0

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number; SIGTERM's where another process had it."""
        return 128 + (self.signal or signal.SIGTERM)

    def _note(self, number, frame):
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(OSError):  # the terminal may be gone
            print("stopping after this step; Ctrl-C again to stop at once", flush=True)

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)
