"""Guidance: denoisers that are pulled towards a condition, made of other denoisers.

Every method moves a prediction away from a weaker one, or along a gradient:

    weak + scale (strong - weak)           classifier-free, autoguidance
    score + scale ∇ log p(y | x_t)         classifier guidance

In the first, the scale counts as in most code: 0 is the weak prediction alone, 1 the
strong one, more pushes further (the weight w of Ho & Salimans is scale - 1).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ddpm_jax.diffusion.denoisers import Denoiser
from ddpm_jax.diffusion.process import Prediction, from_x_0
from ddpm_jax.diffusion.schedules import Schedule, alpha_sigma, log_snr


def guide(denoiser: Denoiser, scale, null) -> Denoiser:
    """Classifier-free guidance: null + scale (cond - null) (Ho & Salimans 2022).

    At a Python 0 or 1 the network is called once, otherwise on pairs c0 n0 c1 n1 ...,
    which keep a sharded batch in its place. A learned variance is the condition's.

    Args:
      denoiser: a denoiser trained with conditions dropped at random.
      scale: guidance scale, a float or a traced scalar.
      null: the condition that means none, without a batch axis (a class label: the
        number of classes).
    """

    def guided(x_t, t, cond):
        if isinstance(scale, (int, float)) and scale in (0, 1):
            return denoiser(x_t, t, cond if scale == 1 else _none(cond, null))
        weak, strong = _pair(denoiser, x_t, t, cond, null)
        return _extrapolate(weak, strong, scale)

    return guided


def guide_rescaled(
    denoiser: Denoiser, schedule: Schedule, scale, null, strength: float = 0.7
) -> Denoiser:
    """Classifier-free guidance without its added contrast (Lin et al. 2024, 3.4).

    The guided x_0 of each image is scaled towards the standard deviation of the
    conditional one. Lin et al. scale what the network predicts, which may be another
    thing than x_0.

    Args:
      denoiser: a denoiser trained with conditions dropped at random.
      schedule: the noise schedule.
      scale: guidance scale, a float or a traced scalar.
      null: the condition that means none, as in `guide`.
      strength: φ of Eq. 16, from 0 for `guide` to 1 for the same deviation.
    """

    def guided(x_t, t, cond):
        if isinstance(scale, (int, float)) and scale == 1:
            return denoiser(x_t, t, cond)
        weak, strong = _pair(denoiser, x_t, t, cond, null)
        prediction = _extrapolate(weak, strong, scale)
        axes = tuple(range(1, x_t.ndim))

        def deviation(p):
            variance = jnp.var(p.x_0, axis=axes, keepdims=True)
            return jnp.sqrt(variance + 1e-12)  # an even picture has none

        ratio = deviation(strong) / deviation(prediction)
        x_0 = (1 + strength * (ratio - 1)) * prediction.x_0
        eps = from_x_0(schedule, x_t, t, x_0).eps
        return Prediction(x_0, eps, prediction.fraction)

    return guided


def autoguide(denoiser: Denoiser, weaker: Denoiser, scale) -> Denoiser:
    """Guidance by a weaker version of the same model (Karras et al. 2024).

    Args:
      denoiser: the model.
      weaker: one of the same data, trained for less long or smaller.
      scale: guidance scale; at a Python 1 the weaker model is not called.
    """

    def guided(x_t, t, cond=None):
        strong = denoiser(x_t, t, cond)
        if isinstance(scale, (int, float)) and scale == 1:
            return strong
        return _extrapolate(weaker(x_t, t, cond), strong, scale)

    return guided


def classifier_guide(
    denoiser: Denoiser,
    schedule: Schedule,
    log_prob: Callable[..., Array],
    scale=1.0,
) -> Denoiser:
    """Classifier guidance (Dhariwal & Nichol 2021, Algorithm 2).

    Args:
      denoiser: the denoiser, with or without a condition of its own.
      schedule: the noise schedule.
      log_prob: (x_t, t, cond) -> log p(cond | x_t) for each image, [batch].
      scale: of the gradient.
    """

    def guided(x_t, t, cond=None):
        prediction = denoiser(x_t, t, cond)
        pull = jax.grad(lambda x: jnp.sum(log_prob(x, t, cond)))(x_t)
        return shift(schedule, prediction, t, scale * pull)

    return guided


def shift(schedule: Schedule, prediction: Prediction, t, gradient: Array) -> Prediction:
    """Adds a gradient of log-probability to the score that a prediction stands for.

    The score is -eps / sigma_t, and x_0 = (x_t + sigma_t^2 score) / alpha_t. Where
    alpha_t = 0 all of x_t is noise and says nothing of y: there nothing is added.
    """
    alpha, sigma = (
        jnp.reshape(c, jnp.shape(c) + (1,) * (gradient.ndim - jnp.ndim(c)))
        for c in alpha_sigma(schedule, t)
    )
    gradient = jnp.where(alpha > 0, gradient, 0.0)
    return Prediction(
        prediction.x_0 + sigma**2 / jnp.where(alpha > 0, alpha, 1.0) * gradient,
        prediction.eps - sigma * gradient,
        prediction.fraction,
    )


def within(
    guided: Denoiser,
    otherwise: Denoiser,
    schedule: Schedule,
    low: float,
    high: float,
) -> Denoiser:
    """Guidance in a limited interval of noise levels (Kynkäänniemi et al. 2024).

    Outside, only `otherwise` is called, so a step there costs no second network call.
    One branch runs for all images: t is one time, as samplers ask.

    Args:
      guided: the denoiser inside the interval.
      otherwise: the denoiser outside.
      schedule: the noise schedule.
      low: least noise level sigma / alpha of the interval, exclusive.
      high: greatest, inclusive.

    Raises:
      ValueError: for an empty interval.
    """
    if not 0 <= low < high:
        raise ValueError(f"the interval must have 0 <= low < high, got {low}, {high}")

    def denoiser(x_t, t, cond=None):
        level = jnp.exp(-log_snr(schedule, t) / 2)
        inside = (low < level) & (level <= high)
        return jax.lax.cond(inside, guided, otherwise, x_t, t, cond)

    return denoiser


def _none(cond, null):
    if cond is None:
        raise ValueError("guidance needs a condition for each image, such as a class")
    return jnp.broadcast_to(jnp.asarray(null, cond.dtype), cond.shape)


def _pair(denoiser, x_t, t, cond, null) -> tuple[Prediction, Prediction]:
    """The unconditional and the conditional prediction, of one network call."""
    times = jnp.broadcast_to(t, x_t.shape[:1])
    given = (x_t, x_t), (times, times), (cond, _none(cond, null))
    both = denoiser(*(_interleave(*pair) for pair in given))
    strong, weak = (jax.tree.map(lambda p, i=i: p[i::2], both) for i in (0, 1))
    return weak, strong


def _extrapolate(weak: Prediction, strong: Prediction, scale) -> Prediction:
    x_0, eps = (w + scale * (s - w) for w, s in zip(weak[:2], strong[:2], strict=True))
    return Prediction(x_0, eps, strong.fraction)


def _interleave(a: Array | np.ndarray, b: Array | np.ndarray) -> Array:
    """[a0, b0, a1, b1, ...] along the first axis."""
    return jnp.stack([a, b], axis=1).reshape(2 * a.shape[0], *a.shape[1:])


GUIDANCE = {"cfg": guide}
