"""Guidance at some noise levels alone."""

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.denoisers import Denoiser
from ddpm_jax.diffusion.schedules import Schedule, log_snr


def within(
    guided: Denoiser,
    otherwise: Denoiser,
    schedule: Schedule,
    low: float | int,
    high: float | int,
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
