"""The images of a config: opened, in splits, in batches."""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable
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
from ddpm_jax.experiment.sections import attempt, call, signature

# The keys of the section `data` that say how to keep images, how to batch them and how
# to compute batches ahead; the others open the source.
KEEPING = ("max_memory_gb", "cache")
AHEAD = ("num_workers", "prefetch")
BATCHING = ("batch_size", "flip", *KEEPING, *AHEAD)

# The most memory that batches computed ahead take, unless `prefetch` is given.
_AHEAD_GB = 1.0


def make_feed(config: dict[str, Any], num_microbatches: int = 1) -> batches.Feed:
    """Opens a config's images, for this process's part of the batches.

    Args:
      config: the config.
      num_microbatches: in how many parts a device goes through its share.

    Raises:
      ConfigError: if they are missing, or do not fit the rest of the config.
    """
    section = config.get("data", {})
    batch_size = section.get("batch_size", 0)
    attempt("data", devices.check_batch_size, batch_size, num_microbatches)
    share = batch_size // jax.process_count() * math.prod(config["image_shape"])
    ahead = call(_part(section, AHEAD), "data", _ahead, share)
    source = open_source(config)
    kept = call(_part(section, KEEPING), "data", keep, source, say=_say)
    batch_fn = call(
        _part(section, ("batch_size", "flip")),
        "data",
        batches.make_batch_fn,
        kept,
        seed=config.get("seed", 0),
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
        notes=_notes(source, config),
    )


def _notes(source, config):
    """What of the data is not used, and what of the network the data do not fill."""
    classes = config.get("network", {}).get("num_classes", 0)
    unseen = ""
    if classes > source.num_classes:
        unseen = f"network.num_classes is {classes}: the last never have an image"
    return [note for note in (passed_over(source), unseen) if note]


def make_batches(config: dict[str, Any], num_microbatches: int = 1) -> Callable:
    """Opens a config's images: batch_fn(step) -> this process's part of the batch.

    See `make_feed`.
    """
    return make_feed(config, num_microbatches).batch_fn


def _part(section, keys):
    return {key: section[key] for key in keys if key in section}


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


def open_source(config: dict[str, Any]) -> Source:
    """Opens the images that the section `data` names.

    Raises:
      ConfigError: if they are missing, or do not fit the rest of the config.
    """
    height, width, channels = config["image_shape"]
    constructor = choose(config, "data")
    wanted = {"image_size": (height, width), "channels": channels}
    parameters = signature(constructor).parameters
    wanted = {key: value for key, value in wanted.items() if key in parameters}
    others = ("name", *BATCHING)
    settings = {k: v for k, v in config["data"].items() if k not in others}
    source = call(settings, "data", constructor, also=BATCHING, **wanted)
    if tuple(source.image_shape) != (height, width, channels):
        have = "x".join(map(str, source.image_shape))
        raise ConfigError(
            f"config.image_shape is {height}x{width}x{channels}, but the images of "
            f"{config['data']['name']!r} are {have}"
        )
    num_classes = config.get("network", {}).get("num_classes", 0)
    if num_classes and not 0 < source.num_classes <= num_classes:
        raise ConfigError(
            f"config.network.num_classes is {num_classes}, but the images of "
            f"{config['data']['name']!r} have {source.num_classes} classes"
        )
    return source


def open_split(config: dict[str, Any], split: str) -> Source:
    """Opens a part of a config's images; those without parts are all "train".

    Raises:
      ConfigError: see `open_source`; also where a config names no data, or they have no
        such split.
    """
    if has_splits(config):
        return open_source({**config, "data": {**config["data"], "split": split}})
    if split != "train":
        raise ConfigError(
            f"config.data {config['data']['name']!r} has no splits, so no {split!r}"
        )
    return open_source(config)


def has_splits(config: dict[str, Any]) -> bool:
    """Returns whether a config's images come in several splits.

    Raises:
      ConfigError: where it names no images.
    """
    if "name" not in config.get("data", {}):
        raise ConfigError(
            "this model does not say of what data: give --config.data.name and what it "
            "needs, as in --config.data.name=tfds --config.data.dataset=cifar10"
        )
    constructor = choose(config, "data")
    return "split" in signature(constructor).parameters


def open_images(path: str, config: dict[str, Any] | None = None) -> Source:
    """Opens images as they are: a folder of files of one size, or an .npz.

    Folders whose names are numbers are of the classes of these numbers, as `sample`
    writes them; where a config says of what data, others are of the classes of these
    names.

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
    elif config is None:
        return source
    else:
        known = contents_of(open_source(config)).classes
        if missing := [name for name in names if name not in known]:
            raise ConfigError(
                f"--images: the data of --config have no class {missing[0]!r}; they "
                f"have {', '.join(known[:10])}: name the folders so, or by numbers"
            )
        numbers = [known.index(name) for name in names]
    labels = [numbers[label] for label in source.labels] if names else source.labels
    names = [str(number) for number in range(max(numbers, default=-1) + 1)]
    return dataclasses.replace(source, labels=labels, class_names=names)
