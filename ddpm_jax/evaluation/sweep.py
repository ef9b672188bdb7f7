"""What is scored: rows of a sampler and its steps, and real images under a model."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import (
    image_sets,
    likelihood,
    measures,
    memorisation,
    references,
)
from ddpm_jax.evaluation.image_sets import ImageSet
from ddpm_jax.evaluation.report import Score
from ddpm_jax.evaluation.results import Results
from ddpm_jax.experiment.dataset import Dataset
from ddpm_jax.experiment.load import Trained
from ddpm_jax.experiment.model import Model
from ddpm_jax.experiment.options import SampleOptions
from ddpm_jax.experiment.sections import attempt
from ddpm_jax.metrics.by_name import METRICS
from ddpm_jax.metrics.features.base import Extractor, fingerprint

LIKELIHOODS = ("bpd", "ode_bpd")
NAMES = (*METRICS, "memorisation", *LIKELIHOODS)


class Row(NamedTuple):
    """A set of images to score.

    Attributes:
      name: as the table calls it, "ddim:50" or "data:test".
      model: what draws them; None for real images of a split.
    """

    name: str
    model: Model | None


def rows(
    trained: Trained, sweep: Sequence[str], options: SampleOptions
) -> Iterator[Row]:
    """Yields the rows of a sweep; only the sampler is made anew for each.

    Args:
      trained: the model.
      sweep: as in "ddim:10,20", "dpmpp_2m@karras:15" or "data:test"; where there is
        none, the model is one row.
      options: how to draw, but for what the sweep says.

    Raises:
      ConfigError: for a sampler or a number of steps that does not fit the model.
    """
    if not sweep:
        model = trained.model(options)
        name, steps = model.protocol()["sampler"]["name"], len(model.timesteps) - 1
        yield Row(f"{name}:{steps}", model)
    model = None
    for text in sweep:
        name, _, parts = text.rpartition(":")
        if name == "data":
            yield Row(text, None)
            continue
        sampler, _, spacing = name.partition("@")
        for steps in parts.split(","):
            if not (sampler and steps.isdigit()) or name.endswith("@"):
                raise ConfigError(f"--sweep {text}: give NAME:STEPS, as in ddim:10,20")
            one = options._replace(
                sampler=sampler,
                num_steps=int(steps),
                timesteps=spacing or options.timesteps,
            )
            model = trained.model(one, like=model)
            yield Row(f"{name}:{steps}", model)


def images_of(
    row: Row,
    trained: Trained,
    params,
    num: int,
    seed: int,
    labels: np.ndarray | None,
    classes: str,
) -> ImageSet:
    """Returns what a row draws.

    Args:
      row: of `rows`.
      trained: the model.
      params: of its network.
      num: how many images.
      seed: of their noise.
      labels: their classes [num], or None for a model without.
      classes: these, in words, for the protocol.
    """
    model = row.model
    given = model.protocol() | {"params": fingerprint(params)}
    if model.num_classes:
        given["classes"] = classes
    return image_sets.from_model(
        row.name, model, params, num, seed, labels, model=trained.origin, **given
    )


def score_samples(
    metrics: Sequence[str],
    sets: Sequence[ImageSet],
    extractor: Extractor,
    dataset: Dataset | None,
    results: Results,
    batch_size: int,
    reference: str,
) -> list[Score]:
    """Scores sets of images by their features.

    Args:
      metrics: their names.
      sets: the images.
      extractor: the feature network.
      dataset: what they are compared with.
      results: what is known already, and where scores go.
      batch_size: images at a time, on each device.
      reference: a split of the data set, or a file.

    Raises:
      ConfigError: if something cannot be computed of these images.
      OSError: if the reference cannot be read.
    """
    known = [name for name in metrics if name in METRICS]
    found = None
    if any(METRICS[name].reads for name in known):
        found = references.find(reference, dataset, extractor, batch_size)
    wanted = [measures.measure_of(name, found) for name in known]
    if "memorisation" in metrics:
        if dataset is None:
            raise ConfigError("memorisation is of a data set: give --config")
        folder = results.path.parent
        wanted.append(memorisation.measure_of(dataset, extractor, batch_size, folder))
    return [
        score
        for each in sets
        for score in measures.score(each, extractor, wanted, results, batch_size)
    ]


def score_model(
    estimator: likelihood.LikelihoodEstimator,
    trained: Trained,
    model: Model,
    params,
    split: str | None,
    num: int,
    seed: int,
    results: Results,
    batch_size: int,
) -> Score:
    """Scores real images under a model by their likelihood.

    Args:
      estimator: how.
      trained: the model, with its data.
      model: the same, built.
      params: of its network.
      split: of the data, by default "test" where there is one.
      num: how many images.
      seed: of the noise.
      results: what is known already, and where the score goes.
      batch_size: images at a time, on each device.
    """
    dataset = trained.dataset
    split = split or ("test" if dataset.has_splits else "train")
    data = references.from_split(dataset, split, num)
    sections = model.protocol()
    protocol = {name: sections[name] for name in ("schedule", "network", "loss")}
    protocol["model"] = trained.origin
    return likelihood.score(
        estimator, model, params, data, seed, results, batch_size, **protocol
    )


def estimator_of(
    name: str, model: Model, variance: str, tolerance: float
) -> likelihood.LikelihoodEstimator:
    """Returns how a likelihood is estimated.

    Args:
      name: "bpd" or "ode_bpd".
      model: the model.
      variance: of bpd.
      tolerance: of ode_bpd.

    Raises:
      ConfigError: for a variance that the model does not have.
    """
    if name == "bpd":
        return attempt(name, likelihood.bpd, model, variance)
    return likelihood.ode_bpd(model, tolerance)
