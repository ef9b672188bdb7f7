"""Images that are arrays already: digits that come with us, and .npz files."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddpm_jax import buckets
from ddpm_jax.data.base import ArraySource, Source
from ddpm_jax.data.images import resize_and_crop
from ddpm_jax.data.remote import Remote
from ddpm_jax.files import read_arrays


def digits(split: str = "train") -> Source:
    """Opens handwritten digits: 8x8 grey images of 10 classes.

    They come with the package, so this source works anywhere, at once. They are the
    test set of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak
    (UCI Machine Learning Repository, 1998, doi.org/10.24432/C50P49, CC BY 4.0), in the
    order of scikit-learn's `load_digits`, their 17 shades spread over 0 to 255.

    Args:
        split: "test" is every sixth image (299), kept from training so that a
            classifier of samples can be judged on it; "train" is the rest (1498);
            "all" is both.

    Raises:
        ValueError: if the split is another.
    """
    images, labels = read_arrays(Path(__file__).with_name("digits.npz")).values()
    is_test = np.arange(len(images)) % 6 == 5
    chosen = {"train": ~is_test, "test": is_test, "all": is_test | ~is_test}
    if split not in chosen:
        raise ValueError(f"digits has no split {split!r}: give train, test or all")
    images = np.rint(images[..., None] * (255 / 16)).astype(np.uint8)
    return ArraySource(
        images[chosen[split]], labels[chosen[split]].astype(np.int32), 10
    )


def arrays(
    path: str | os.PathLike, image_size: int | Sequence[int] | None = None
) -> Source:
    """Opens an .npz file of images, held in memory.

    Args:
        path: the file, or its address in a bucket. It holds `images` uint8
            [N, H, W, C] or [N, H, W], with 1 or 3 channels, and `labels`, where there
            are classes: int [N] or [N, 1], from 0, or one-hot [N, classes]; or `arr_0`
            and `arr_1`, as guided-diffusion calls them.
        image_size: side of a square or (height, width) to resize and centre-crop
            to; the stored size by default.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does not hold what it should.
    """
    if buckets.is_address(path):
        remote = Remote(path)
        path = remote.bring(remote.files)
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give the path of an .npz")
    if path.suffix == ".npy":
        raise ValueError(
            f"{path} is no readable .npz of arrays, but an .npy: write one with "
            "np.savez(path, images=np.load(...))"
        )
    stored = read_arrays(path)
    names = {"arr_0": "images", "arr_1": "labels"}
    stored = {names.get(key, key): value for key, value in stored.items()}
    if "images" not in stored:
        raise ValueError(
            f"{path} holds {sorted(stored)} but not `images`: write it with "
            "np.savez(path, images=..., labels=...)"
        )
    images = stored["images"]
    if wrong := _wrong(images):
        raise ValueError(
            f"`images` in {path} is {images.dtype} {[*images.shape]}: {wrong}"
        )
    images = images[..., None] if images.ndim == 3 else images
    labels = np.zeros(len(images), np.int32)
    if "labels" in stored:
        labels = _as_numbers(stored["labels"])
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


def _wrong(images: np.ndarray) -> str | None:
    """Says why an array is not one of images, and what to store."""
    wanted = "store uint8 [N, H, W, C] or [N, H, W], with 1 or 3 channels"
    if images.dtype.kind == "f" and images.size:
        low, high = np.nanmin(images), np.nanmax(images)
        scaled = {
            low >= 0 and 1 < high <= 255: "images.round().astype('uint8')",
            low >= 0 and high <= 1: "(255 * images).round().astype('uint8')",
            -1 <= low < 0 and high <= 1: "(127.5 * images + 127.5).round()"
            ".astype('uint8')",
        }
        if True in scaled:
            wanted = f"store uint8, as in {scaled[True]}"
    elif images.dtype == np.uint16:
        wanted = "store uint8, as in (images // 257).astype('uint8')"
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        return wanted
    if images.ndim == 3 and images.shape[-1] in (1, 3):
        return f"is it one picture? {wanted}"
    if images.ndim == 4 and images.shape[-1] not in (1, 3):
        if images.shape[1] in (1, 3):
            return "its channels come first: store images.transpose(0, 2, 3, 1)"
        if images.shape[-1] == 4:
            wanted = "store three channels, with what is transparent on white"
        return f"{images.shape[-1]} channels are no picture: {wanted}"
    return None


def _as_numbers(labels: np.ndarray) -> np.ndarray:
    """Labels [N], of a column [N, 1] or of one-hot rows [N, classes]."""
    if labels.ndim != 2 or labels.dtype.kind not in "biuf":
        return labels
    if labels.shape[1] == 1:
        return labels[:, 0]
    ones = labels == 1
    is_one_hot = (ones.sum(1) == 1).all() and ((labels == 0) | ones).all()
    return ones.argmax(1) if is_one_hot else labels
