"""Gaussian images, whose exact denoiser is known, and calls counted as they run."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import samplers, schedules
from ddpm_jax.diffusion.process import Prediction

SAMPLERS = {
    "ddpm": samplers.ddpm,
    "ddim, eta 0": samplers.ddim,
    "ddim, eta 1": partial(samplers.ddim, eta=1.0),
    "dpmpp_2m": samplers.dpmpp_2m,
    "dpmpp_3m": samplers.dpmpp_3m,
    "unipc": samplers.unipc,
    "plms": samplers.plms,
    "heun": samplers.heun,
    "reverse_sde": samplers.reverse_sde,
    "probability_flow": samplers.probability_flow,
}


def pixels(schedule, mean, std):
    """E[x_0 | x_t] and E[eps | x_t] of independent pixels N(mean, std^2).

    The mean may be an image, or one for each of the batch.
    """

    def denoiser(x_t, t, cond=None):
        alpha, sigma = coefficients(schedule, t, x_t)
        score = (x_t - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        return Prediction(x_0=mean + alpha * std**2 * score, eps=sigma * score)

    return denoiser


def correlated(schedule, mean, covariance):
    """The same of images N(mean, covariance), where these are of flat images.

    x_0 = mean + alpha C (alpha^2 C + sigma^2 I)^-1 (x_t - alpha mean), along the
    eigenvectors of C.
    """
    values, vectors = np.linalg.eigh(covariance)

    def denoiser(x_t, t, cond=None):
        mu, c, u = (
            jnp.asarray(a, x_t.dtype)
            for a in (np.reshape(mean, (1, -1)), values[None], vectors)
        )
        x = x_t.reshape(len(x_t), -1)
        alpha, sigma = coefficients(schedule, t, x)
        along = (x - alpha * mu) @ u / (alpha**2 * c + sigma**2)
        x_0, eps = mu + alpha * c * along @ u.T, sigma * along @ u.T
        return Prediction(x_0.reshape(x_t.shape), eps.reshape(x_t.shape))

    return denoiser


def measured(mean, covariance, matrix, y):
    """Mean and covariance of N(mean, covariance) given matrix @ x = y."""
    gain = covariance @ matrix.T @ np.linalg.inv(matrix @ covariance @ matrix.T)
    return mean + gain @ (y - matrix @ mean), covariance - gain @ matrix @ covariance


def coefficients(schedule, t, x):
    """alpha_t and sigma_t with axes that let them multiply x."""
    pair = schedules.alpha_sigma(schedule, t)
    return [c.reshape(c.shape + (1,) * (x.ndim - c.ndim)) for c in pair]


def image_keys(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


def normal(shape, seed=1):
    return jax.random.normal(jax.random.key(seed), shape)


class Counter:
    """Counts the images that a denoiser is really asked for, in compiled code too."""

    def __init__(self):
        self.images = 0

    def _add(self, number):
        self.images += int(number)

    def __call__(self, denoiser):
        def counted(x_t, t, cond=None):
            jax.debug.callback(self._add, len(x_t))
            return denoiser(x_t, t, cond)

        return counted

    def read(self):
        """Returns the number since the last time."""
        jax.effects_barrier()
        number, self.images = self.images, 0
        return number


def rms(x):
    return float(jnp.sqrt(jnp.mean(jnp.square(x))))
