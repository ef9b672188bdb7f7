"""Images as arrays: fitted to a size, scaled to [-1, 1] and back, tiled, saved.

A picture is uint8 [H, W, C] in 0..255; the model sees float32 in [-1, 1]. `to_float`
and `to_uint8` run on the accelerator too, so they use nothing but operators and methods
that NumPy's arrays and JAX's share.
"""

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from ddpm_jax.files import atomic_write

# Below this many pixels on its shorter side, a tile is too small to look at.
_VISIBLE = 64
# Lines that show beside black and beside white.
_GREY = 128
_MODES = {1: "L", 3: "RGB"}
CHANNELS = tuple(_MODES)  # of what can be read and shown as a picture
# The tag of EXIF; from 5 on, the picture lies on its side.
ORIENTATION = 0x0112


def to_float(images):
    """Scales uint8 pixels to the range of the model, x / 127.5 - 1.

    Args:
        images: uint8 array of any shape, of NumPy or JAX (also while traced).

    Returns:
        The float32 array of the same kind and shape, in [-1, 1].

    Raises:
        ValueError: if the pixels are not uint8.
    """
    if images.dtype != "uint8":
        raise ValueError(
            f"images are {images.dtype}, not uint8: give the pixels 0..255 as stored"
        )
    return images.astype("float32") / 127.5 - 1


def to_uint8(images):
    """Turns the model's range into pixels: clipped to [-1, 1], rounded to nearest.

    Args:
        images: float array of any shape, of NumPy or JAX (also while traced).

    Returns:
        The uint8 array of the same kind and shape; the inverse of `to_float`.
    """
    images = images.astype("float32").clip(-1, 1)
    return (127.5 * (images + 1)).round().astype("uint8")


def read(
    file: str | os.PathLike | BinaryIO,
    channels: int,
    background: str = "white",
    at_least: tuple[int, int] | None = None,
    formats: Sequence[str] | None = None,
    at_most: int | None = None,
) -> np.ndarray:
    """Reads a picture of any format that Pillow knows, an animation's first frame.

    Args:
        file: its path, or the file itself; it is turned as its EXIF orientation says.
        channels: 3 for RGB or 1 for grey.
        background: the colour of what is transparent.
        at_least: (height, width) that suffice. A JPEG is then decoded at 1/2, 1/4 or
            1/8 of its size where that leaves as much, which is faster, and other
            pixels than reading it whole.
        formats: those that are read, as Pillow names them, by default all.
        at_most: how many pixels it may have, None for what Pillow deems safe.

    Returns:
        uint8 [height, width, channels].

    Raises:
        OSError: if there is no such file, or it is no picture.
        ValueError: if it has more than 8 bits a channel, which would turn white, or is
            larger than it may be.
    """
    try:
        with Image.open(file, formats=formats) as picture:
            if at_most and math.prod(picture.size) > at_most:
                raise ValueError(f"it has more than {at_most:,} pixels")
            if picture.mode.startswith(("I", "F")):
                raise ValueError("it has more than 8 bits a channel: convert it")
            if at_least:
                height, width = at_least
                lies = picture.getexif().get(ORIENTATION, 1) >= 5
                picture.draft(None, (height, width) if lies else (width, height))
            ImageOps.exif_transpose(picture, in_place=True)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                behind = Image.new("RGBA", picture.size, background)
                picture = Image.alpha_composite(behind, picture)
            if picture.mode != _MODES[channels]:
                picture = picture.convert(_MODES[channels])
            pixels = np.asarray(picture)
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    return pixels.reshape(*pixels.shape[:2], channels)


def height_width(image_size: Any) -> tuple[int, int]:
    """Reads an image size, one side of a square or (height, width).

    Raises:
        ValueError: if it is not one or two positive integers.
    """
    sides = np.atleast_1d(image_size)
    if sides.dtype.kind != "i" or sides.shape not in {(1,), (2,)} or sides.min() < 1:
        raise ValueError(
            f"image_size is {image_size!r}: give a positive integer or (height, width)"
        )
    return int(sides[0]), int(sides[-1])


def resize_and_crop(image: np.ndarray, image_size: int | Sequence[int]) -> np.ndarray:
    """Fits an image to a size: its largest centred part of that shape, resampled.

    This equals resizing until the image just covers the size, then cropping the
    centre. Lanczos over all source pixels, so shrinking does not alias.

    Args:
        image: uint8 [h, w, C], any C.
        image_size: side of a square, or (height, width).

    Returns:
        uint8 [height, width, C]; the very pixels where the size is already right.
    """
    height, width = height_width(image_size)
    if image.shape[:2] == (height, width):
        return image
    h, w = image.shape[:2]
    scale = min(h / height, w / width)
    top, left = (h - scale * height) / 2, (w - scale * width) / 2
    box = (left, top, left + scale * width, top + scale * height)
    # Rounding must not push the box past the image: PIL refuses that.
    box = (box[0], box[1], min(box[2], w), min(box[3], h))

    def fit(pixels):
        picture = Image.fromarray(pixels)
        return np.asarray(picture.resize((width, height), Image.LANCZOS, box=box))

    if image.shape[2] == 3:  # each channel by itself, in one go
        return fit(image)
    return np.stack([fit(image[..., c]) for c in range(image.shape[2])], axis=-1)


