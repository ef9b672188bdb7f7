"""Image data sets of tensorflow-datasets, read without TensorFlow.

Reading needs the ArrayRecord format, which has random access. The stock builders write
TFRecord by default and mostly need TensorFlow, but for CIFAR (see `cifar`).
"""

import dataclasses
import difflib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from ddpm_jax import buckets
from ddpm_jax.data.base import Origin, Source, digest
from ddpm_jax.data.cifar import prepare_cifar
from ddpm_jax.data.images import height_width, resize_and_crop
from ddpm_jax.data.remote import Remote
from ddpm_jax.errors import reason
from ddpm_jax.files import file_lock, of_machine, stamp_of

# The files that hold the records themselves; others describe them.
_RECORDS = re.compile(r"\.(array|tf)_?record")


@dataclasses.dataclass(frozen=True, eq=False)
class _Records:
    """The records of one split, decoded when they are asked for."""

    name: str
    place: Path
    files: Sequence[tuple]  # name, size, and what changes with its content
    records: Any  # tfds' random-access source of dicts
    image_shape: tuple[int, int, int]
    class_names: Sequence[str]
    columns: tuple[str, str | None]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.records)

    def fingerprint(self) -> str:
        sizes = [(name, size) for name, size, _ in self.files]
        return digest(len(self), self.columns, *sizes)

    def origin(self) -> Origin:
        columns = "" if self.columns == ("image", "label") else f" {self.columns}"
        name = f"{self.name}{columns} {'x'.join(map(str, self.image_shape))}"
        content = digest(PIL.__version__, [*self.files])
        return Origin(self.place.resolve(), name, content)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        images, labels = self.gather(np.array([index]))
        return images[0], int(labels[0])

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        records = self._read(indices.tolist())
        size = self.image_shape[:2]
        image, label = self.columns
        images = [resize_and_crop(_opaque(record[image]), size) for record in records]
        labels = [record[label] if self.num_classes else 0 for record in records]
        return np.stack(images), np.array(labels, np.int32)

    def _read(self, indices):
        try:
            return self.records.__getitems__(indices)
        except Exception as error:  # PIL and ArrayRecord raise anything on such bytes
            if of_machine(error):
                raise
            if len(indices) > 1:
                return [record for index in indices for record in self._read([index])]
            raise OSError(
                f"record {indices[0]} of {self.name} cannot be decoded ({error}): "
                "prepare the data set again; the same command goes on then"
            ) from error


def tfds(
    dataset: str,
    split: str = "train",
    data_dir: str | os.PathLike | None = None,
    image_size: int | Sequence[int] | None = None,
    download: bool = True,
    image_key: str = "image",
    label_key: str | None = "label",
) -> Source:
    """Opens a data set of images prepared by tensorflow-datasets.

    It must be prepared in the format ArrayRecord. Only `cifar10` and `cifar100` are
    downloaded and prepared here where they are missing; the message for any other
    gives the command to run once on a machine with TensorFlow.

    Args:
        dataset: its name, as in `"cifar10"`, `"cifar10:3.0.2"` or `"name/config"`.
        split: a split or a part of one, as in `"train"` or `"train[:10%]"`.
        data_dir: where data sets are kept, a folder or the address of one in a bucket,
            from where the split is brought to this machine, as ArrayRecord reads files;
            by default tfds' own place, `~/tensorflow_datasets`.
        image_size: side of a square or (height, width) to resize and centre-crop
            to; needed where the images differ in size.
        download: whether a missing CIFAR may be downloaded.
        image_key: the column of the images.
        label_key: the column of the classes; None for none.

    Returns:
        The source; without classes where it has no column "label".

    Raises:
        ConnectionError: if CIFAR is missing and cannot be downloaded.
        FileNotFoundError: if the data set is not prepared as ArrayRecord.
        ValueError: if the name, split or image size is wrong, or it has no images.
    """
    remote = None
    if data_dir is not None and buckets.is_address(data_dir):
        name = dataset.partition(":")[0]
        remote = Remote(f"{data_dir}/{name}")
        described = [file for file in remote.files if not _RECORDS.search(file)]
        data_dir = remote.bring(described).parents[name.count("/")]
    builder = _builder(dataset, data_dir)
    if not _is_prepared(builder):
        is_cifar = builder.name in ("cifar10", "cifar100")
        if not (is_cifar and download):
            raise FileNotFoundError(
                f"{dataset} is not prepared in {builder.data_dir_root}: "
                + ("allow download=True, or " if is_cifar else "")
                + _how_to_prepare(dataset, builder)
            )
        folder = Path(builder.data_dir_root)
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(folder):  # another process may be at it
            builder = _builder(dataset, data_dir)
            if not _is_prepared(builder):
                builder = prepare_cifar(builder)
    records = _open_split(builder, dataset, split, remote)

    from tensorflow_datasets import features

    columns = dict(builder.info.features.items())

    def of_kind(kind):
        return sorted(k for k, v in columns.items() if isinstance(v, kind))

    are_images, are_classes = of_kind(features.Image), of_kind(features.ClassLabel)
    if image_key not in are_images:
        hint = "choose a data set of images"
        if are_images:
            hint = f"give image_key={' or '.join(map(repr, are_images))}"
        raise ValueError(
            f"{dataset} has no column {image_key!r} of images, only {sorted(columns)}: "
            f"{hint}"
        )
    by_default = label_key == "label" and not are_classes
    if not (label_key is None or label_key in are_classes or by_default):
        known = " or ".join([*map(repr, are_classes), "None"])
        raise ValueError(
            f"{dataset} has no column {label_key!r} of classes, only "
            f"{sorted(columns)}: give label_key={known}"
        )
    *size, channels = columns[image_key].shape
    if columns[image_key].np_dtype != np.uint8:
        raise ValueError(
            f"the images of {dataset} are {columns[image_key].np_dtype}, not uint8: "
            "choose a data set of 8-bit images"
        )
    if image_size is not None:
        size = height_width(image_size)
    if None in (*size, channels):
        raise ValueError(
            f"the images of {dataset} differ in size: give image_size to resize them to"
        )
    names = columns[label_key].names if label_key in are_classes else ()
    return _Records(
        name=f"{dataset} {split}",
        place=Path(builder.data_path),
        files=_files(Path(builder.data_path), remote),
        records=records,
        image_shape=(*size, 3 if channels == 4 else channels),
        class_names=names,
        columns=(image_key, label_key),
    )


