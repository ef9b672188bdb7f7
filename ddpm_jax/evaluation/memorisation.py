"""Whether a model copies training images: a number, a picture, a distribution."""

from pathlib import Path

import jax
import numpy as np

from ddpm_jax.data import images
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import plots, references
from ddpm_jax.evaluation.measures import Measure
from ddpm_jax.experiment.dataset import Dataset
from ddpm_jax.metrics import memorisation
from ddpm_jax.metrics.by_name import Value
from ddpm_jax.metrics.features.base import Extractor
from ddpm_jax.places import readable
from ddpm_jax.sampling.partial import key_of

NUM_PAIRS = 24


def measure_of(
    dataset: Dataset,
    extractor: Extractor,
    batch_size: int,
    folder: Path,
    held_out: str | None = None,
) -> Measure:
    """Returns how samples are compared with training and with test images.

    Args:
      dataset: the images; they must have the splits "train" and "test", unless the test
        images lie elsewhere.
      extractor: in whose features what is near lies near.
      batch_size: images at a time, on each device.
      folder: where the nearest pairs and the distances are drawn.
      held_out: the path of test images, None for the split "test".

    Raises:
      ConfigError: if the images have no such splits, or cannot be read.
    """
    if held_out is None and not dataset.has_splits:
        raise ConfigError(
            "memorisation compares with images that were kept from training, and these "
            "data have no split 'test': give the path of such images as --held_out"
        )
    sets = {"train": references.from_split(dataset, "train")}
    if held_out is None:
        sets["test"] = references.from_split(dataset, "test")
    else:
        sets["test"] = references.from_split(dataset.at(held_out), "train")
    train, test = (
        references.statistics_of(subject, extractor, batch_size, num_kept=subject.num)
        for subject in sets.values()
    )

    def check(subject, protocol):
        here, there = protocol["image_shape"], train.protocol["image_shape"]
        if here != there:
            raise ValueError(f"images are {here}, those of the training set {there}")
        return ()

    def compute(subject, generated):
        found = memorisation.memorisation(
            generated.features, train.features, test.features
        )
        if jax.process_index() == 0:
            nearest = np.argsort(found.distances, kind="stable")[:NUM_PAIRS]
            key = key_of(generated.protocol)[:6]
            name = subject.name.replace(":", "_")
            path = folder / f"memorisation_{name}_{key}.png"
            picture = memorisation.pairs(
                _drawn(subject, nearest), _drawn(sets["train"], found.indices[nearest])
            )
            images.save_png(path, picture)
            plots.plot_distances(
                path.with_stem(f"{path.stem}_distances"),
                {subject.name: found.distances, "test images": found.test_distances},
            )
            print(readable(f"{subject.name}: the nearest pairs are drawn in {path}"))
        return [Value(found.score, found.error), Value(found.copies)]

    protocol = {"train": train.protocol, "test": test.protocol}
    return Measure(("memorisation", "copies"), check, compute, protocol)


def _drawn(subject, positions):
    """Some images, as many at a time as the devices can share."""
    whole = -(-len(positions) // jax.local_device_count()) * jax.local_device_count()
    return np.asarray(subject.draw(np.resize(positions, whole)))[: len(positions)]
