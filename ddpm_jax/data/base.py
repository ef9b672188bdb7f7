"""What the rest of the package knows of a data set: a `Source`.

It is random access to images: a source has a fixed length, and image i with its label
is always the same.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm


@runtime_checkable
class Source(Protocol):
    """A fixed sequence of labelled images.

    A source that reads many images faster than one by one also has a method
    `gather(indices)`; see the function of that name. One that decodes files also has a
    method `origin()`, for what is kept of it between starts; and `is_remote` is True of
    one that reads them over a network.

    Attributes:
        image_shape: (H, W, C) of every image.
        num_classes: labels are 0 .. num_classes - 1; 0 where there are none, and
            then every label is 0.
    """

    image_shape: tuple[int, int, int]
    num_classes: int

    def __len__(self) -> int:
        """Returns the number of images."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Returns image [H, W, C] uint8 and label number `index`."""


class Origin(NamedTuple):
    """What the pixels of a source are made of.

    Attributes:
        place: the files' folder.
        name: which of them, and how they are read, in a few words.
        content: changes where any of the pixels may have.
    """

    place: Path
    name: str
    content: str


def digest(*values: Any) -> str:
    """Returns a short hash of values that are the same when written out."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def gather(source: Source, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads many images at once, into fresh arrays.

    Args:
        source: the source.
        indices: int [N], each 0 .. len(source) - 1.

    Returns:
        Images uint8 [N, H, W, C] and labels int32 [N].
    """
    if hasattr(source, "gather"):
        return source.gather(indices)
    images, labels = zip(*(source[int(i)] for i in indices), strict=True)
    return np.stack(images), np.array(labels, np.int32)


def labels_of(source: Source, indices: np.ndarray) -> np.ndarray:
    """Reads labels int32 [N] alone, without images where the source has `labels`."""
    if hasattr(source, "labels"):
        return np.asarray(source.labels, np.int32)[indices]
    return np.array([source[int(i)][1] for i in indices], np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Images uint8 [N, H, W, C] and labels int32 [N] in memory."""

    images: np.ndarray
    labels: np.ndarray
    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape[1:]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.images[indices], self.labels[indices]

    def fingerprint(self) -> str:
        arrays = map(np.ascontiguousarray, (self.images, self.labels))
        sums = [hashlib.sha256(array).hexdigest() for array in arrays]
        return digest(self.images.shape, *sums)


def in_memory(source: Source, max_memory_gb: float = 4.0) -> Source:
    """Decodes a whole source into memory, where it fits.

    Args:
        source: any source.
        max_memory_gb: the most that the pixels may take, in 1e9 bytes. A larger
            source is returned as it is, to be decoded batch by batch.
    """
    num_bytes = len(source) * np.prod(source.image_shape, dtype=np.int64)
    if isinstance(source, ArraySource) or num_bytes > max_memory_gb * 1e9:
        return source
    images = np.empty((len(source), *source.image_shape), np.uint8)
    labels = np.empty(len(source), np.int32)

    def read(indices: np.ndarray) -> None:
        images[indices], labels[indices] = gather(source, indices)

    chunks = np.array_split(np.arange(len(source)), len(source) // 256 + 1)
    in_parallel(read, chunks, "reading images")
    return ArraySource(images, labels, source.num_classes)


def in_parallel(
    function: Callable[[Any], Any], items: Iterable[Any], what: str
) -> list[Any]:
    """Applies a function to every item in threads, with a progress bar."""
    items = list(items)
    pool = ThreadPoolExecutor()
    try:
        # disable=None: no bar where standard error is not a terminal.
        results = tqdm(
            pool.map(function, items), what, len(items), leave=False, disable=None
        )
        return list(results)
    finally:  # after Ctrl-C, too, without those that have not begun
        pool.shutdown(cancel_futures=True)