def grid(
    images: np.ndarray,
    columns: int | None = None,
    scale: int | None = None,
    pad: int = 2,
) -> np.ndarray:
    """Tiles images into one picture, row by row, with grey lines between.

    Args:
        images: uint8 [N, H, W, C].
        columns: images in a row; by default the picture is nearly square.
        scale: integer factor of enlargement, pixels repeated; by default the
            smallest that makes the shorter side of a tile 64 pixels or more.
        pad: width of the lines, in pixels of the picture.

    Returns:
        uint8 [rows * (scale * H + pad) + pad, columns * (scale * W + pad) + pad, C].

    Raises:
        ValueError: if the images are not uint8 [N, H, W, C] with N > 0.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}: a grid needs uint8 "
            "[N, H, W, C] with N > 0 (see to_uint8)"
        )
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    scale = scale or math.ceil(_VISIBLE / min(images.shape[1:3]))
    tiles = images.repeat(scale, axis=1).repeat(scale, axis=2)
    missing = rows * columns - len(images)
    tiles = np.pad(
        tiles, [(0, missing), (pad, 0), (pad, 0), (0, 0)], constant_values=_GREY
    )
    _, height, width, channels = tiles.shape
    picture = tiles.reshape(rows, columns, height, width, channels)
    picture = picture.transpose(0, 2, 1, 3, 4)
    picture = picture.reshape(rows * height, columns * width, channels)
    return np.pad(picture, [(0, pad), (0, pad), (0, 0)], constant_values=_GREY)


def save_png(path: str | os.PathLike, picture: np.ndarray) -> None:
    """Writes a picture as a PNG, whole or not at all, creating its folder.

    Args:
        path: the file, which is replaced where it exists.
        picture: uint8 [H, W, C] with 1 or 3 channels, or [H, W].

    Raises:
        ValueError: if the picture has another type or shape.
    """
    data = to_png(picture)
    with atomic_write(path) as partial:
        partial.write_bytes(data)


def to_png(picture: np.ndarray) -> bytes:
    """Returns what `save_png` writes.

    Raises:
        ValueError: if the picture has another type or shape.
    """
    picture = np.asarray(picture)
    if picture.ndim == 3 and picture.shape[2] == 1:
        picture = picture[..., 0]
    if picture.dtype != np.uint8 or not (
        picture.ndim == 2 or picture.ndim == 3 and picture.shape[2] == 3
    ):
        raise ValueError(
            f"the picture is {picture.dtype} {list(picture.shape)}: a PNG needs uint8 "
            "[H, W, C] with 1 or 3 channels (see to_uint8 and grid)"
        )
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return file.getvalue()


def save_gif(path: str | os.PathLike, frames: np.ndarray, seconds: float = 4.0) -> None:
    """Writes pictures as an animation that is repeated, whole or not at all.

    Args:
        path: the file, which is replaced where it exists.
        frames: uint8 [N, H, W, C] with 1 or 3 channels.
        seconds: how long it runs; the last frame stays on for a quarter of it.
    """
    data = to_gif(frames, seconds)
    with atomic_write(path) as partial:
        partial.write_bytes(data)


def to_gif(frames: np.ndarray, seconds: float = 4.0) -> bytes:
    """Returns what `save_gif` writes."""
    frames = frames[..., 0] if frames.shape[-1] == 1 else frames
    pictures = [Image.fromarray(frame) for frame in frames]
    # GIF counts in hundredths of a second, and viewers slow down below two.
    durations = [max(20, round(750 * seconds / len(frames) / 10) * 10)] * len(frames)
    durations[-1] = round(250 * seconds)
    file = io.BytesIO()
    pictures[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0,
    )
    return file.getvalue()


def file_of(number: int, label: int | None = None) -> str:
    """Names an image in a folder, as the source `folder` reads it.

    Image i is `000000.png`, or with a label `<label>/000000.png` where the label has
    four digits.
    """
    within = "" if label is None else f"{label:04d}/"
    return f"{within}{number:06d}.png"


def save_folder(
    path: str | os.PathLike,
    images: np.ndarray,
    labels: Sequence[int] | None = None,
    first: int = 0,
) -> None:
    """Writes images as PNGs, in order, each whole or not at all.

    Args:
        path: the folder, created where it is missing.
        images: uint8 [N, H, W, C] with 1 or 3 channels.
        labels: the class of each image, or None; see `file_of`.
        first: the number of the first image.

    Raises:
        ValueError: if there is not one label for each image.
    """
    labels = [None] * len(images) if labels is None else [*map(int, labels)]
    if len(labels) != len(images):
        raise ValueError(
            f"{len(labels)} labels for {len(images)} images: give one each"
        )
    for number, (image, label) in enumerate(zip(images, labels, strict=True), first):
        save_png(Path(path) / file_of(number, label), image)
