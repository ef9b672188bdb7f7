"""Where images come from: each function here opens a data set as a `Source`.

The arguments of a constructor are what a config may say about the data.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddpm_jax.data.folder import folder
from ddpm_jax.data.images import resize_and_crop
from ddpm_jax.data.source import ArraySource, Source
from ddpm_jax.data.tfds import tfds
from ddpm_jax.files import read_arrays

__all__ = ["arrays", "digits", "folder", "tfds"]


def digits(split: str = "train") -> Source:
    """Opens scikit-learn's handwritten digits: 8x8 grey images of 10 classes.

    They come with the package, so this source works anywhere, at once.

    Args:
        split: "test" is every sixth image (299), kept from training so that a
            classifier of samples can be judged on it; "train" is the rest (1498);
            "all" is both.

    Raises:
        ValueError: if the split is another.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    is_test = np.arange(len(images)) % 6 == 5
    chosen = {"train": ~is_test, "test": is_test, "all": is_test | ~is_test}
    if split not in chosen:
        raise ValueError(f"digits has no split {split!r}: give train, test or all")
    images = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return ArraySource(
        images[chosen[split]], labels[chosen[split]].astype(np.int32), 10
    )


def arrays(
    path: str | os.PathLike, image_size: int | Sequence[int] | None = None
) -> Source:
    """Opens an .npz file of images, held in memory.

    Args:
        path: the file: `images` uint8 [N, H, W, C] or [N, H, W], and `labels`
            int [N], from 0, where there are classes; or `arr_0` and `arr_1`, as
            guided-diffusion calls them.
        image_size: side of a square or (height, width) to resize and centre-crop
            to; the stored size by default.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does not hold what it should.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give the path of an .npz")
    stored = read_arrays(path)
    names = {"arr_0": "images", "arr_1": "labels"}
    stored = {names.get(key, key): value for key, value in stored.items()}
    if "images" not in stored:
        raise ValueError(
            f"{path} holds {sorted(stored)} but not `images`: write it with "
            "np.savez(path, images=...)"
        )
    images = stored["images"]
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise ValueError(
            f"`images` in {path} is {images.dtype} {list(images.shape)}: store uint8 "
            "[N, H, W, C] or [N, H, W]"
        )
    labels = stored.get("labels", np.zeros(len(images), np.int32))
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ValueError(
            f"`labels` in {path} is {labels.dtype} {list(labels.shape)}: store one "
            f"integer for each of the {len(images)} images"
        )
    if labels.min() < 0:
        raise ValueError(f"`labels` in {path} goes below 0: number the classes from 0")
    if image_size is not None:
        images = np.stack([resize_and_crop(image, image_size) for image in images])
    num_classes = int(labels.max()) + 1 if "labels" in stored else 0
    return ArraySource(images, labels.astype(np.int32), num_classes)
