"""The images of a config: opened, in splits, in batches."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from ddpm_jax.config import ConfigError
from ddpm_jax.construct import attempt, call, choose
from ddpm_jax.data import pipeline, sources
from ddpm_jax.data.folder import image_shape_of
from ddpm_jax.data.source import Source, in_memory
from ddpm_jax.training import parallel

# The keys of the section `data` that say how to batch; the others open the source.
BATCHING = ("batch_size", "flip")


def make_batches(config: dict[str, Any], num_microbatches: int = 1) -> Callable:
    """Opens a config's images: batch_fn(step) -> this process's part of the batch.

    Args:
      config: the config.
      num_microbatches: in how many parts a device goes through its share.

    Raises:
      ConfigError: if they are missing, or do not fit the rest of the config.
    """
    section = config.get("data", {})
    batching = {key: section[key] for key in BATCHING if key in section}
    batch_size = batching.get("batch_size", 0)
    attempt("data", parallel.check_batch_size, batch_size, num_microbatches)
    return call(
        batching,
        "data",
        pipeline.make_batch_fn,
        attempt("data", in_memory, open_source(config)),
        seed=config.get("seed", 0),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def open_source(config: dict[str, Any]) -> Source:
    """Opens the images that the section `data` names.

    Raises:
      ConfigError: if they are missing, or do not fit the rest of the config.
    """
    height, width, channels = config["image_shape"]
    constructor = choose(config, "data", sources, Source)
    wanted = {"image_size": (height, width), "channels": channels}
    parameters = inspect.signature(constructor).parameters
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
    constructor = choose(config, "data", sources, Source)
    return "split" in inspect.signature(constructor).parameters


def open_images(path: str) -> Source:
    """Opens images as they are: a folder of files of one shape, or an .npz.

    Raises:
      ConfigError: if they cannot be read, or are of several shapes.
    """
    path = Path(path).expanduser()
    try:
        if not path.is_dir():
            return sources.arrays(path)
        height, width, channels = image_shape_of(path)
        return sources.folder(path, (height, width), channels)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--images: {error}") from error
