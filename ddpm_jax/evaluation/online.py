"""Scores while training, by which the best checkpoint is kept."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ddpm_jax.errors import ConfigError, unknown
from ddpm_jax.evaluation import extractors, image_sets, measures, references
from ddpm_jax.experiment.model import Model
from ddpm_jax.experiment.sections import attempt, call
from ddpm_jax.metrics.by_name import METRICS, Value, check
from ddpm_jax.sampling.draw import sample_labels

# How a score counts: the larger, the better, after this factor.
SIGNS = {"fid": -1, "sfid": -1, "kid": -1, "fd": -1, "is": 1, "accuracy": 1}


class Options(NamedTuple):
    """The section `evaluation` of a config.

    Attributes:
      every: steps between scores, 0 for none.
      metric: "fid", "sfid", "kid", "fd", "is" or "accuracy".
      num: how many samples are scored.
      batch_size: samples at a time, on each device.
      inception: the file of the Inception network's weights, or None for those in the
        cache.
      convention: how images come to its size (see `metrics.features.resize`).
    """

    every: int = 0
    metric: str = "fd"
    num: int = 2048
    batch_size: int = 256
    inception: str | None = None
    convention: str = "tf"


def options_of(config: dict[str, Any]) -> Options:
    """Reads the section `evaluation`.

    Raises:
      ConfigError: for a key that does not exist, or a value that makes no sense.
    """
    options = call(config.get("evaluation", {}), "evaluation", Options)
    if options.metric not in SIGNS:
        raise ConfigError(
            f"config.evaluation: {unknown('metric', options.metric, SIGNS)}"
        )
    for name, least in (("every", 0), ("num", 2), ("batch_size", 1)):
        if getattr(options, name) < least:
            raise ConfigError(f"config.evaluation.{name} must be {least} or more")
    return options


def make_scorer(
    config: dict[str, Any], model: Model, options: Options
) -> Callable[[Any], Value]:
    """Makes the function from parameters to their score, with the config's sampler.

    The feature network and the reference, the training images, are made or found here.

    Raises:
      ConfigError: if the images cannot be scored by this metric.
    """
    network = measures.network_of([options.metric], None)
    try:
        extractor = extractors.open_extractor(
            network, config, options.inception, options.convention
        )
    except OSError as error:  # which says what to do in the words of `evaluate`
        text = str(error).replace("--inception FILE", "config.evaluation.inception")
        text = text.replace("--metrics fd", "config.evaluation.metric=fd")
        raise ConfigError(text) from error
    reference = None
    if METRICS[options.metric].reads:
        size = options.batch_size
        reference = references.find("train", config, extractor, size)
    metric = METRICS[options.metric]
    labels = sample_labels(model.num_classes, options.num)
    protocol = {"features": extractor.protocol, "image_shape": [*model.image_shape]}
    attempt("evaluation", check, metric, protocol, labels, reference)

    def score(params) -> Value:
        subject = image_sets.from_model(
            "scoring", model, params, options.num, labels=labels
        )
        try:
            generated = image_sets.measure(subject, extractor, options.batch_size)
            return metric.score(generated, reference, labels)[0]
        except ValueError as error:  # features that are not finite
            raise ConfigError(f"{options.metric}: {error}") from error

    return score


def records(metric: str, value: Value) -> dict[str, float] | None:
    """Returns what a checkpoint keeps of a score; None where it is not finite."""
    if not math.isfinite(value.value):
        return None
    return {metric: value.value, "rank": SIGNS[metric] * value.value}
