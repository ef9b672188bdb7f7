"""Linear inverse problems: images of which y = A x_0 is known.

With a pseudo-inverse A⁺, what A sees of an image is A⁺A x_0, and the rest is free. Both
solutions are functions from denoisers to denoisers, so any sampler takes them:

    replace     x_0 + A⁺(y - A x_0)                                  (Wang et al. 2023)
    pseudoinverse_guide   score + ∇ log N(y; A x_0(x_t), ...)        (Song et al. 2023)

The first costs nothing and holds exactly at the end, until pixels are clipped to their
range; the second differentiates the network, and moves the free part too. `restore` is
the first after the second.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from ddpm_jax.diffusion.denoisers import Denoiser
from ddpm_jax.diffusion.guidance import shift
from ddpm_jax.diffusion.process import Images, Prediction, from_x_0
from ddpm_jax.diffusion.schedules import Schedule, alpha_sigma

# How much red, green and blue weigh in grey, as in television and in Pillow.
LUMINANCE = (0.299, 0.587, 0.114)


class Measurement(NamedTuple):
    """A linear map of images, and its pseudo-inverse.

    Attributes:
      apply: images [batch, height, width, channels] -> y, A.
      invert: y -> the smallest images that give it, A⁺.
    """

    apply: Callable[[Images], Array]
    invert: Callable[[Array], Images]


def visible(mask: Bool[Array | np.ndarray, "..."]) -> Measurement:
    """The pixels where the mask is not set; the others read 0."""

    def hide(x):
        return jnp.where(mask, 0.0, x)

    return Measurement(hide, hide)


def downsampled(factor: int) -> Measurement:
    """The means of squares of factor x factor pixels: super-resolution.

    The factor must divide height and width; `apply` raises a ValueError otherwise.

    Raises:
      ValueError: for a factor below 1.
    """
    if factor < 1:
        raise ValueError(f"the factor must be 1 or more, got {factor}")

    def apply(x):
        batch, height, width, channels = x.shape
        if height % factor or width % factor:
            raise ValueError(f"{factor} does not divide images of {height}x{width}")
        rows, columns = height // factor, width // factor
        squares = x.reshape(batch, rows, factor, columns, factor, channels)
        return squares.mean(axis=(2, 4))

    def invert(y):
        return jnp.repeat(jnp.repeat(y, factor, axis=1), factor, axis=2)

    return Measurement(apply, invert)


def grey() -> Measurement:
    """The luminance of colour images, [..., 3] -> [..., 1]: colourisation."""
    weights = np.reshape(LUMINANCE, (1, 1, 1, 3))
    return Measurement(
        lambda x: jnp.sum(x * weights.astype(x.dtype), axis=-1, keepdims=True),
        lambda y: y * (weights / np.sum(weights**2)).astype(y.dtype),
    )


def replace(
    denoiser: Denoiser, schedule: Schedule, measurement: Measurement, y: Array
) -> Denoiser:
    """Puts what was measured into the predicted x_0 (DDNM; Wang et al. 2023, Eq. 13).

    Args:
      denoiser: the denoiser to wrap.
      schedule: the noise schedule.
      measurement: A.
      y: what was measured, [batch, ...].
    """

    def replaced(x_t, t, cond=None):
        prediction = denoiser(x_t, t, cond)
        missing = y - measurement.apply(prediction.x_0)
        x_0 = prediction.x_0 + measurement.invert(missing)
        eps = from_x_0(schedule, x_t, t, x_0).eps
        return Prediction(x_0, eps, prediction.fraction)

    return replaced


def pseudoinverse_guide(
    denoiser: Denoiser, schedule: Schedule, measurement: Measurement, y: Array
) -> Denoiser:
    """Guidance by a measurement without noise (ΠGDM; Song et al. 2023, Eq. 7).

    Given x_t, x_0 is taken to be normal around its prediction with variance sigma_t^2,
    as it is for data of unit variance. Costs a differentiation of the network.

    Args:
      denoiser: the denoiser to wrap.
      schedule: the noise schedule.
      measurement: A.
      y: what was measured, [batch, ...].
    """

    def guided(x_t, t, cond=None):
        def predict(x_t):
            prediction = denoiser(x_t, t, cond)
            return prediction.x_0, prediction

        x_0, pull, prediction = jax.vjp(predict, x_t, has_aux=True)
        (gradient,) = pull(measurement.invert(y - measurement.apply(x_0)))
        _, sigma = alpha_sigma(schedule, t)
        sigma = jnp.reshape(sigma, jnp.shape(sigma) + (1,) * (x_t.ndim - jnp.ndim(t)))
        return shift(schedule, prediction, t, gradient / sigma**2)

    return guided


def restore(
    denoiser: Denoiser, schedule: Schedule, measurement: Measurement, y: Array
) -> Denoiser:
    """Guides by a measurement, then puts it in: near to likely images, and exact.

    Args:
      denoiser: the denoiser to wrap.
      schedule: the noise schedule.
      measurement: A.
      y: what was measured, [batch, ...].
    """
    guided = pseudoinverse_guide(denoiser, schedule, measurement, y)
    return replace(guided, schedule, measurement, y)
