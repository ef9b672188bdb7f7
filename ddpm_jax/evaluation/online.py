"""Beside training's steps: pictures, and scores by which checkpoints are kept."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpm_jax.data import images
from ddpm_jax.distributed import devices, multihost
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import extractors, image_sets, measures, references
from ddpm_jax.experiment.build import Experiment
from ddpm_jax.experiment.sections import attempt
from ddpm_jax.metrics.by_name import METRICS, SIGNS, Value, check
from ddpm_jax.sampling.draw import sample_keys, sample_labels
from ddpm_jax.training.journal import Journal
from ddpm_jax.training.loop import Callback


def make_scorer(experiment: Experiment) -> Callable[[Any], Value]:
    """Makes the function from parameters to their score, with the config's sampler.

    The feature network and the reference, the training images, are made or found here.

    Raises:
      ConfigError: if the images cannot be scored by this metric.
    """
    model, options = experiment.model, experiment.scoring
    dataset, size = experiment.dataset, options.batch_size
    network = measures.network_of([options.metric], None)
    try:
        extractor = extractors.open_extractor(
            network, dataset, options.inception, options.convention
        )
    except OSError as error:  # which says what to do in the words of `evaluate`
        text = str(error).replace("--inception FILE", "config.evaluation.inception")
        text = text.replace("--metrics fd", "config.evaluation.metric=fd")
        raise ConfigError(text) from error
    metric, reference = METRICS[options.metric], None
    if metric.reads:
        reference = references.find("train", dataset, extractor, size)
    labels = sample_labels(model.num_classes, options.num)
    protocol = {"features": extractor.protocol, "image_shape": [*model.image_shape]}
    attempt("evaluation", check, metric, protocol, labels, reference)

    def score(params) -> Value:
        drawn = image_sets.from_model(
            "scoring", model, params, options.num, labels=labels
        )
        try:
            generated = image_sets.measure(drawn, extractor, size)
            return metric.score(generated, reference, labels)[0]
        except ValueError as error:  # features that are not finite
            raise ConfigError(f"{options.metric}: {error}") from error

    return score


def scores(
    experiment: Experiment, score: Callable[[Any], Value], journal: Journal
) -> Callback:
    """Makes what scores the averaged parameters, and records the score.

    Args:
      experiment: whose section `evaluation` says how often.
      score: of `make_scorer`.
      journal: where it is recorded.
    """
    metric = experiment.scoring.metric

    @functools.cache
    def warn_once(text):
        journal.line(text)

    def call(step, state):
        value = score(state.ema_params)
        journal.metrics(step, {metric: value.value})
        for warning in value.warnings:
            warn_once(f"{metric} of {warning}")
        return records(metric, value)

    return Callback("score", experiment.scoring.every, call, of_checkpoint=True)


def records(metric: str, value: Value) -> dict[str, float] | None:
    """Returns what a checkpoint keeps of a score; None where it is not finite."""
    if not math.isfinite(value.value):
        return None
    return {metric: value.value, "rank": SIGNS[metric] * value.value}


def pictures(experiment: Experiment, workdir: Path, journal: Journal) -> Callback:
    """Makes what draws samples of the averaged parameters into a grid.

    Args:
      experiment: whose section `train` says how many, and how often.
      workdir: the folder of the run.
      journal: where the grid is recorded, too.
    """
    model, num = experiment.model, experiment.training.num_samples
    draw = devices.parallel_map(model.picture_fn, num)

    def call(step, state):
        keys, labels = sample_keys(0, num), sample_labels(model.num_classes, num)
        picture = images.grid(draw(state.ema_params, keys, labels))
        path = workdir / "samples" / f"step_{step:08}.png"
        multihost.on_primary(lambda: images.save_png(path, picture))
        journal.picture(step, "samples", picture)

    return Callback("picture", experiment.training.sample_every, call)
