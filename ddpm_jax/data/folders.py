"""A folder of image files as a source; its sub-folders are the classes."""

import dataclasses
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from PIL import Image, ImageOps

from ddpm_jax import buckets
from ddpm_jax.data import listing, manifest
from ddpm_jax.data.base import Origin, Source, digest
from ddpm_jax.data.images import ORIENTATION, height_width, read, resize_and_crop
from ddpm_jax.data.remote import Remote
from ddpm_jax.errors import reason
from ddpm_jax.files import of_machine, stamp_of


class _Local:
    """The files of a folder of this machine; see `remote.Remote`."""

    is_remote = False

    def __init__(self, path: str | os.PathLike):
        self.root = Path(path).expanduser()
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"there is no folder {self.root}: give a folder of images"
            )
        self.place = self.root.resolve()

    def stamp_of(self, name: str) -> tuple[int, int]:
        return stamp_of(self.root / name)

    def open(self, name: str) -> Path:
        return self.root / name

    map = staticmethod(map)


@dataclasses.dataclass(frozen=True, eq=False)
class _Folder:
    """Image files, decoded when they are asked for."""

    files: _Local | Remote
    names: Sequence[str]
    stamps: Sequence[manifest.Stamp]
    labels: Sequence[int]
    class_names: Sequence[str]
    image_shape: tuple[int, int, int]
    draft: bool
    passed_over: Counter[str]

    @property
    def is_remote(self) -> bool:
        return self.files.is_remote

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.names)

    def origin(self) -> Origin:
        name = "x".join(map(str, self.image_shape)) + ("-draft" if self.draft else "")
        files = [*zip(self.names, self.stamps, self.labels, strict=True)]
        content = digest(PIL.__version__, "white", files)
        return Origin(self.files.place, name, content)

    def fingerprint(self) -> str:
        sizes = [size for size, _ in self.stamps]
        return digest(*zip(self.names, sizes, self.labels, strict=True))

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        height, width, channels = self.image_shape
        name = self.names[index]
        file = self.files.open(name)
        # Twice the size, so that the resampling is still the one that counts.
        at_least = (2 * height, 2 * width) if self.draft else None
        try:
            image = read(file, channels, at_least=at_least)
            image = resize_and_crop(image, (height, width))
        except (OSError, ValueError, SyntaxError) as error:  # as PIL's readers do
            raise OSError(
                f"cannot read {self.files.root}/{name} {self._advice(error)}"
            ) from error
        return image, self.labels[index]

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = self.files.map(self.__getitem__, indices.tolist())
        images, labels = zip(*found, strict=True)
        return np.stack(images), np.array(labels, np.int32)

    def _advice(self, error):
        if self.is_remote:  # what was never read before
            return f"({error}): {_REPLACE}"
        return (
            f"any more ({error}): put it back as it was; the same command goes on then"
        )


_REPLACE = "replace or remove it, or leave out such images with on_error='skip'"


