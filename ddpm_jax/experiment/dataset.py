"""The section `data`: images opened in splits and in batches."""

import contextlib
import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from ddpm_jax.data import arrays, batches, folders
from ddpm_jax.data.base import ArraySource, Source
from ddpm_jax.data.contents import contents_of, passed_over
from ddpm_jax.data.folders import image_shape_of
from ddpm_jax.data.kept import keep
from ddpm_jax.distributed import devices
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment.registry import choose
from ddpm_jax.experiment.sections import attempt, call, check, signature

# The keys of the section `data` that say how to keep images, how to batch them and how
# to compute batches ahead; the others open the source.
KEEPING = ("max_memory_gb", "cache")
AHEAD = ("num_workers", "prefetch")
BATCHING = ("batch_size", "flip", *KEEPING, *AHEAD)

# The most memory that batches computed ahead take, unless `prefetch` is given.
_AHEAD_GB = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """The images of a config. Nothing is read, nor checked, before they are opened.

    Attributes:
      section: the section `data`.
      image_shape: (height, width, channels) that the config wants of every image.
      num_classes: the most classes that they may have, 0 where these do not matter.
      seed: of the order of the images.
    """

    section: dict[str, Any]
    image_shape: tuple[int, int, int]
    num_classes: int = 0
    seed: int = 0

    @property
    def batch_size(self) -> int:
        """The images of a training step, on all devices.

        Raises:
          ConfigError: if that is no such number.
        """
        batch_size = self.section.get("batch_size")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(
                "config.data.batch_size must be whole and at least 1, got "
                f"{batch_size!r}"
            )
        return batch_size

    @property
    def origin(self) -> dict[str, str]:
        """The names of the data, as protocols of scores have them."""
        names = ("name", "dataset")
        return {name: self.section[name] for name in names if name in self.section}

    @property
    def has_splits(self) -> bool:
        """Whether the images come in several splits.

        Raises:
          ConfigError: where the config names no images.
        """
        return "split" in signature(self._constructor()).parameters

    def at(self, path: str) -> "Dataset":
        """Returns others of the same kind and size, which lie elsewhere."""
        return dataclasses.replace(self, section={**self.section, "path": path})

    def check_keys(self) -> None:
        """Checks what the section says, without looking whether the images are there.

        Raises:
          ConfigError: for a name or a key that there is not, and for a value of another
            type.
        """
        constructor, given = self._constructor(), self._opening()
        check(given, "data", constructor, 0, BATCHING, self._wanted(constructor))
        call(self._part(AHEAD), "data", _ahead, self.batch_size)
        check(self._part(KEEPING), "data", keep, 1)
        check(self._part(("batch_size", "flip")), "data", batches.make_batch_fn, 1)

    def open(self, split: str | None = None) -> Source:
        """Opens the images.

        Args:
          split: which part; by default what the config says. Images without splits are
            all "train".

        Raises:
          ConfigError: if they are missing, or do not fit the rest of the config; where
            it names no images, or they have no such split.
        """
        constructor, name = self._constructor(), self.section["name"]
        section, has_splits = self._opening(), self.has_splits
        if split is not None and has_splits:
            section = {**section, "split": split}
        elif split not in (None, "train"):
            raise ConfigError(f"config.data {name!r} has no splits, so no {split!r}")
        wanted = self._wanted(constructor)
        source = call(section, "data", constructor, also=BATCHING, **wanted)
        height, width, channels = self.image_shape
        if tuple(source.image_shape) != (height, width, channels):
            have = "x".join(map(str, source.image_shape))
            raise ConfigError(
                f"config.image_shape is {height}x{width}x{channels}, but the images of "
                f"{name!r} are {have}"
            )
        if self.num_classes and not 0 < source.num_classes <= self.num_classes:
            raise ConfigError(
                f"config.network.num_classes is {self.num_classes}, but the images of "
                f"{name!r} have {source.num_classes} classes"
            )
        return source

    def feed(self, num_microbatches: int = 1) -> batches.Feed:
        """Opens the images for training: this process's part of the batches.

        Args:
          num_microbatches: in how many parts a device goes through its share.

        Raises:
          ConfigError: if they are missing, or do not fit the rest of the config.
        """
        batch_size = self.section.get("batch_size", 0)
        attempt("data", devices.check_batch_size, batch_size, num_microbatches)
        share = batch_size // jax.process_count() * math.prod(self.image_shape)
        ahead = call(self._part(AHEAD), "data", _ahead, share)
        source = self.open()
        kept = call(self._part(KEEPING), "data", keep, source, say=_say)
        batch_fn = call(
            self._part(("batch_size", "flip")),
            "data",
            batches.make_batch_fn,
            kept,
            seed=self.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        advice = f"raise data.num_workers, now {ahead['num_workers']}"
        if kept is source and not isinstance(source, ArraySource):
            tenths = math.ceil(len(source) * math.prod(source.image_shape) / 1e8)
            advice += f", or data.max_memory_gb to {tenths / 10}, for all of them"
        return batches.Feed(
            batch_fn,
            batch_size,
            **ahead,
            first_pass=0 if kept is source else math.ceil(len(source) / batch_size),
            advice=advice,
            contents=contents_of(source),
            notes=self._notes(source),
        )

    def _constructor(self):
        if "name" not in self.section:
            raise ConfigError(
                "this model does not say of what data: give --config.data.name and "
                "what it needs, as in --config.data.name=tfds "
                "--config.data.dataset=cifar10"
            )
        return choose({"data": self.section}, "data")

    def _opening(self):
        """The keys that open the source."""
        return {k: v for k, v in self.section.items() if k not in ("name", *BATCHING)}

    def _wanted(self, constructor):
        """What a source is told of the images, if it is to be told."""
        height, width, channels = self.image_shape
        wanted = {"image_size": (height, width), "channels": channels}
        parameters = signature(constructor).parameters
        return {key: value for key, value in wanted.items() if key in parameters}

    def _part(self, keys):
        return {key: self.section[key] for key in keys if key in self.section}

    def _notes(self, source):
        """What is not used of the data, and what of the network they do not fill."""
        unseen = ""
        if source.num_classes and not self.num_classes:
            unseen = "network.num_classes is 0: it is told none of them"
        elif self.num_classes > source.num_classes:
            unseen = (
                f"network.num_classes is {self.num_classes}: the last never have an "
                "image"
            )
        return [note for note in (passed_over(source), unseen) if note]


def make_dataset(config: dict[str, Any]) -> Dataset:
    """Makes the data set of a config."""
    return Dataset(
        config.get("data", {}),
        tuple(config["image_shape"]),
        config.get("network", {}).get("num_classes", 0),
        config.get("seed", 0),
    )


def open_images(path: str, dataset: Dataset | None = None) -> Source:
    """Opens images as they are: a folder of files of one size, or an .npz.

    Folders whose names are numbers are of the classes of these numbers, as `sample`
    writes them; others are of the classes of these names, where it is said of what
    data.

    Args:
      path: of the folder or file.
      dataset: whose classes they are of.

    Raises:
      ConfigError: if they cannot be read, are of several sizes, or of classes that the
        data do not have.
    """
    path = Path(path).expanduser()
    try:
        if not path.is_dir():
            return arrays.arrays(path)
        height, width, channels = image_shape_of(path)
        source = folders.folder(path, (height, width), channels)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--images: {error}") from error
    names = source.class_names
    if all(name.isdecimal() for name in names):
        numbers = [int(name) for name in names]
    elif dataset is None:
        return source
    else:
        known = contents_of(dataset.open()).classes
        if missing := [name for name in names if name not in known]:
            raise ConfigError(
                f"--images: the data of --config have no class {missing[0]!r}; they "
                f"have {', '.join(known[:10])}: name the folders so, or by numbers"
            )
        numbers = [known.index(name) for name in names]
    labels = [numbers[label] for label in source.labels] if names else source.labels
    names = [str(number) for number in range(max(numbers, default=-1) + 1)]
    return dataclasses.replace(source, labels=labels, class_names=names)


def _say(text):
    """Every process says what it writes on its disk."""
    with contextlib.suppress(BrokenPipeError):  # a run outlives its terminal
        tqdm.write(text)


def _ahead(
    batch_bytes: int, num_workers: int | None = None, prefetch: int | None = None
) -> dict[str, int]:
    """How many threads compute how many batches ahead."""
    if num_workers is None:
        num_workers = min(max(os.cpu_count() or 1, 4), 16)
    if prefetch is None:
        prefetch = min(8, max(1, int(_AHEAD_GB * 1e9) // batch_bytes))
    for name, value in {"num_workers": num_workers, "prefetch": prefetch}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}: give 1 or more")
    return {"num_workers": num_workers, "depth": prefetch}
