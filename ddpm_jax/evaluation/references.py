"""Statistics of real images, made once and kept."""

from pathlib import Path

import jax

from ddpm_jax import places
from ddpm_jax.data.base import in_memory
from ddpm_jax.distributed import multihost
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import image_sets
from ddpm_jax.evaluation.image_sets import ImageSet
from ddpm_jax.experiment.dataset import Dataset
from ddpm_jax.metrics import statistics
from ddpm_jax.metrics.features.base import Extractor
from ddpm_jax.metrics.statistics import Statistics
from ddpm_jax.sampling.partial import key_of

NUM_KEPT = 50_000  # features kept of a reference, for KID, precision and recall


def from_split(dataset: Dataset, split: str, num: int | None = None) -> ImageSet:
    """Real images, neither mirrored nor shuffled.

    Args:
      dataset: which.
      split: which part, such as "train" or "test".
      num: how many, evenly spread; None for all.

    Raises:
      ConfigError: see `Dataset.open`.
    """
    source = in_memory(dataset.open(split))
    names = {"data": dataset.origin, "split": split}
    return image_sets.from_source(f"data:{split}", source, num, **names)


def find(
    name: str, dataset: Dataset | None, extractor: Extractor, batch_size: int
) -> Statistics:
    """Returns the statistics of a file, or of a split of a data set.

    Args:
      name: of a split, or of a file, which ends in .npz.
      dataset: whose split.
      extractor: the feature network.
      batch_size: images at a time, on each device.

    Raises:
      ConfigError: if there is no such split, or no data set.
      OSError: see `statistics.load`.
    """
    if name.endswith(".npz"):
        return statistics.load(Path(name))
    if dataset is None:
        raise ConfigError(
            "what are these images to be compared with? Give --reference FILE.npz, or "
            "--config FILE.py to say of which data"
        )
    return statistics_of(from_split(dataset, name), extractor, batch_size)


def statistics_of(
    subject: ImageSet, extractor: Extractor, batch_size: int, num_kept: int = NUM_KEPT
) -> Statistics:
    """Returns the statistics of images, from the cache if they were made before."""
    protocol = image_sets.protocol(subject, extractor)
    num_kept = min(num_kept, subject.num)
    key = key_of({**protocol, "num_kept": num_kept})
    path = places.cache_dir() / "references" / f"{key}.npz"
    if multihost.all_agree(path.is_file()):
        return statistics.load(path)
    try:
        made = image_sets.measure(subject, extractor, batch_size, num_kept)
    except ValueError as error:
        raise ConfigError(f"features of {subject.name}: {error}") from error
    made = made._replace(logits=None)  # of no use in a reference
    if jax.process_index() == 0:
        statistics.save(path, made)
    return made
