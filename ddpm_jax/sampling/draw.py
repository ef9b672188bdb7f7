"""Any number of images of a model, on all devices."""

from collections.abc import Sequence

import jax
import numpy as np

from ddpm_jax.distributed import devices
from ddpm_jax.experiment.model import Model
from ddpm_jax.networks import check_labels
from ddpm_jax.training.keys import random_key


def draw(
    model: Model,
    num: int,
    seed: int = 0,
    labels: Sequence[int] | np.ndarray | None = None,
    batch_size: int = 64,
) -> np.ndarray:
    """Draws images; image i is the same whatever their number and the batch size.

    Args:
      model: with its parameters, as `load` gives it.
      num: how many.
      seed: of their noise, 0 ... 2**64 - 1.
      labels: their classes, repeated to fill `num`; by default all in turn.
      batch_size: images at a time, on each device.

    Returns:
      Pixels, uint8 [num, height, width, channels].

    Raises:
      ValueError: for no images, or classes that the model does not have.
    """
    if num < 1 or batch_size < 1:
        raise ValueError(f"num and batch_size must be positive: {num}, {batch_size}")
    given = sample_keys(seed, num), sample_labels(model.num_classes, num, labels)
    return devices.joined(
        devices.map_batches(model.picture_fn, model.params, given, batch_size)
    )


def sample_labels(num_classes: int, num: int, labels=None) -> np.ndarray | None:
    """Returns a label for each of `num` images: all classes in turn, or those given.

    Raises:
      ValueError: for labels that are no classes, or none at all.
    """
    if num_classes == 0:
        return None
    labels = np.arange(num_classes) if labels is None else np.asarray(labels)
    if not labels.size:
        raise ValueError("give at least one label, or None for all classes")
    check_labels(labels, num_classes)
    return np.resize(labels, num)


def sample_keys(seed: int, num: int) -> jax.Array:
    """Returns a key for each image; image i has the same one whatever `num`."""
    return jax.vmap(jax.random.fold_in, (None, 0))(random_key(seed), np.arange(num))
