"""Guidance along the gradient of a classifier."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ddpm_jax.diffusion.denoisers import Denoiser
from ddpm_jax.diffusion.process import Prediction
from ddpm_jax.diffusion.schedules import Schedule, alpha_sigma


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
