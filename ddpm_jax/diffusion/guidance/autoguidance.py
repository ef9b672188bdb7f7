"""Guidance by a weaker version of the same model."""

from ddpm_jax.diffusion.denoisers import Denoiser
from ddpm_jax.diffusion.guidance.base import extrapolate


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
        return extrapolate(weaker(x_t, t, cond), strong, scale)

    return guided
