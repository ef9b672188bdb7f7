"""Samplers: one step from time t to time s, as a pair of pure functions.

DDPM and DDIM are one family (Song et al. 2021, Eq. 12). From a prediction (x_0, eps)
at time t,

    x_s = alpha_s x_0 + sqrt(sigma_s^2 - η^2 β̃(t→s)) eps + noise,

where η = 0 is deterministic DDIM, and η = 1 with noise of variance β̃(t→s) is the
ancestral sampler of Ho et al. (2020); any s < t will do, so a strided sampler is this
one on fewer times. With Δ = λ_t - λ_s the coefficient of eps is

    sigma_s^2 - η^2 β̃(t→s) = sigma_s^2 ((1 - η^2) + η^2 exp(Δ)),

a sum of positive terms. At s = 0 both sigma_s and β̃ vanish: the last step returns x_0.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ddpm_jax.diffusion import variances
from ddpm_jax.diffusion.process import Images, Prediction, posterior_variance
from ddpm_jax.diffusion.schedules import Schedule, alpha_sigma, log_snr


class SamplerState(NamedTuple):
    """Where a sampler is.

    Attributes:
      x: the images at the current time, [batch, ...].
      memory: what a multistep sampler remembers of earlier steps.
    """

    x: Images
    memory: Any = ()


class Sampler(NamedTuple):
    """A sampler, as two pure functions.

    Attributes:
      init: x_T -> SamplerState.
      step: (denoiser, keys [batch], state, t, s) -> (state at s, Prediction at t), for
        scalar times s < t.
    """

    init: Callable[[Images], SamplerState]
    step: Callable[..., tuple[SamplerState, Prediction]]


def ddpm(schedule: Schedule, variance: str = "fixed_small") -> Sampler:
    """Ancestral sampling (Ho et al. 2020, Algorithm 2).

    Args:
      schedule: the noise schedule.
      variance: of the added noise, "fixed_small" (posterior variance β̃), "fixed_large"
        (forward variance β, the paper's choice for CIFAR-10) or "learned_range" (what
        the network says; Nichol & Dhariwal 2021). The last step, to s = 0, adds none.
    """
    variances.check(variance)

    def noise_variance(t, s, prediction):
        fraction = variances.fraction_of(variance, prediction)
        return variances.reverse_variance(schedule, t, s, fraction)

    return _family(schedule, 1.0, noise_variance)


def ddim(schedule: Schedule, eta: float = 0.0) -> Sampler:
    """Denoising diffusion implicit models (Song et al. 2021, Eq. 12).

    Args:
      schedule: the noise schedule.
      eta: 0 is deterministic, 1 is `ddpm` with the posterior variance.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")

    def noise_variance(t, s, prediction):
        return eta**2 * posterior_variance(schedule, t, s)

    return _family(schedule, eta, noise_variance)


def _family(schedule: Schedule, eta: float, noise_variance: Callable) -> Sampler:
    """DDIM Eq. 12: `eta` shortens the direction eps, `noise_variance` refills it."""

    def step(denoiser, keys, state, t, s):
        prediction = denoiser(state.x, t)
        x_0, eps = prediction.x_0, prediction.eps
        alpha_s, sigma_s = alpha_sigma(schedule, s)
        if eta == 0:  # a Python branch: towards noise, exp(Δ) is inf, and 0 * inf nan
            return SamplerState(alpha_s * x_0 + sigma_s * eps), prediction
        ratio = jnp.exp(log_snr(schedule, t) - log_snr(schedule, s))
        direction = sigma_s * jnp.sqrt((1 - eta**2) + eta**2 * ratio)
        mean = alpha_s * x_0 + direction * eps
        std = jnp.sqrt(noise_variance(t, s, prediction))
        return SamplerState(mean + std * standard_normal(keys, state.x)), prediction

    return Sampler(SamplerState, step)


def standard_normal(keys: Array, like: Images) -> Images:
    """Standard normal noise in the shape of `like`, each example from its own key."""
    return jax.vmap(lambda key, x: jax.random.normal(key, x.shape, x.dtype))(keys, like)
