"""Data sets of buckets: listed at the start, read a file at a time or brought here.

What is read a file at a time is asked for by many threads, as a bucket answers late but
many at once; nothing of it stays here but what `kept` keeps.
"""

import fcntl
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ddpm_jax import places
from ddpm_jax.buckets.base import AwayError, Object
from ddpm_jax.buckets.mirror import within

_THREADS = 16


class Remote:
    """The files of a data set in a bucket, as they were when it was opened.

    Attributes:
        root: the address.
        place: where what is kept of it lies here.
        files: by their names within it; "" is the name of what is itself a file.
        folders: the names of those at its first level, also of empty ones.
    """

    is_remote = True

    def __init__(self, address: str):
        """Lists the files, those of each folder beside the others'.

        Raises:
            FileNotFoundError: if nothing lies there.
            OSError: if it cannot be listed.
        """
        self.root, self.place = address.rstrip("/"), places.place(address, "data")
        self._bucket, name = places.bucket_of(address)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="bucket")
        found, folders = self._bucket.level(f"{name}/" if name else "")
        for below in self._pool.map(self._bucket.list, folders):
            found += below
        start = len(name) + 1 if name else 0
        self.files: dict[str, Object] = {
            each.name[start:]: each for each in found if not each.name.endswith("/")
        }
        self.folders = [folder[start:-1] for folder in folders]
        if not found and name:
            itself = [each for each in self._bucket.list(name) if each.name == name]
            self.files = dict(zip([""], itself, strict=False))
        if not self.files:
            raise FileNotFoundError(f"there is nothing at {address}")

    def stamp_of(self, name: str) -> tuple[int, str]:
        """Returns a file's size in bytes and its version."""
        return self.files[name].size, self.files[name].version

    def open(self, name: str) -> io.BytesIO:
        """Reads a file.

        Raises:
            OSError: if it cannot be read, or is another by now.
        """
        return _Content(self._bucket.get(self.files[name]), f"{self.root}/{name}")

    def map(self, function: Callable[[Any], Any], items: Iterable) -> Iterator:
        """Applies a function that opens a file to each item, to many at once."""
        return self._pool.map(function, items)

    def bring(self, names: Iterable[str]) -> Path:
        """Brings files to their place here, for what reads files of this machine.

        What is here as it is there is not brought again: a list beside it says of each
        which one it is. Processes of one machine bring it once between them.

        Returns:
            The place.

        Raises:
            OSError: if one cannot be read, or the disk is too small, saying what to do.
        """
        here = self.place
        here.parent.mkdir(parents=True, exist_ok=True)
        listed = here.with_name(f".{here.name}.json")
        with here.with_name(f".{here.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = json.loads(listed.read_text()) if listed.is_file() else {}
            try:
                self._bring_new([*names], known)
            finally:  # what was brought before a stop stays
                partial = listed.with_suffix(".partial")
                partial.write_text(json.dumps(known))
                partial.replace(listed)
        return here

    def _bring_new(self, names, known):
        """Brings those of the names that are not here, or are others here."""

        def path_of(name):
            return within(self.place, name) if name else self.place

        for name in known.keys() - self.files.keys():  # gone from the bucket
            path_of(name).unlink(missing_ok=True)
            del known[name]
        new = [
            name
            for name in names
            if not (
                path_of(name).is_file() and known.get(name) == self.files[name].version
            )
        ]
        needed = sum(self.files[name].size for name in new)
        free = shutil.disk_usage(self.place.parent).free
        if needed > free:
            raise OSError(
                f"the data need {needed / 1e9:.1f} GB in {self.place}, "
                f"{free / 1e9:.1f} GB are free: XDG_CACHE_HOME says where else"
            )

        def bring_one(name):
            path, wanted = path_of(name), self.files[name]
            places.bring_one(self._bucket, wanted.name, path)
            if path.stat().st_size != wanted.size:
                path.unlink()
                raise AwayError(f"{wanted.name} was written meanwhile, or is cut off")
            known[name] = wanted.version

        with ThreadPoolExecutor(_THREADS) as pool:
            brought = pool.map(bring_one, new)
            for _ in tqdm(brought, "bringing data", len(new), disable=None):
                pass


class _Content(io.BytesIO):
    """What a file holds, with its name for messages."""

    def __init__(self, content, name):
        super().__init__(content)
        self._name = name

    def __repr__(self):
        return repr(self._name)
