"""What the rest of the package knows of a bucket: objects, read and written whole.

Clients raise the same few errors, whatever the service calls them; `Patient` asks again
where that may help.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol


class AwayError(OSError):
    """The bucket did not answer, or not whole; it may when it is asked again."""


class ChangedError(OSError):
    """An object is not the one that was to be replaced."""


class Object(NamedTuple):
    """An object of a listing.

    Attributes:
      name: its whole name in the bucket.
      size: in bytes.
      version: another one each time it is written.
    """

    name: str
    size: int
    version: str


class Bucket(Protocol):
    """A bucket, as a client of some service.

    All raise AwayError where it may help to ask again, FileNotFoundError where there is
    no such object, and OSError, in a line that says what to do, for all else.
    """

    def list(self, prefix: str) -> Iterator[Object]:
        """Yields all objects whose names begin so, in the order of their names."""

    def level(self, prefix: str) -> tuple[Sequence[Object], Sequence[str]]:
        """Returns the objects of a folder, "" or ending in "/", and its folders."""

    def read(self, name: str) -> tuple[bytes, str]:
        """Returns an object's content and version."""

    def write(self, name: str, content: bytes, version: str | None = None) -> str:
        """Writes an object, and returns its version.

        Args:
          name: of the object.
          content: all of it.
          version: which one it must replace, "" for none, None for any.

        Raises:
          ChangedError: if it would replace another.
        """

    def download(self, name: str, path: Path) -> None:
        """Writes an object's content into a file."""

    def upload(self, path: Path, name: str) -> None:
        """Writes a file's content into an object, whichever it replaces."""

    def delete(self, name: str) -> None:
        """Deletes an object, if it is there."""


class Patient:
    """A bucket that is asked again, ever more slowly, while it is away.

    Attributes:
      seconds: how long, in all, before AwayError is raised.
      say: told, once each time, that it is away and that it is back.
    """

    def __init__(
        self,
        bucket: Bucket,
        seconds: float = 300,
        say: Callable[[str], Any] = lambda text: None,
    ):
        """Wraps a bucket.

        Args:
          bucket: that is asked.
          seconds: how long it is asked for one thing.
          say: told, once each time, that it is away and that it is back.
        """
        self._bucket, self.seconds, self.say = bucket, seconds, say

    def list(self, prefix):
        return self._ask(lambda: [*self._bucket.list(prefix)])

    def level(self, prefix):
        return self._ask(lambda: self._bucket.level(prefix))

    def read(self, name):
        return self._ask(lambda: self._bucket.read(name))

    def get(self, wanted: Object) -> bytes:
        """Returns the content of an object of a listing.

        Raises:
          ChangedError: if it is another by now.
          OSError: as `Bucket.read` does.
        """

        def get():
            content, version = self._bucket.read(wanted.name)
            if version != wanted.version:
                raise ChangedError(
                    f"{wanted.name} was written anew since it was listed"
                )
            if len(content) != wanted.size:
                raise AwayError(f"{wanted.name} came cut off")
            return content

        return self._ask(get)

    def download(self, name, path):
        return self._ask(lambda: self._bucket.download(name, path))

    def upload(self, path, name):
        return self._ask(lambda: self._bucket.upload(path, name))

    def delete(self, name):
        return self._ask(lambda: self._bucket.delete(name))

    def write(self, name, content, version=None):
        unsure = []  # whether a write of which nothing was heard was done

        def write():
            try:
                return self._bucket.write(name, content, version)
            except AwayError:
                unsure.append(True)
                raise
            except ChangedError:
                if unsure:
                    with contextlib.suppress(FileNotFoundError):
                        there, found = self._bucket.read(name)
                        if there == content:
                            return found
                raise

        return self._ask(write)

    def _ask(self, action):
        begun, delay, said = time.monotonic(), 0.1, False
        while True:
            try:
                found = action()
            except AwayError as error:
                waited = time.monotonic() - begun
                if waited + delay > self.seconds:
                    raise
                if waited > 10 and not said:
                    self.say(f"{error}: it is asked again")
                    said = True
                time.sleep(delay * random.uniform(0.5, 1))
                delay = min(2 * delay, 30)
                continue
            if said:
                self.say("the bucket answers again")
            return found
