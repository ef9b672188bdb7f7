"""What is scored: rows of a sampler and its steps, and real images under a model."""

import itertools
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
WEIGHTS, GUIDANCE = "weights", "guidance_scale"  # what a sweep may also vary


class Row(NamedTuple):
    """A set of images to score.

    Attributes:
      name: as the table calls it, "ddim:50" or "data:test".
      model: what draws them; None for real images of a split.
    """

    name: str
    model: Model | None


def values(sweep: Sequence[str], name: str) -> list[str]:
    """Returns the values that a sweep gives for a name, as in "weights:ema,0.1"."""
    texts = [text.removeprefix(f"{name}:") for text in sweep if _name(text) == name]
    return [value for text in texts for value in text.split(",")]


def rows(
    trained: Trained, sweep: Sequence[str], options: SampleOptions
) -> Iterator[Row]:
    """Yields the rows of a sweep; only the sampler is made anew for each.

    Args:
      trained: the model.
      sweep: as in "ddim:10,20", "dpmpp_2m@karras:15" or "data:test", and
        "guidance_scale:1,1.5" for each of these; where there is no sampler, the model
        is one row. "weights:ema,0.1" is for those who open the model.
      options: how to draw, but for what the sweep says.

    Raises:
      ConfigError: for a sampler, a number of steps or a scale that does not fit the
        model.
    """
    drawn = [text for text in sweep if _name(text) not in ("data", WEIGHTS, GUIDANCE)]
    choices = [each for text in drawn for each in _samplers(text, options)]
    scales, weights = values(sweep, GUIDANCE), values(sweep, WEIGHTS)
    if scales or weights or not sweep:
        choices = choices or [(None, None, options)]
    model = None
    for (name, steps, one), scale in itertools.product(choices, scales or [None]):
        if scale is not None:
            one = one._replace(guidance_scale=_scale(scale))
        model = trained.model(one, like=model)
        called = [name or model.protocol()["sampler"]["name"]]
        if scale is not None:
            called.append(f"guidance {scale}")
        if weights:
            called.append(trained.origin["weights"])
        yield Row(f"{', '.join(called)}:{steps or len(model.timesteps) - 1}", model)
    yield from (Row(text, None) for text in sweep if _name(text) == "data")


def _name(text):
    """What a part of a sweep is of: all before its last colon."""
    return text.rpartition(":")[0]


def _samplers(text, options):
    """Yields (sampler and spacing, steps, options) for each number of steps."""
    name, _, parts = text.rpartition(":")
    sampler, _, spacing = name.partition("@")
    for steps in parts.split(","):
        if not (sampler and steps.isdigit()) or name.endswith("@"):
            raise ConfigError(f"--sweep {text}: give NAME:STEPS, as in ddim:10,20")
        spaced = options._replace(timesteps=spacing or options.timesteps)
        yield name, steps, spaced._replace(sampler=sampler, num_steps=int(steps))


def _scale(text):
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(
            f"--sweep {GUIDANCE}: {text!r} is no number, as in {GUIDANCE}:1,1.5,2"
        ) from error


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
    held_out: str | None = None,
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
      held_out: the path of images kept from training, None for the split "test".

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
        given = dataset, extractor, batch_size, folder, held_out
        wanted.append(memorisation.measure_of(*given))
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
