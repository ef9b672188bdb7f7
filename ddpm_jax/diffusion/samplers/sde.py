"""The score-based view: Euler's method on the SDE of Song et al. (2021) and its ODE.

With score = ∇ log p_t(x) = -eps / sigma_t, and B = ∫ β = log(alpha_s^2 / alpha_t^2)
over a step from t to s, both are

    x_s = x + B (x / 2 + (1 + η^2)/2 score) + η sqrt(B) z,

where η = 1 is the reverse-time SDE (Eq. 6) by Euler-Maruyama and η = 0 its probability
flow (Eq. 13). The last step, to s = 0, returns x_0: it removes the noise that is left.
They show the principle; `ddim`, which solves the linear part exactly, needs far fewer
steps.
"""

import jax.numpy as jnp

from ddpm_jax.diffusion.process import forward_variance
from ddpm_jax.diffusion.samplers import base
from ddpm_jax.diffusion.samplers.base import Sampler, SamplerState
from ddpm_jax.diffusion.schedules import (
    Schedule,
    alpha_sigma,
    ends_in_noise,
)


def reverse_sde(schedule: Schedule) -> Sampler:
    """The reverse-time SDE by Euler-Maruyama (Song et al. 2021, Eq. 6).

    Raises:
      ValueError: for a schedule of zero terminal SNR, where B is infinite.
    """
    return _euler(schedule, 1)


def probability_flow(schedule: Schedule) -> Sampler:
    """The probability-flow ODE by Euler's method (Song et al. 2021, Eq. 13).

    Raises:
      ValueError: for a schedule of zero terminal SNR, where B is infinite.
    """
    return _euler(schedule, 0)


def _euler(schedule, eta: int) -> Sampler:
    if ends_in_noise(schedule):
        raise ValueError(
            "Euler's method cannot begin where alpha_T = 0: choose a schedule that "
            "leaves a signal, or another sampler"
        )

    def step(denoiser, keys, state, t, s):
        prediction = denoiser(state.x, t)

        # ∫ β = log alpha_s^2 - log alpha_t^2
        area = -jnp.log1p(-forward_variance(schedule, t, s))
        _, sigma_t = alpha_sigma(schedule, t)
        score = -prediction.eps / sigma_t
        x_s = state.x + area * (state.x / 2 + (1 + eta**2) / 2 * score)
        if eta:
            x_s += jnp.sqrt(area) * base.standard_normal(keys, state.x)
        x_s = jnp.where(jnp.asarray(s) > 0, x_s, prediction.x_0)
        return SamplerState(x_s), prediction

    return Sampler(SamplerState, step)
