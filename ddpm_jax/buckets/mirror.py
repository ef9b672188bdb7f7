"""A folder of this machine and its like in a bucket.

The bucket's is what its manifest says, an object that is written last and replaces none
but the one that was read: so what is read is what was written, a writer that is cut off
has written nothing, and of two writers one is refused. Files keep their names, so that
the folder can be copied from and to a disk.
"""

import json
import os
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from types import MappingProxyType

from ddpm_jax.buckets.base import Bucket

MANIFEST = ".manifest.json"
_THREADS = 8
_DELAYS = (0.1, 0.3, 1, 3, 10)  # seconds before what arrived otherwise is asked again

# (size, CRC-32) of a file, or None of one that grows, which may be newer than the rest.
Sum = tuple[int, int] | None


class DamagedError(OSError):
    """An object is not what was written."""


class Mirror:
    """A folder, and where its like is in a bucket.

    Attributes:
      folder: of this machine.
      files: by names within the folder, what the bucket has, as of the last `look`.
      run: which folder it is, whatever its name; "" for none yet.
    """

    def __init__(self, bucket: Bucket, prefix: str, folder: Path):
        """Knows nothing of the bucket before `look`."""
        self._bucket, self._prefix, self.folder = bucket, prefix, folder
        self.files: dict[str, Sum] = {}
        self.run, self._version = "", ""
        self._sums: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {}
        self._damaged: set[str] = set()
        self._sent: dict[str, tuple[int, int]] = {}  # of what grows

    def look(self, listed: bool = True) -> None:
        """Reads what the bucket has: nothing, where it has no such folder.

        Args:
          listed: whether a folder that was put there by other means, and so has no
            manifest, is read as it lies there.

        Raises:
          OSError: if it cannot be read.
        """
        try:
            content, self._version = self._bucket.read(self._key(MANIFEST))
        except FileNotFoundError:
            self.files = self._copied() if listed else {}
            self.run, self._version = "", ""
            return
        try:
            found = json.loads(content)
            self.run = found["run"]
            sums = found["files"].items()
            self.files = {name: value and tuple(value) for name, value in sums}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DamagedError(
                f"{self._key(MANIFEST)} is damaged ({error}): delete it, and the "
                "folder is read as it lies there"
            ) from error

    def _copied(self):
        """The files of a folder that was put there by other means."""
        found = self._bucket.list(self._key(""))
        names = (each.name.removeprefix(self._key("")) for each in found)
        return {name: None for name in names if not _is_hidden(name)}

    def pull(self, names: Iterable[str]) -> None:
        """Brings files here that are not here, or are others here.

        Raises:
          FileNotFoundError: if one is not in the bucket.
          DamagedError: if one is not what was written.
          OSError: if one cannot be read, or not be written here.
        """
        names, version = [*names], self._version
        try:
            _for_each(lambda name: self._pull(name, ()), names)
        except (DamagedError, FileNotFoundError):
            self.look()  # it may have been written meanwhile
            if self._version != version:
                names = [name for name in names if name in self.files]
            _for_each(lambda name: self._pull(name, _DELAYS), names)

    def _pull(self, name, delays):
        path, expected = within(self.folder, name), self.files.get(name)
        if expected is not None and path.is_file() and self.sum(name) == expected:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            for delay in (*delays, None):
                self._bucket.download(self._key(name), partial)
                if expected is None or _sum(partial) == expected:
                    break
                if delay is None:
                    self._damaged.add(name)
                    raise DamagedError(f"{self._key(name)} is not what was written")
                time.sleep(delay)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def sum(self, name: str, root: Path | None = None) -> tuple[int, int]:
        """Returns (size, CRC-32) of a file here; it is read where it changed."""
        path = (root or self.folder) / name
        stat = path.stat()
        stamp = stat.st_size, stat.st_mtime_ns
        if self._sums.get(name, ("",))[0] != stamp:
            self._sums[name] = stamp, _sum(path)
        return self._sums[name][1]

    def push(
        self,
        groups: Mapping[str, list[str]],
        dropped: Iterable[str] = (),
        allowed: Callable[[], None] = lambda: None,
        roots: Mapping[str, Path] = MappingProxyType({}),
    ) -> list[str]:
        """Sends files of which the bucket has none or others, then says so there.

        Args:
          groups: files by what they are part of, a file or a folder: all of a group
            arrive, in place of what the folder had there, or none. A group of which a
            file vanishes meanwhile is left out.
          dropped: files to delete there.
          allowed: raises where another writes there now; asked before each file.
          roots: of some groups, under which folder their files lie, if not under
            `folder`.

        Returns:
          The groups of which something was sent.

        Raises:
          ChangedError: if another has written the manifest.
          OSError: if something cannot be written; nothing is lost then.
        """
        changed, sums = {}, {}
        for group, names in groups.items():
            try:
                own = {name: self.sum(name, roots.get(group)) for name in names}
            except FileNotFoundError:
                continue
            new = [n for n in names if n not in self.files or not self._is(n, own[n])]
            if new:
                changed[group], sums = new, {**sums, **{n: own[n] for n in new}}
        growing = [n for new in changed.values() for n in new if self.files.get(n)]
        if growing:  # before they are replaced: until then they must be what they were
            self._commit({**self.files, **dict.fromkeys(growing)})
        uploaded, arrived, sent = [], {}, []

        def send(item):
            group, name = item
            root = roots.get(group, self.folder)
            allowed()
            try:
                self._bucket.upload(root / name, self._key(name))
                uploaded.append(name)
                now = self.sum(name, root)
            except FileNotFoundError:
                if (root / name).is_file():  # the bucket is not there
                    raise
                return
            self._damaged.discard(name)
            # What grew meanwhile arrived as it was in between.
            grows = name in self.files or now != sums[name]
            arrived[name] = None if grows else now

        _for_each(send, [(group, name) for group in changed for name in changed[group]])
        files, gone = {**self.files}, [*dropped]
        for group, new in changed.items():
            if all(name in arrived for name in new):
                before = {name for name in files if name.startswith(f"{group}/")}
                gone += before - {*groups[group]}
                files |= {name: arrived[name] for name in new}
                self._sent |= {name: sums[name] for name in new}
                sent.append(group)
        gone = [name for name in gone if files.pop(name, 0) != 0]
        gone += [name for name in uploaded if name not in files]  # of what vanished
        if files != self.files or not self.run:
            allowed()
            self._commit(files)
        _for_each(lambda name: self._bucket.delete(self._key(name)), gone)
        return sent

    def sweep(self, folder: str) -> None:
        """Deletes what lies in a folder there that the manifest does not name.

        So who was cut off leaves nothing; only who may write there may ask for it.
        """
        for each in self._bucket.list(self._key(f"{folder}/")):
            if each.name.removeprefix(self._key("")) not in self.files:
                self._bucket.delete(each.name)

    def _is(self, name, own):
        """Whether the bucket has a file as it is here."""
        known = self.files[name] or self._sent.get(name)
        return known == own and name not in self._damaged

    def _commit(self, files):
        self.run = self.run or uuid.uuid4().hex
        content = json.dumps({"run": self.run, "files": files}, indent=1).encode()
        self._version = self._bucket.write(self._key(MANIFEST), content, self._version)
        self.files = files

    def _key(self, name):
        return f"{self._prefix}/{name}" if self._prefix else name


def within(folder: Path, name: str) -> Path:
    """Returns the path of a name within a folder.

    Raises:
      DamagedError: if it leads out of it, as no file that was sent does.
    """
    if ".." in name.split("/") or name.startswith("/"):
        raise DamagedError(f"{name} is no name within a folder")
    return folder / name


def _for_each(action, items):
    """In several threads; after the first error no more is begun."""
    with ThreadPoolExecutor(_THREADS) as pool:
        futures = [pool.submit(action, item) for item in items]
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            future.cancel()
    for future in futures:
        if not future.cancelled():
            future.result()


def _is_hidden(name):
    return any(part.startswith(".") for part in name.split("/"))


def _sum(path: Path) -> tuple[int, int]:
    total = 0
    with path.open("rb") as file:
        while part := file.read(2**20):
            total = zlib.crc32(part, total)
        return os.fstat(file.fileno()).st_size, total
