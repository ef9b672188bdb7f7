"""Images that are decoded at their first use and kept: in memory, or in a file.

So training begins at once, each process decodes only what it feeds, and the work of a
run that was stopped is not lost. An image in the file is trusted by its seal alone, a
checksum written with it: one that was never written, was cut off by a crash or a full
disk, or was damaged is decoded again, and processes may share the file without order.
"""

import contextlib
import os
import re
import shutil
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ddpm_jax import places
from ddpm_jax.data.base import ArraySource, Origin, Source, digest, gather
from ddpm_jax.files import atomic_write, file_lock

Say = Callable[[str], Any]


class _Store(Protocol):
    """Where decoded images stay; several threads may use it."""

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns images and labels, and which of them are there, bool [N]."""

    def write(self, indices, images, labels) -> None:
        """Takes images that were decoded."""


class Kept:
    """A source whose images are decoded at their first use."""

    def __init__(self, source: Source, store: _Store):
        self._source, self._store = source, store
        self.image_shape = tuple(source.image_shape)
        self.num_classes = source.num_classes

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        images, labels = self.gather(np.array([index]))
        return images[0], int(labels[0])

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, labels, there = self._store.read(indices)
        if not there.all():
            missing = np.flatnonzero(~there)
            decoded = gather(self._source, indices[missing])
            images[missing], labels[missing] = decoded
            self._store.write(indices[missing], *decoded)
        return images, labels


def keep(
    source: Source,
    max_memory_gb: float = 4.0,
    cache: bool | str = True,
    say: Say = print,
) -> Source:
    """Keeps decoded images: in memory where all fit, else in a file on a disk.

    Those of a bucket are kept in a file also where they would fit, for the next start.

    Args:
        source: any source; what is in memory already is returned as it is.
        max_memory_gb: the most that the pixels may take in memory, in 1e9 bytes, of
            each process.
        cache: where a file of larger ones lies: True for beside the source, or where
            that is not allowed in the user's cache, if it takes at most half of what
            is free there; a folder, if it has the room; False for no file, so that
            each batch is decoded.
        say: told in one line what is written where, or why nothing is.

    Raises:
        ValueError: if the numbers make no sense.
        OSError: if a given folder cannot be written to.
    """
    if max_memory_gb < 0:
        raise ValueError(f"max_memory_gb is {max_memory_gb}: give 0 or more")
    if isinstance(source, ArraySource):
        return source
    num_bytes = len(source) * int(np.prod(source.image_shape))
    fits = num_bytes <= max_memory_gb * 1e9
    if fits and not getattr(source, "is_remote", False):
        return _in_memory(source)
    reasons = []
    if cache is not False and hasattr(source, "origin"):
        origin = source.origin()
        for place, share in _places(origin, cache):
            try:
                path = _prepare(source, origin, place, share, say)
                return Kept(source, _File(path, say))
            except OSError as error:
                if cache is not True:
                    raise
                reasons.append(str(error))
    if fits:
        return _in_memory(source)
    if not reasons:
        return source
    say(
        f"images are decoded for each batch: {'; '.join(reasons)}; data.cache says "
        "where else, or data.max_memory_gb how much memory they may take"
    )
    return source


def _in_memory(source: Source) -> Kept:
    return Kept(source, _Memory(len(source), source.image_shape))


class _Memory:
    """Arrays, filled in the order of use."""

    def __init__(self, num: int, image_shape: tuple[int, ...]):
        self._images = np.empty((num, *image_shape), np.uint8)  # takes none of it yet
        self._labels = np.empty(num, np.int32)
        self._there = np.zeros(num, bool)

    def read(self, indices):
        there = self._there[indices]  # first: what is there now stays
        return self._images[indices], self._labels[indices], there

    def write(self, indices, images, labels):
        self._images[indices], self._labels[indices] = images, labels
        self._there[indices] = True


# A seal is above the checksum's 32 bits, so that zeros, a hole of the file, are none.
_SEALED = 1 << 32


def _row_type(image_shape) -> np.dtype:
    """Of an image in the file."""
    return np.dtype(
        [("image", "u1", tuple(image_shape)), ("label", "<i4"), ("seal", "<u8")]
    )


def _seal(index: int, row: np.ndarray) -> int:
    """The seal of a row, from all its bytes but the seal's, and from its place."""
    return _SEALED + zlib.crc32(row[:-8], index % _SEALED)


