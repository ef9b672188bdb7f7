"""What is scored: images that a model draws, or that are there already."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.data.base import ArraySource, Source, gather, labels_of
from ddpm_jax.distributed import devices
from ddpm_jax.experiment.model import Model
from ddpm_jax.metrics import statistics
from ddpm_jax.metrics.features.base import Extractor, fingerprint
from ddpm_jax.metrics.statistics import Statistics
from ddpm_jax.sampling.draw import sample_keys


class ImageSet(NamedTuple):
    """A set of images, any of which can be had again.

    Attributes:
      name: as tables call it, such as "ddim:50" or "data:test".
      num: how many images.
      image_shape: (height, width, channels).
      draw: positions [part] -> uint8 images [part, height, width, channels], where the
        part is shared by the devices; what a model draws stays on them.
      labels: the class of each image, [num], or None.
      protocol: what decides the images, as JSON has it.
    """

    name: str
    num: int
    image_shape: tuple[int, int, int]
    draw: Callable[[np.ndarray], np.ndarray]
    labels: np.ndarray | None
    protocol: dict[str, Any]


def from_model(
    name: str,
    model: Model,
    params,
    /,
    num: int,
    seed: int = 0,
    labels: np.ndarray | None = None,
    **protocol,
) -> ImageSet:
    """Images that a model draws, rounded to 8 bits; image i is the same for any num.

    Args:
      name: of the subject.
      model: the model with its sampler.
      params: of its network.
      num: how many images.
      seed: of their noise.
      labels: their classes [num], or None for a model without.
      **protocol: what else decides the images, such as the sampler's settings and a
        hash of the parameters.
    """
    protocol |= {
        "seed": seed,
        "network_calls": model.network_calls,
        "rounding": "uint8",
    }
    picture_fn = devices.shard(model.picture_fn)
    params = devices.replicate(params)
    keys = sample_keys(seed, num)

    def draw(positions):
        conditions = None if labels is None else labels[positions]
        return picture_fn(params, keys[positions], conditions)

    return ImageSet(name, num, model.image_shape, draw, labels, protocol)


def from_source(
    name: str, source: Source, num: int | None = None, **protocol
) -> ImageSet:
    """Images that are there, `num` of them evenly spread, or all.

    The protocol holds a hash of them: of all where they are in memory, else of some.
    """
    total = len(source)
    num = total if num is None else min(num, total)
    chosen = np.arange(num) * total // num
    step = 1 if isinstance(source, ArraySource) else max(num // 64, 1)
    digest = fingerprint(gather(source, chosen[::step]))
    labels = labels_of(source, chosen) if source.num_classes else None

    def draw(positions):
        return gather(source, chosen[positions])[0]

    protocol |= {"images_in_all": total, "pixels": digest}
    return ImageSet(name, num, tuple(source.image_shape), draw, labels, protocol)


def measure(
    subject: ImageSet,
    extractor: Extractor,
    batch_size: int,
    num_kept: int | None = None,
    **how,
) -> Statistics:
    """Draws all images of a subject and collects their features, on all devices.

    Args:
      subject: the images.
      extractor: the feature network.
      batch_size: images at a time, on each device.
      num_kept: of how many to keep the features (see `statistics.collect`).
      **how: see `devices.in_batches`.

    Raises:
      ValueError: if the network cannot treat such images, or features are not finite.
    """
    apply = devices.shard(extractor.apply)
    params = devices.replicate(extractor.params)

    def run_batch(positions):
        return apply(params, extractor.prepare(subject.draw(positions)))

    num = subject.num
    batches = devices.in_batches(run_batch, num, batch_size, subject.name, **how)
    return statistics.collect(batches, num, protocol(subject, extractor), num_kept)


def protocol(subject: ImageSet, extractor: Extractor) -> dict[str, Any]:
    """Returns all that decides the features of a subject, as JSON has it."""
    return {
        "features": extractor.protocol,
        "image_shape": list(subject.image_shape),
        "num": subject.num,
        "images": subject.protocol,
    }
