"""A desk where one worker serves who waits in a queue, for as long as they stay."""

import collections
import contextlib
import threading
import traceback
from collections.abc import Generator, Iterator
from typing import Any, NamedTuple

from ddpm_jax.errors import reason

KEPT = 16  # results that one may lag behind, before the oldest is dropped
PATIENCE = 0.5  # seconds after which one who waits is told that there is nothing new


class Full(Exception):
    """There are too many in the queue."""


class Place(NamedTuple):
    """How many are served before; 0 for who is served now."""

    before: int


class Failed(NamedTuple):
    """The work failed.

    Attributes:
      why: in one line.
    """

    why: str


class Visitor:
    """One who waits: their work, and what came of it."""

    def __init__(self, work: Generator):
        self.work, self.results = work, collections.deque(maxlen=KEPT)
        self.served = self.left = False


class Desk:
    """Does the work of its visitors one after the other, in a thread of its own."""

    def __init__(self, most: int):
        """Opens the desk.

        Args:
          most: how many may be in the queue, with the one who is served.
        """
        self._most, self._queue = most, collections.deque()
        self._changed = threading.Condition()
        threading.Thread(target=self._serve, daemon=True).start()

    @contextlib.contextmanager
    def visit(self, work: Generator) -> Iterator[Iterator[Any]]:
        """Stands in the queue; who leaves the block is served no further.

        Args:
          work: done piece by piece, each a result.

        Yields:
          The news, as they come, until all is done: `Place`, results, `Failed` where it
          did, and None where there was nothing for a while.

        Raises:
          Full: if there are too many.
        """
        visitor = Visitor(work)
        with self._changed:
            if len(self._queue) >= self._most:
                raise Full(f"{self._most} are waiting already: try again later")
            self._queue.append(visitor)
            self._changed.notify_all()
        try:
            yield self._news(visitor)
        finally:
            with self._changed:
                visitor.left = True
                if visitor in self._queue and visitor is not self._queue[0]:
                    self._queue.remove(visitor)
                self._changed.notify_all()

    def _news(self, visitor: Visitor) -> Iterator[Any]:
        told = None
        while not visitor.served:
            with self._changed:
                news = self._new(visitor, told)
                if not news and not visitor.served:
                    self._changed.wait(PATIENCE)
                    news = self._new(visitor, told)
            for each in news:
                told = each if isinstance(each, Place) else told
                yield each
            if not news:
                yield None
        yield from visitor.results

    def _new(self, visitor: Visitor, told: Place | None) -> list:
        """Takes what one was not told yet, their place first."""
        news = [*visitor.results]
        visitor.results.clear()
        if visitor in self._queue:
            place = Place(self._queue.index(visitor))
            news = [place, *news] if place != told else news
        return news

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue)
                visitor = self._queue[0]
            if not visitor.left:
                self._work(visitor)
            with self._changed:
                visitor.served = True
                self._queue.popleft()
                self._changed.notify_all()

    def _work(self, visitor: Visitor) -> None:
        """Does the work of one until it ends, or they have left."""
        try:
            with contextlib.closing(visitor.work) as results:
                for result in results:
                    with self._changed:
                        visitor.results.append(result)
                        self._changed.notify_all()
                    if visitor.left:
                        return
        except Exception as error:  # the next one is served all the same
            traceback.print_exc()
            with self._changed:
                visitor.results.append(Failed(reason(error)))
