"""Denoisers: functions (x_t, t, cond) -> Prediction, and functions between them.

`from_network` makes one of a network's apply function; `clip`, `guide` and
`condition` wrap one and give another, so they compose in the order written:

    denoiser = clip(guide(from_network(apply, params, schedule), 2.0, null), schedule)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ddpm_jax.diffusion.process import Images, Prediction, from_x_0, parameterization
from ddpm_jax.diffusion.schedules import Schedule, Times

# (x_t [batch, ...], t scalar or [batch], cond=None) -> Prediction
Denoiser = Callable[..., Prediction]


def call_network(
    apply: Callable, params, x_t: Images, t: Times, cond=None, dropout_keys=None
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

    Returns:
      (output, fraction): what was predicted, in the shape of x_t, and where a learned
      variance lies between the fixed ones (see `variances`), or None where the network
      learns none.

    Raises:
      ValueError: if the output has neither the images' channels nor twice as many.
    """
    index = jnp.broadcast_to(jnp.asarray(t) - 1, x_t.shape[:1])
    output = apply(params, x_t, index, cond, dropout_keys)
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
      ValueError: see `process.parameterization`.
    """
    read = parameterization(predicts, schedule).read

    def denoiser(x_t, t, cond=None):
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
    """

    def clipped(x_t, t, cond=None):
        prediction = denoiser(x_t, t, cond)
        x_0 = jnp.clip(prediction.x_0, low, high)
        eps = from_x_0(schedule, x_t, t, x_0).eps if rederive else prediction.eps
        return Prediction(x_0, eps, prediction.fraction)

    return clipped


def guide(denoiser: Denoiser, scale, null) -> Denoiser:
    """Classifier-free guidance: null + scale (cond - null) (Ho & Salimans 2022).

    The scale counts as in most code: 0 is unconditional, 1 conditional, more pushes
    further (the paper's weight is scale - 1). At a Python 0 or 1 the network is called
    once, otherwise on pairs a0 b0 a1 b1 ..., which keep a sharded batch in its place.
    A learned variance is that of the condition.

    Args:
      denoiser: a denoiser trained with conditions dropped at random.
      scale: guidance scale, a float or a traced scalar.
      null: the condition that means none, without a batch axis (a class label: the
        number of classes).
    """

    def guided(x_t, t, cond):
        nothing = jnp.broadcast_to(jnp.asarray(null, cond.dtype), cond.shape)
        if isinstance(scale, (int, float)) and scale in (0, 1):
            return denoiser(x_t, t, cond if scale == 1 else nothing)
        pairs = _interleave(cond, nothing)
        times = jnp.broadcast_to(t, x_t.shape[:1])
        both = denoiser(_interleave(x_t, x_t), _interleave(times, times), pairs)
        x_0, eps = (p[1::2] + scale * (p[::2] - p[1::2]) for p in both[:2])
        return Prediction(x_0, eps, jax.tree.map(lambda p: p[::2], both.fraction))

    return guided


def condition(denoiser: Denoiser, cond) -> Denoiser:
    """Fixes the condition, so that samplers need not know of it."""
    return lambda x_t, t: denoiser(x_t, t, cond)


def _interleave(a: Array, b: Array) -> Array:
    """[a0, b0, a1, b1, ...] along the first axis."""
    return jnp.stack([a, b], axis=1).reshape(2 * a.shape[0], *a.shape[1:])