def folder(
    path: str | os.PathLike,
    image_size: int | Sequence[int],
    channels: int = 3,
    on_error: str = "raise",
    draft: bool = False,
) -> Source:
    """Opens a folder of images, of the formats of `listing.EXTENSIONS`.

    The images lie in the folder itself, and then there are no classes, or in its
    sub-folders at any depth: each first-level sub-folder is a class, numbered in the
    order of the names, 2 before 10. Hidden files and folders are passed over. Images
    are turned as their EXIF orientation says, laid on white where they are transparent,
    resized and cropped at the centre; of animations the first frame is taken. All are
    read once here, so that a corrupt one is known now and not on the third day of
    training; a later start reads those that changed (see `manifest.check`). Of a bucket
    each is read when it is first asked for, so a process reads what it feeds; only to
    skip the corrupt ones all must be read before.

    Args:
        path: the folder, or its address in a bucket.
        image_size: side of a square, or (height, width).
        channels: 3 for RGB or 1 for grey; images are converted.
        on_error: "raise" refuses a corrupt image by its name; "skip" leaves the
            corrupt ones out and warns of their names.
        draft: whether JPEGs of four times the size or more are decoded at 1/2, 1/4 or
            1/8, but twice the size at least, before they are resized. That is faster,
            and changes pixels a little, so a run should stay with what it began with.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
        ValueError: if an argument, an image, or the mixture of files is wrong.
        OSError: if the machine cannot read an image now, whatever `on_error` is.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is {on_error!r}: give 'raise' or 'skip'")
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels!r}: give 3 (RGB) or 1 (grey)")
    image_shape = (*height_width(image_size), channels)
    if buckets.is_address(path):
        files = Remote(path)
        listed = listing.arrange(files.root, files.files, files.folders)
    else:
        files = _Local(path)
        listed = listing.scan(files.root)
    root, (names, classes, passed_over) = files.root, listed
    # Counted before any image is left out, so that labels do not depend on it.
    numbers = {name: number for number, name in enumerate(classes)}

    stamps = [files.stamp_of(name) for name in names]
    faults = [None] * len(names)
    if on_error == "skip" or not files.is_remote:
        place = files.place
        faults = manifest.check(place, names, stamps, lambda n: _fault(files.open(n)))
    corrupt = [f"{n} ({why})" for n, why in zip(names, faults, strict=True) if why]
    if corrupt and on_error == "raise":
        raise ValueError(f"cannot read {root}/{corrupt[0]}: {_REPLACE}")
    if len(corrupt) == len(names):
        raise ValueError(f"none of the {len(names)} images in {root} can be read")
    if corrupt:
        warnings.warn(
            f"left out {len(corrupt)} unreadable of {len(names)} images in {root}: "
            + ", ".join(corrupt),
            stacklevel=2,
        )
    kept = [i for i, why in enumerate(faults) if not why]
    return _Folder(
        files=files,
        names=[names[i] for i in kept],
        stamps=[stamps[i] for i in kept],
        labels=[numbers.get(names[i].partition("/")[0], 0) for i in kept],
        class_names=classes,
        image_shape=image_shape,
        draft=draft,
        passed_over=passed_over,
    )


def image_shape_of(path: str | os.PathLike) -> tuple[int, int, int]:
    """Returns the shape (height, width, channels) that all images of a folder have.

    Grey images among coloured ones count as coloured.

    Raises:
        FileNotFoundError: if there is no image in the folder.
        ValueError: if they are of several sizes, or one is no whole picture.
        OSError: if the machine cannot read one now.
    """
    root = Path(path).expanduser()
    sizes, channels = Counter(), 1
    for name in listing.scan(root).names:
        try:
            with Image.open(root / name) as picture:
                size = picture.height, picture.width
                if picture.getexif().get(ORIENTATION, 1) >= 5:  # lies on its side
                    size = size[::-1]
                sizes[size] += 1
                if picture.mode not in ("1", "L", "LA"):
                    channels = 3
        except Exception as error:  # PIL's readers raise anything on corrupt bytes.
            _raise_of_machine(error, root / name)
            raise ValueError(f"cannot read {root / name} ({reason(error)})") from error
    if len(sizes) > 1:
        said = [f"{count} of {h}x{w}" for (h, w), count in sizes.most_common(3)]
        raise ValueError(
            f"the images in {root} are of {len(sizes)} sizes ({', '.join(said)}"
            f"{', …' if len(sizes) > 3 else ''}): bring all to one size"
        )
    return *next(iter(sizes)), channels


def _fault(file: Path | BinaryIO) -> str | None:
    """Says why an image file cannot be used, or None where it can.

    Raises:
      OSError: if the machine cannot read it now, which is no fault of the file.
    """
    try:
        with Image.open(file) as picture:
            # Deeper pixels would be clipped to white by the conversion to 8 bits.
            if picture.mode.startswith(("I", "F")):
                return "more than 8 bits a channel"
            # Reads the whole file, but a JPEG at an eighth of its size, if it can.
            picture.draft(None, (1, 1))
            ImageOps.exif_transpose(picture)
    except Exception as error:  # PIL's readers raise anything on corrupt bytes.
        _raise_of_machine(error, file)
        return reason(error)
    return None


def _raise_of_machine(error: Exception, path: Path | BinaryIO) -> None:
    """Raises what says nothing of a file, but that the machine cannot read it now."""
    if not of_machine(error):
        return
    if isinstance(error, OSError):  # a failing read does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error
    raise error
