"""A folder of image files as a source; its sub-folders are the classes."""

import dataclasses
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps

from ddpm_jax.data import manifest
from ddpm_jax.data.images import ORIENTATION, height_width, read, resize_and_crop
from ddpm_jax.data.source import Origin, Source, digest
from ddpm_jax.errors import reason
from ddpm_jax.files import of_machine, stamp_of

_EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}


@dataclasses.dataclass(frozen=True, eq=False)
class _Folder:
    """Image files, decoded when they are asked for."""

    root: Path
    names: Sequence[Path]
    stamps: Sequence[manifest.Stamp]
    labels: Sequence[int]
    num_classes: int
    image_shape: tuple[int, int, int]
    draft: bool

    def __len__(self) -> int:
        return len(self.names)

    def origin(self) -> Origin:
        name = "x".join(map(str, self.image_shape)) + ("-draft" if self.draft else "")
        files = [*zip(map(str, self.names), self.stamps, self.labels, strict=True)]
        return Origin(self.root.resolve(), name, digest(PIL.__version__, files))

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        height, width, channels = self.image_shape
        path = self.root / self.names[index]
        # Twice the size, so that the resampling is still the one that counts.
        at_least = (2 * height, 2 * width) if self.draft else None
        try:
            image = read(path, channels, at_least=at_least)
            image = resize_and_crop(image, (height, width))
        except (OSError, ValueError, SyntaxError) as error:  # as PIL's readers do
            raise OSError(
                f"cannot read {path} any more ({error}): put it back as it was; the "
                "same command goes on then"
            ) from error
        return image, self.labels[index]


def folder(
    path: str | os.PathLike,
    image_size: int | Sequence[int],
    channels: int = 3,
    on_error: str = "raise",
    draft: bool = False,
) -> Source:
    """Opens a folder of images: jpg, jpeg, png, webp, bmp or gif (first frame).

    The images lie in the folder itself, and then there are no classes, or in its
    sub-folders at any depth: each first-level sub-folder is a class, numbered in the
    order of the names. Hidden files and folders are passed over. Images are turned as
    their EXIF orientation says, resized and cropped at the centre. All are read once
    here, so that a corrupt one is known now and not on the third day of training; a
    later start reads those that changed (see `manifest.check`).

    Args:
        path: the folder.
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
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}: give a folder of images")
    names = _image_files(root)
    if not names:
        raise FileNotFoundError(
            f"there is no image in {root}: looked for {', '.join(sorted(_EXTENSIONS))}"
        )
    in_class = [len(name.parts) > 1 for name in names]
    if any(in_class) and not all(in_class):
        raise ValueError(
            f"{root} holds images both directly and in sub-folders, so its classes are "
            "unclear: keep one of the two"
        )
    # Counted before any image is left out, so that labels do not depend on it.
    classes = sorted({name.parts[0] for name in names}) if all(in_class) else []
    numbers = {name: number for number, name in enumerate(classes)}

    stamps = [stamp_of(root / name) for name in names]
    faults = manifest.check(root, names, stamps, _fault)
    corrupt = [f"{n} ({why})" for n, why in zip(names, faults, strict=True) if why]
    if corrupt and on_error == "raise":
        raise ValueError(
            f"cannot read {root / corrupt[0]}: replace or remove it, or leave out "
            "such images with on_error='skip'"
        )
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
        root=root,
        names=[names[i] for i in kept],
        stamps=[stamps[i] for i in kept],
        labels=[numbers.get(names[i].parts[0], 0) for i in kept],
        num_classes=len(classes),
        image_shape=image_shape,
        draft=draft,
    )


def image_shape_of(path: str | os.PathLike) -> tuple[int, int, int]:
    """Returns the shape (height, width, channels) that all images of a folder have.

    Raises:
        FileNotFoundError: if there is no image in the folder.
        ValueError: if they are of several shapes, or one cannot be read.
    """
    root = Path(path).expanduser()
    shapes = {}
    for name in _image_files(root):
        try:
            with Image.open(root / name) as picture:
                channels = 1 if picture.mode in ("1", "L") else 3
                size = picture.height, picture.width
                if picture.getexif().get(ORIENTATION, 1) >= 5:  # lies on its side
                    size = size[::-1]
                shapes.setdefault((*size, channels), name)
        except OSError as error:
            raise ValueError(f"cannot read {root / name} ({error})") from error
    if not shapes:
        raise FileNotFoundError(f"there is no image in {root}")
    if len(shapes) > 1:
        (a, one), (b, other), *_ = shapes.items()
        raise ValueError(
            f"the images in {root} are of several shapes: {one} is "
            f"{'x'.join(map(str, a))}, {other} is {'x'.join(map(str, b))}"
        )
    return next(iter(shapes))


def _image_files(root: Path) -> list[Path]:
    """Finds the images under a folder, relative to it, in an order of their own."""
    names = []
    # Links are followed, for data sets put together from links to folders.
    for place, folders, files in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(place).relative_to(root)
        names += [relative / name for name in files if not name.startswith(".")]
    return sorted(name for name in names if name.suffix.lower() in _EXTENSIONS)


def _fault(path: Path) -> str | None:
    """Says why an image file cannot be used, or None where it can.

    Raises:
      OSError: if the machine cannot read it now, which is no fault of the file.
    """
    try:
        with Image.open(path) as picture:
            # Deeper pixels would be clipped to white by the conversion to 8 bits.
            if picture.mode.startswith(("I", "F")):
                return "more than 8 bits a channel"
            # Reads the whole file, but a JPEG at an eighth of its size, if it can.
            picture.draft(None, (1, 1))
            ImageOps.exif_transpose(picture)
    except Exception as error:  # PIL's readers raise anything on corrupt bytes.
        if not of_machine(error):
            return reason(error)
        if isinstance(error, OSError):  # a failing read does not name the file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    return None
