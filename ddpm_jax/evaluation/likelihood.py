"""Bits per dimension of images under a model."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.data import images
from ddpm_jax.diffusion import bound, denoisers, likelihood, timesteps
from ddpm_jax.distributed import devices
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation.image_sets import ImageSet
from ddpm_jax.evaluation.report import Score
from ddpm_jax.evaluation.results import Results
from ddpm_jax.experiment.model import Model
from ddpm_jax.metrics.features.base import fingerprint
from ddpm_jax.sampling.draw import sample_keys


class LikelihoodEstimator(NamedTuple):
    """How images are scored by a likelihood.

    Attributes:
      name: of the numbers.
      fn: (params, keys, images in [-1, 1], labels or None) -> results, traced.
      kind: the type of these results, a NamedTuple.
      summarise: results -> (bits per dimension of each image, what else to tell).
      protocol: what the numbers depend on.
    """

    name: str
    fn: Callable
    kind: type
    summarise: Callable[..., tuple[np.ndarray, dict[str, float]]]
    protocol: dict[str, Any]


def bpd(model: Model, variance: str) -> LikelihoodEstimator:
    """The variational bound over all T steps, with clipped predictions.

    Args:
      model: the model.
      variance: of its reverse steps, one of `variances.NAMES`.

    Raises:
      ValueError: if there is no such variance.
    """
    num_steps = model.schedule.num_steps
    bound_fn = bound.make_bound(
        model.network.apply,
        model.schedule,
        timesteps.trailing(model.schedule, num_steps),
        model.predicts,
        variance,
        lambda denoiser: denoisers.clip(denoiser, model.schedule),
    )

    def summarise(scored):
        decoder = np.mean(np.asarray(scored.steps[:, -1], np.float64))
        parts = {"prior": float(np.mean(scored.prior)), "decoder": float(decoder)}
        return scored.total(), parts

    protocol = {"variance": variance, "clip": True, "num_steps": num_steps}
    return LikelihoodEstimator("bpd", bound_fn, bound.Bound, summarise, protocol)


def ode_bpd(model: Model, tolerance: float) -> LikelihoodEstimator:
    """The likelihood by the probability-flow ODE, of dequantised images.

    Args:
      model: the model.
      tolerance: of the solver, relative and absolute.
    """
    likelihood_fn = likelihood.make_likelihood(
        model.network.apply,
        model.schedule,
        model.predicts,
        rtol=tolerance,
        atol=tolerance,
    )

    def dequantized(params, keys, pictures, labels):
        spread, probes = jax.vmap(jax.random.split, out_axes=1)(keys)
        x = likelihood.dequantize(spread, pictures)
        return likelihood_fn(params, probes, x, labels)

    def summarise(scored):
        bits = likelihood.bits_per_dimension(scored.log_density, model.image_shape)
        return bits, {"solver_steps": float(np.mean(scored.num_steps))}

    protocol = {"tolerance": tolerance, "dequantisation": "uniform"}
    return LikelihoodEstimator(
        "ode_bpd", dequantized, likelihood.Likelihood, summarise, protocol
    )


def score(
    estimator: LikelihoodEstimator,
    model: Model,
    params,
    /,
    data: ImageSet,
    seed: int,
    results: Results,
    batch_size: int,
    **protocol,
) -> Score:
    """Scores real images under a model; what the results knows is not done again.

    Args:
      estimator: how.
      model: the model.
      params: of its network.
      data: the images, and their labels if the model is conditional.
      seed: of the noise.
      results: where scores are kept.
      batch_size: images at a time, on each device.
      **protocol: what else the number depends on.

    Raises:
      ConfigError: if the images do not fit the model.
    """
    if model.num_classes and data.labels is None:
        raise ConfigError(
            f"{estimator.name}: the model has classes, {data.name} has none"
        )
    protocol |= estimator.protocol
    protocol |= {"params": fingerprint(params), "seed": seed, "images": data.protocol}
    protocol |= {"split": data.name, "num": data.num}
    known = results.known("likelihood", [estimator.name], protocol)
    if known is not None:
        return known[0]
    partial = results.partial(
        {"of": estimator.name, **protocol, "batch_size": batch_size}, estimator.kind
    )
    pictures = data.draw(np.arange(data.num))
    labels = data.labels if model.num_classes else None
    keys = sample_keys(seed, data.num)

    def fn(params, keys, pictures, labels):
        return estimator.fn(params, keys, images.to_float(pictures), labels)

    mapped = devices.parallel_map(fn, batch_size, estimator.name, cache=partial)
    try:
        bits, parts = estimator.summarise(mapped(params, keys, pictures, labels))
    except ValueError as error:
        raise ConfigError(f"{estimator.name}: {error}") from error
    mean, error = np.mean(bits), np.std(bits, ddof=1) / np.sqrt(len(bits))
    found = Score(
        "likelihood", estimator.name, float(mean), float(error), (), protocol | parts
    )
    results.add([found])
    partial.clear()
    return found
