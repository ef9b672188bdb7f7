"""Heun's second order method on the probability-flow ODE.

With noise level σ̂ = sigma / alpha and x̂ = x / alpha, the ODE is dx̂ / dσ̂ = eps; with
flow time τ = alpha / (alpha + sigma) and z = x / (alpha + sigma), it is dz / dτ = x_0 -
eps. A step follows the mean of that at its beginning and, after a trial step, at its
end: `heun` in the noise level (Karras et al. 2022), `heun_flow` in flow time. With
churn, noise is added before each step to raise σ̂ by a share, which makes it an SDE.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.process import Images
from ddpm_jax.diffusion.samplers import base
from ddpm_jax.diffusion.samplers.base import Sampler, SamplerState
from ddpm_jax.diffusion.samplers.first_order import mean, turn
from ddpm_jax.diffusion.schedules import (
    Schedule,
    alpha_sigma,
    ends_in_noise,
    log_snr,
    time_of,
)


def heun(
    schedule: Schedule,
    churn: float = 0.0,
    churn_from: float = 0.0,
    churn_to: float = float("inf"),
    churn_noise: float = 1.0,
) -> Sampler:
    """Heun's method with optional churn (Karras et al. 2022, Algorithms 1 and 2).

    A step is two network calls, the last one, to s = 0, one.

    Args:
      schedule: the noise schedule.
      churn: γ, the share by which noise is added raises the noise level before each
        step, in [0, √2 - 1]; the paper's S_churn is this times the number of steps.
      churn_from: S_tmin, the least noise level sigma / alpha with churn.
      churn_to: S_tmax, the greatest.
      churn_noise: S_noise, the standard deviation of what is added.

    Raises:
      ValueError: for a churn, levels or noise outside their range, or churn of a
        schedule of zero terminal SNR, whose noise level cannot be raised.
    """
    if not 0 <= churn <= 2**0.5 - 1:
        raise ValueError(f"churn must lie in [0, 0.4142], got {churn}")
    if not (0 <= churn_from < churn_to and 0 <= churn_noise < float("inf")):
        raise ValueError(
            "churn needs 0 <= churn_from < churn_to and a churn_noise of 0 or more, "
            f"got {churn_from}, {churn_to} and {churn_noise}"
        )
    if churn and ends_in_noise(schedule):
        raise ValueError("churn needs a schedule that leaves a signal at t = T")

    def stir(keys, x: Images, t):
        """Raises the noise of x at time t; returns it, and its time, not whole."""
        level = jnp.exp(-log_snr(schedule, t) / 2)
        within = (churn_from <= level) & (level <= churn_to)
        time = time_of(schedule, -2 * jnp.log((1 + churn) * level))
        alpha_t, _ = alpha_sigma(schedule, t)
        alpha, sigma = alpha_sigma(schedule, time)
        std = jnp.sqrt(jnp.maximum((sigma / alpha) ** 2 - level**2, 0.0))
        noise = churn_noise * std * base.standard_normal(keys, x)
        stirred = alpha * (x / alpha_t + noise)
        return jnp.where(within, stirred, x), jnp.where(within, time, t)

    def step(denoiser, keys, state, t, s):
        x, t = stir(keys, state.x, t) if churn else (state.x, t)
        prediction = denoiser(x, t)

        def correct(x_s):
            eps = (prediction.eps + denoiser(x_s, s).eps) / 2
            return turn(schedule, prediction, t, s, eps)

        x_s = mean(schedule, prediction, t, s, 0.0)
        return _corrected(x_s, prediction, s, correct)

    return Sampler(SamplerState, step, calls=2)


def heun_flow(schedule: Schedule, t_eps: float = 0.0) -> Sampler:
    """Heun's method in flow time, as rectified flows are sampled (Li & He 2025).

    A step is two network calls, the last one, to s = 0, one. Even steps in flow time
    are `timesteps.flow`.

    Args:
      schedule: the noise schedule.
      t_eps: the least 1 - τ that dz / dτ = (x_0 - z) / (1 - τ) is divided by. The
        code of "Just image Transformers" has 0.05, with which its last steps stop short
        of x_0 and leave some noise; 0 is the ODE.

    Raises:
      ValueError: for a t_eps outside [0, 1).
    """
    if not 0 <= t_eps < 1:
        raise ValueError(f"t_eps must lie in [0, 1), got {t_eps}")

    def share(t):
        """What of dz / dτ is left at time t."""
        left = jax.nn.sigmoid(-log_snr(schedule, t) / 2)
        return jnp.minimum(left / t_eps, 1) if t_eps else 1

    def step(denoiser, keys, state, t, s):
        prediction = denoiser(state.x, t)
        time_t, time_s = (jax.nn.sigmoid(log_snr(schedule, u) / 2) for u in (t, s))
        length = sum(alpha_sigma(schedule, s)) * (time_s - time_t)
        slope = prediction.x_0 - prediction.eps
        x_s = mean(schedule, prediction, t, s, 0.0)
        if t_eps:
            x_s -= length * (1 - share(t)) * slope

        def correct(x_s):
            after = denoiser(x_s, s)
            change = share(s) * (after.x_0 - after.eps) - share(t) * slope
            return x_s + length / 2 * change

        return _corrected(x_s, prediction, s, correct)

    return Sampler(SamplerState, step, calls=2)


def _corrected(x_s: Images, prediction, s, correct: Callable):
    """Euler's step, or what `correct` makes of it unless it is the last."""
    x_s = jax.lax.cond(jnp.asarray(s) > 0, correct, lambda x_s: x_s, x_s)
    return SamplerState(x_s), prediction