class _File:
    """Rows of an .npy file: read through a memory map, written by calls.

    Written through a map, a full disk would end the process.
    """

    def __init__(self, path: Path, say: Say):
        rows = np.load(path, mmap_mode="r")
        self._type = rows.dtype
        self._rows = np.asarray(rows).view(np.uint8).reshape(len(rows), -1)
        self._start = rows.offset
        self._path, self._say, self._said = path, say, set()
        self._file = os.open(path, os.O_RDWR)
        weakref.finalize(self, os.close, self._file)

    def read(self, indices):
        rows = np.empty((len(indices), self._type.itemsize), np.uint8)
        there = np.zeros(len(indices), bool)
        for i, index in enumerate(indices.tolist()):
            rows[i] = self._rows[index]
            there[i] = self._is_whole(index, rows[i])
        fields = rows.view(self._type)[:, 0]
        return fields["image"].copy(), fields["label"].astype(np.int32), there

    def write(self, indices, images, labels):
        if "full" in self._said:
            return
        rows = np.zeros(len(indices), self._type)
        rows["image"], rows["label"] = images, labels
        plain = rows.view(np.uint8).reshape(len(rows), -1)
        numbered = [*zip(indices.tolist(), plain, strict=True)]
        rows["seal"] = [_seal(index, row) for index, row in numbered]
        try:
            for index, row in numbered:
                start = self._start + index * self._type.itemsize
                os.pwrite(self._file, row, start)
        except OSError as error:
            self._say_once(
                "full",
                f"{self._path} takes no more images ({error.strerror}): those that "
                "are not in it are decoded for each batch",
            )

    def _is_whole(self, index, row) -> bool:
        seal = int(row[-8:].view("<u8")[0])
        if seal == _seal(index, row):
            return True
        if seal:
            self._say_once(
                "damaged",
                f"image {index} in {self._path} is damaged: it is decoded again, as "
                "are others like it",
            )
        return False

    def _say_once(self, what, text):
        if what not in self._said:
            self._said.add(what)
            self._say(text)


def _places(origin: Origin, cache: bool | str) -> list[tuple[Path, float]]:
    """The folders to try, each with the share of its free space that may be taken."""
    if cache is not True:
        return [(Path(cache).expanduser(), 1.0)]
    beside = origin.place.with_name(f"{origin.place.name}.decoded")
    elsewhere = places.cache_dir() / "decoded" / digest(str(origin.place))
    return [(beside, 0.5), (elsewhere, 0.5)]


def _prepare(source, origin: Origin, place: Path, share: float, say: Say) -> Path:
    """Finds the file of a source in a folder, or makes it, empty.

    Raises:
        OSError: if it cannot be there, saying why.
    """
    row = _row_type(source.image_shape)
    of_same = re.sub(r"[^\w.=-]+", "_", origin.name)
    of_same += "-" + digest(origin.place, origin.name)  # two may be written the same
    path = place / f"{of_same}-{origin.content}.npy"
    size = len(source) * row.itemsize
    place.mkdir(parents=True, exist_ok=True)
    try:
        with file_lock(place):
            for other in place.glob(f"{of_same}-*.npy"):
                if other != path or not _fits(path, row, len(source)):
                    say(f"{other} is damaged or of images that have changed: removed")
                    other.unlink()
            is_new = not path.exists()
            there = 0 if is_new else path.stat().st_blocks * 512
            free = shutil.disk_usage(place).free
            if size - there > share * free:
                raise OSError(
                    f"{path} would take {_giga(size - there)}, and {_giga(free)} are "
                    "free"
                )
            if is_new:  # a hole, which takes no room yet
                with atomic_write(path) as partial:
                    np.lib.format.open_memmap(partial, "w+", row, (len(source),))
    except OSError:
        with contextlib.suppress(OSError):  # it is not empty
            place.rmdir()
        raise
    say(
        f"decoded images are kept in {path}, {_giga(there)} of {_giga(size)} so far; "
        "it may be deleted at any time"
    )
    return path


def _fits(path: Path, row: np.dtype, num: int) -> bool:
    """Whether a file is there as it was made."""
    try:
        rows = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return (rows.dtype, rows.shape) == (row, (num,))


def _giga(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
