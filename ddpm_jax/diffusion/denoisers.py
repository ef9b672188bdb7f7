"""Denoisers: functions (x_t, t, cond) -> Prediction, and functions between them.

`from_network` makes one of a network's apply function; `clip`, `threshold`, `condition`
and those of `guidance` wrap one and give another, so they compose in the order written:

    denoiser = clip(guide(from_network(apply, params, schedule), 2.0, null), schedule)
"""

from collections.abc import Callable

import jax.numpy as jnp

from ddpm_jax.diffusion.process import Images, Prediction, from_x_0, parameterization
from ddpm_jax.diffusion.schedules import Schedule, Times, check_times

# (x_t [batch, ...], t scalar or [batch], cond=None) -> Prediction
Denoiser = Callable[..., Prediction]


def call_network(
    apply: Callable, params, x_t: Images, t: Times, cond=None, dropout_keys=None, **more
) -> tuple[Images, Images | None]:
    """Calls a network at time t: the one place that knows what networks call time.

    Networks, ours and published ones, count one noising step as 0, hence t - 1.

    Args:
      apply: (params, x_t, index [batch], cond, dropout_keys) -> output.
      params: the network's parameters.
      x_t: noisy images, [batch, ...].
      t: times in 1 ... T, a scalar or [batch].
      cond: what the network is conditioned on, or None.
      dropout_keys: one key per example while training, None otherwise.
      **more: what else the network is told while training, such as `augmentation`.

    Returns:
      (output, fraction): what was predicted, in the shape of x_t, and where a learned
      variance lies between the fixed ones (see `variances`), or None where the network
      learns none.

    Raises:
      ValueError: if the output has neither the images' channels nor twice as many.
    """
    index = jnp.broadcast_to(jnp.asarray(t) - 1, x_t.shape[:1])
    output = apply(params, x_t, index, cond, dropout_keys, **more)
    if output.shape == x_t.shape:
        return output, None
    if output.shape != (*x_t.shape[:-1], 2 * x_t.shape[-1]):
        raise ValueError(
            f"the network's output {output.shape} fits neither images {x_t.shape} nor "
            "images and a learned variance, twice the channels"
        )
    output, between = jnp.split(output, 2, axis=-1)
    return output, (between + 1) / 2


def from_network(
    apply: Callable, params, schedule: Schedule, predicts: str = "eps"
) -> Denoiser:
    """Makes a denoiser of a network that predicts "eps", "x_0" or "v".

    Raises:
      ValueError: see `process.parameterization`; from the denoiser, for times outside
        1 ... T.
    """
    read = parameterization(predicts, schedule).read

    def denoiser(x_t, t, cond=None):
        check_times(schedule, t, first=1)
        output, fraction = call_network(apply, params, x_t, t, cond)
        return read(schedule, x_t, t, output)._replace(fraction=fraction)

    return denoiser


def clip(
    denoiser: Denoiser,
    schedule: Schedule,
    low: float = -1.0,
    high: float = 1.0,
    rederive: bool = True,
) -> Denoiser:
    """Clips the predicted x_0 to the range of images.

    Args:
      denoiser: the denoiser to wrap.
      schedule: the noise schedule.
      low: smallest value of a clean image.
      high: largest value of a clean image.
      rederive: whether eps follows the clipped x_0, as in the posterior mean of Ho et
        al. (2020), or stays as predicted, as in the DDIM sampler of diffusers.

    Raises:
      ValueError: for an empty range.
    """
    if not low < high:
        raise ValueError(f"the range must have low < high, got {low}, {high}")
    return _bound(denoiser, schedule, lambda x_0: jnp.clip(x_0, low, high), rederive)


def threshold(
    denoiser: Denoiser,
    schedule: Schedule,
    percentile: float = 99.5,
    largest: float = float("inf"),
    rederive: bool = True,
) -> Denoiser:
    """Dynamic thresholding of the predicted x_0 (Saharia et al. 2022, Section 2.3).

    Each image is clipped to [-r, r] and divided by r, where r is the percentile of its
    absolute values, at least 1: under strong guidance pixels are pulled inward instead
    of saturating.

    Args:
      denoiser: the denoiser to wrap.
      schedule: the noise schedule.
      percentile: of an image's absolute values, in (0, 100].
      largest: bound of r, 1 or more.
      rederive: as in `clip`.

    Raises:
      ValueError: for a percentile or a bound outside its range.
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile must lie in (0, 100], got {percentile}")
    if not largest >= 1:
        raise ValueError(f"the bound of dynamic thresholding is {largest}, below 1")

    def bounded(x_0):
        axes = tuple(range(1, x_0.ndim))
        r = jnp.percentile(jnp.abs(x_0), percentile, axis=axes, keepdims=True)
        r = jnp.clip(r, 1.0, largest)
        return jnp.clip(x_0, -r, r) / r

    return _bound(denoiser, schedule, bounded, rederive)


def condition(denoiser: Denoiser, cond) -> Denoiser:
    """Fixes the condition, so that samplers, and what wraps it, need not know of it."""
    return lambda x_t, t, _=None: denoiser(x_t, t, cond)


def _bound(denoiser, schedule, bounded: Callable, rederive: bool) -> Denoiser:
    def wrapped(x_t, t, cond=None):
        prediction = denoiser(x_t, t, cond)
        x_0 = bounded(prediction.x_0)
        eps = from_x_0(schedule, x_t, t, x_0).eps if rederive else prediction.eps
        return Prediction(x_0, eps, prediction.fraction)

    return wrapped
