"""DDPM and DDIM: one family, and the step that other samplers are made of.

From a prediction (x_0, eps) at time t (Song et al. 2021, Eq. 12),

    x_s = alpha_s x_0 + sqrt(sigma_s^2 - η^2 β̃(t→s)) eps + noise,

where η = 0 is deterministic DDIM, and η = 1 with noise of variance β̃(t→s) is the
ancestral sampler of Ho et al. (2020); any s < t will do, so a strided sampler is this
one on fewer times. With Δ = λ_t - λ_s the coefficient of eps is

    sigma_s^2 - η^2 β̃(t→s) = sigma_s^2 ((1 - η^2) + η^2 exp(Δ)),

a sum of positive terms. At s = 0 both sigma_s and β̃ vanish: the last step returns x_0.
"""

import jax.numpy as jnp
from jaxtyping import Array

from ddpm_jax.diffusion import variances
from ddpm_jax.diffusion.process import Images, Prediction, posterior_variance
from ddpm_jax.diffusion.samplers import base
from ddpm_jax.diffusion.samplers.base import Sampler, SamplerState
from ddpm_jax.diffusion.schedules import (
    Schedule,
    Times,
    alpha_sigma,
    log_snr,
    log_snr_change,
)


def ddpm(schedule: Schedule, variance: str = "fixed_small") -> Sampler:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2).

    Args:
      schedule: the noise schedule.
      variance: of the added noise, "fixed_small" (posterior variance β̃), "fixed_large"
        (forward variance β, the paper's choice for CIFAR-10) or "learned_range" (what
        the network says; Nichol & Dhariwal 2021). The last step, to s = 0, adds none.
    """
    variances.check(variance)

    def step(denoiser, keys, state, t, s):
        prediction = denoiser(state.x, t)
        fraction = variances.fraction_of(variance, prediction)
        std = jnp.sqrt(variances.reverse_variance(schedule, t, s, fraction))
        noise = std * base.standard_normal(keys, state.x)
        return SamplerState(mean(schedule, prediction, t, s, 1.0) + noise), prediction

    return Sampler(SamplerState, step)


def ddim(schedule: Schedule, eta: float = 0.0) -> Sampler:
    """Denoising diffusion implicit models (Song et al. 2021, Eq. 12).

    Args:
      schedule: the noise schedule.
      eta: 0 is deterministic, 1 is `ddpm` with the posterior variance.
    """
    check_eta(eta)

    def step(denoiser, keys, state, t, s):
        prediction = denoiser(state.x, t)
        return SamplerState(move(schedule, prediction, t, s, eta, keys)), prediction

    return Sampler(SamplerState, step)


def check_eta(eta: float) -> None:
    """Refuses an η outside [0, 1].

    Raises:
      ValueError: naming it.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")


def move(
    schedule: Schedule,
    prediction: Prediction,
    t: Times,
    s: Times,
    eta: float = 0.0,
    keys: Array | None = None,
) -> Images:
    """Returns x_s of Eq. 12, with noise from one key per image where η > 0."""
    x_s = mean(schedule, prediction, t, s, eta)
    if eta == 0:
        return x_s
    std = eta * jnp.sqrt(posterior_variance(schedule, t, s))
    return x_s + std * base.standard_normal(keys, x_s)


def mean(
    schedule: Schedule, prediction: Prediction, t: Times, s: Times, eta: float
) -> Images:
    """Returns x_s of Eq. 12 without its noise, for scalar times."""
    alpha_s, sigma_s = alpha_sigma(schedule, s)
    if eta == 0:  # a Python branch: towards noise, exp(Δ) is inf, and 0 * inf nan
        return alpha_s * prediction.x_0 + sigma_s * prediction.eps
    ratio = jnp.exp(log_snr_change(schedule, t, s))
    direction = sigma_s * jnp.sqrt((1 - eta**2) + eta**2 * ratio)
    return alpha_s * prediction.x_0 + direction * prediction.eps


def turn(
    schedule: Schedule, prediction: Prediction, t: Times, s: Times, eps: Images
) -> Images:
    """Returns x_s of Eq. 12 at η = 0, along another eps from the same x_t.

    The change is alpha_s (sigma_s / alpha_s - sigma_t / alpha_t)(eps - its own eps).
    Where alpha_t = 0 all of x_t is noise, and no other eps is possible.
    """
    alpha_s, _ = alpha_sigma(schedule, s)
    level_t, level_s = (jnp.exp(-log_snr(schedule, u) / 2) for u in (t, s))
    length = jnp.where(jnp.isfinite(level_t), alpha_s * (level_s - level_t), 0.0)
    x_s = mean(schedule, prediction, t, s, 0.0)
    return x_s + length * (eps - prediction.eps)
