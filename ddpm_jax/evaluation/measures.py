"""Scores of sets of images by their features."""

from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import image_sets
from ddpm_jax.evaluation.image_sets import ImageSet
from ddpm_jax.evaluation.report import Score
from ddpm_jax.evaluation.results import Results
from ddpm_jax.metrics.by_name import METRICS, Value, check
from ddpm_jax.metrics.features.base import Extractor, Outputs
from ddpm_jax.metrics.statistics import Statistics


class Measure(NamedTuple):
    """What to compute of a set of images.

    Attributes:
      names: of the numbers.
      check: (subject, its protocol) -> warnings that the numbers carry; ValueError if
        they cannot be computed, before any image is drawn.
      compute: (subject, its statistics) -> the numbers; ValueError if they cannot be.
      protocol: what they depend on beside the images and the feature network.
    """

    names: tuple[str, ...]
    check: Callable[[ImageSet, dict[str, Any]], tuple[str, ...]]
    compute: Callable[[ImageSet, Statistics], Iterable[Value]]
    protocol: dict[str, Any]


def network_of(metrics: Collection[str], given: str | None) -> str:
    """Returns the feature network of metrics: the one given, or that they ask for.

    Raises:
      ConfigError: if a metric is of another network.
    """
    wanted = {name: METRICS[name].network for name in metrics if METRICS[name].network}
    chosen = given or next(iter(wanted.values()), "classifier")
    for name, network in wanted.items():
        if network != chosen:
            raise ConfigError(
                f"{name} is of the features {network!r}, not of {chosen!r}: give "
                f"--features {network}, or evaluate it by itself"
            )
    if chosen == "inception" and "fd" in metrics:
        raise ConfigError(
            "the Frechet distance of Inception features is called fid, that of others "
            "fd: ask for one of them at a time"
        )
    return chosen


def measure_of(name: str, reference: Statistics | None) -> Measure:
    """Returns how a metric is computed, against a reference where it compares."""
    metric = METRICS[name]

    def check_ahead(subject, protocol):
        return check(metric, protocol, subject.labels, reference)

    def compute(subject, generated):
        return metric.score(generated, reference, subject.labels)

    protocol = {"reference": reference.protocol} if metric.reads else {}
    return Measure(metric.names, check_ahead, compute, protocol)


def score(
    subject: ImageSet,
    extractor: Extractor,
    measures: Iterable[Measure],
    results: Results,
    batch_size: int,
) -> list[Score]:
    """Draws a set of images and scores it; what the results knows is not done again.

    Raises:
      ConfigError: if something cannot be computed of these images.
    """
    done, todo = [], []
    images = image_sets.protocol(subject, extractor)
    for measure in measures:
        known = results.known(subject.name, measure.names, images | measure.protocol)
        done += known or []
        todo += [] if known else [measure]
    if not todo:
        return done
    warnings = [_attempt(subject, measure, measure.check, images) for measure in todo]
    partial = results.partial({**images, "batch_size": batch_size}, Outputs)
    try:
        generated = image_sets.measure(subject, extractor, batch_size, cache=partial)
    except ValueError as error:
        raise ConfigError(f"features of {subject.name}: {error}") from error
    scores = []
    for measure, common in zip(todo, warnings, strict=True):
        values = _attempt(subject, measure, measure.compute, generated)
        scores += _scores(subject, measure, generated.protocol, values, common)
    results.add(scores)
    partial.clear()
    return done + scores


def _attempt(subject, measure, function, given):
    try:
        return function(subject, given)
    except ValueError as error:
        names = ", ".join(measure.names)
        raise ConfigError(f"{names} of {subject.name}: {error}") from error


def _scores(subject, measure, protocol, values, warnings):
    protocol = protocol | measure.protocol
    calls = subject.protocol.get("network_calls")
    if calls is not None:
        protocol["network_calls"] = calls
    return [
        Score(
            subject.name,
            name,
            value.value,
            value.error,
            (*warnings, *value.warnings),
            protocol,
        )
        for name, value in zip(measure.names, values, strict=True)
    ]
