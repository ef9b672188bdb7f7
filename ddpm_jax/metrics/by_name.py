"""The scores of a set of images by their features, each number with its warnings.

`METRICS` names them as the command line does. FID, sFID and IS are of the Inception
network by definition; of any other features the Fréchet distance is called `fd`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.metrics import kernel, precision_recall
from ddpm_jax.metrics.frechet import frechet_distance
from ddpm_jax.metrics.statistics import Statistics

# Below this the bias of the Fréchet distance is larger than what models differ by.
FEW = 2048


class Value(NamedTuple):
    """A number.

    Attributes:
      value: the number.
      error: its standard deviation over splits or subsets, where there are any.
      warnings: what keeps it from being compared with published ones.
    """

    value: float
    error: float | None = None
    warnings: tuple[str, ...] = ()


class Metric(NamedTuple):
    """How a set of images is scored.

    Attributes:
      score: (generated, reference, labels or None) -> values, by `names`.
      names: of the values.
      reads: what it reads of the reference, an attribute of `Statistics`; None if it
        compares with nothing.
      network: the feature network that it is defined by, or None for any.
      of_classes: whether it needs the classes of images.
    """

    score: Callable[..., tuple[Value, ...]]
    names: tuple[str, ...]
    reads: str | None
    network: str | None = None
    of_classes: bool = False


def check(
    metric: Metric,
    protocol: dict[str, Any],
    labels: np.ndarray | None,
    reference: Statistics | None,
) -> tuple[str, ...]:
    """Refuses, before any image is drawn, what a metric cannot be computed of.

    Args:
      metric: the metric.
      protocol: of the images (see `Statistics`).
      labels: their classes, or None.
      reference: what they are compared with, if they are.

    Returns:
      Warnings that the numbers carry.

    Raises:
      ValueError: if the reference is of another network, preprocessing or image size,
        or has not what is needed, and for images without classes.
    """
    if metric.of_classes and labels is None:
        raise ValueError("these images have no classes asked for")
    if metric.reads is None:
        return ()
    if getattr(reference, metric.reads) is None:
        raise ValueError(
            f"the reference holds no {metric.reads} part: make one with python -m "
            "ddpm_jax.reference"
        )
    if not reference.protocol:
        return ("the reference does not say which images, size and preprocessing of",)
    for key in ("features", "image_shape"):
        here, there = protocol[key], reference.protocol[key]
        if here != there:
            raise ValueError(
                f"the reference has {key} {_words(there)}, these images have "
                f"{_words(here)}: make another with python -m ddpm_jax.reference"
            )
    return ()


def _distance(part):
    def score(generated, reference, labels):
        ours, theirs = getattr(generated, part), getattr(reference, part)
        value = frechet_distance(ours, theirs)
        return (Value(value, None, _few(generated, reference, len(ours.mean))),)

    return score


def _inception_score(generated, reference, labels):
    few = _few(generated, None, 0)
    return (Value(*kernel.inception_score(generated.logits), few),)


def _kernel_distance(generated, reference, labels):
    ours, theirs = generated.features, reference.features
    size = min(1000, len(ours), len(theirs))
    warnings = (f"subsets of {size}, not of 1000",) if size < 1000 else ()
    value, error = kernel.kernel_distance(ours, theirs, subset_size=size)
    return (Value(value, error, warnings),)


def _precision_recall(generated, reference, labels):
    return _manifolds(precision_recall.precision_recall, generated, reference)


def _density_coverage(generated, reference, labels):
    return _manifolds(precision_recall.density_coverage, generated, reference)


def _accuracy(generated, reference, labels):
    num, num_classes = generated.logits.shape
    if np.max(labels) >= num_classes:
        raise ValueError(f"labels must be below {num_classes}, got {np.max(labels)}")
    right = np.sum(np.argmax(generated.logits, axis=1) == labels)
    # Two more right and two more wrong keep it from being 0 (Agresti & Coull 1998).
    rate = (right + 2) / (num + 4)
    error = np.sqrt(rate * (1 - rate) / (num + 4))
    return (Value(float(right / num), float(error)),)


METRICS = {
    "fid": Metric(_distance("gaussian"), ("fid",), "gaussian", "inception"),
    "sfid": Metric(_distance("spatial"), ("sfid",), "spatial", "inception"),
    "is": Metric(_inception_score, ("is",), None, "inception"),
    "kid": Metric(_kernel_distance, ("kid",), "features"),
    "pr": Metric(_precision_recall, ("precision", "recall"), "features"),
    "dc": Metric(_density_coverage, ("density", "coverage"), "features"),
    "fd": Metric(_distance("gaussian"), ("fd",), "gaussian"),
    "accuracy": Metric(_accuracy, ("accuracy",), None, "classifier", of_classes=True),
}

# Those of one number by which models can be ranked: the larger, the better, after this
# factor.
SIGNS = {"fid": -1, "sfid": -1, "kid": -1, "fd": -1, "is": 1, "accuracy": 1}


def _few(generated, reference, dim):
    """Warnings of the numbers of images; a reference may not know its own."""
    warnings = []
    for name, statistics in (("samples", generated), ("reference images", reference)):
        num = None if statistics is None else statistics.num
        if num is None:
            continue
        if num <= dim:
            warnings.append(f"{num} {name} for {dim} features: a singular covariance")
        elif num < FEW:
            warnings.append(f"{num} {name}, fewer than {FEW}: biased")
    return tuple(warnings)


def _manifolds(compare, generated, reference):
    ours, theirs = generated.features, reference.features
    numbers = f"{len(ours)} samples, {len(theirs)} reference images"
    warnings = () if len(ours) == len(theirs) else (numbers,)
    warnings += _few(generated, None, 0)
    return tuple(Value(value, None, warnings) for value in compare(ours, theirs))


def _words(value):
    if isinstance(value, dict):
        return ", ".join(f"{k} {str(v)[:12]}" for k, v in value.items())
    return "x".join(map(str, value))