def _files(place: Path, remote: Remote | None) -> list[tuple]:
    """The files of a data set, also of its other splits: name, size, and change."""
    if remote is None:
        paths = sorted(path for path in place.iterdir() if path.is_file())
        return [(path.name, *stamp_of(path)) for path in paths]
    paths = {name: remote.place / name for name in sorted(remote.files)}
    return [
        (path.name, *remote.stamp_of(name))
        for name, path in paths.items()
        if path.parent == place
    ]


def _opaque(image):
    """Colours on white where a picture has them with their opacity."""
    if image.shape[-1] != 4:
        return image
    opacity = image[..., 3:] / 255
    return np.rint(image[..., :3] * opacity + 255 * (1 - opacity)).astype(np.uint8)


def _is_prepared(builder) -> bool:
    # The path is tried first because is_prepared() logs a warning of its absence.
    return builder.data_path.exists() and builder.is_prepared()


def _not_of_opencv(record: logging.LogRecord) -> bool:
    return "OpenCV" not in str(record.msg)


def _builder(name: str, data_dir: str | os.PathLike | None):
    """Finds the data set by its name, in tfds' catalogue or among the prepared."""
    import tensorflow_datasets

    # Pillow is meant: a package more would be needed to be faster.
    logging.getLogger("absl").addFilter(_not_of_opencv)
    try:
        return tensorflow_datasets.builder(name, data_dir=data_dir)
    except tensorflow_datasets.core.DatasetNotFoundError:
        catalogue = tensorflow_datasets.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name, catalogue)
        hint = f"did you mean {' or '.join(near)}?" if near else "see tfds' catalogue"
        raise ValueError(
            f"tensorflow-datasets knows no {name!r} and {data_dir or 'its data_dir'} "
            f"holds none: {hint}"
        ) from None
    except (AssertionError, ValueError) as error:
        raise ValueError(
            f"tensorflow-datasets cannot open {name!r}: {reason(error)}"
        ) from error


def _open_split(builder, name: str, split: str, remote: Remote | None):
    """Opens the records of a split, refusing what cannot be read or is empty."""
    try:
        if remote is not None:
            below = Path(builder.data_path).relative_to(remote.place)
            shards = builder.info.splits[split].filenames
            remote.bring((below / shard).as_posix() for shard in shards)
        records = builder.as_data_source(split)
        is_empty = not len(records)
    except NotImplementedError:  # not a format of random access
        raise FileNotFoundError(
            f"{name} in {builder.data_dir} is not in the format array_record, so it "
            "needs TensorFlow: move it away, then " + _how_to_prepare(name, builder)
        ) from None
    except ValueError:  # no such split, not a split, or a part turned around
        is_empty = True
    if is_empty:
        raise ValueError(
            f"{name} has no images in split {split!r}: its splits are "
            f"{', '.join(builder.info.splits)}, and parts such as 'train[:10%]'"
        )
    return records


def _how_to_prepare(name: str, builder) -> str:
    return (
        "prepare it once on a machine with TensorFlow: "
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='{builder.data_dir_root}', "
        "file_format='array_record').download_and_prepare()\""
    )
