"""The forward process, and the one hub through which every prediction passes.

    x_t = alpha_t x_0 + sigma_t eps,   eps ~ N(0, I)                       (Ho Eq. 4)

Given x_t, any one of these determines the others; a network may predict

    eps                                                           (Ho et al. 2020)
    x_0 = (x_t - sigma_t eps) / alpha_t
    v   = alpha_t eps - sigma_t x_0                       (Salimans & Ho 2022, App. D)
    x_0 - eps, called "flow"                                          (Liu et al. 2023)

and `Prediction` holds (x_0, eps), from which every sampler continues. Between two
times s < t, with λ the log-SNR,

    posterior variance   β̃(t→s) = sigma_s^2 (1 - exp(λ_t - λ_s))          (Ho Eq. 7)
    forward variance     β (t→s) = sigma_t^2 (1 - exp(λ_t - λ_s))   (β_t where s = t-1)
                                 = 1 - alpha_t^2 / alpha_s^2

written with expm1, so that nothing cancels and β̃(1→0) is exactly 0.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.diffusion.schedules import (
    Schedule,
    Times,
    alpha_sigma,
    ends_in_noise,
    log_snr,
    log_snr_change,
)

Images = Float[Array | np.ndarray, "..."]


class Prediction(NamedTuple):
    """What a denoiser says about x_t = alpha_t x_0 + sigma_t eps.

    Attributes:
      x_0: the clean image expected, in the shape of x_t.
      eps: the noise expected, in the shape of x_t.
      fraction: what a learned variance adds, in the shape of x_t (see `variances`):
        where in [0, 1] its logarithm lies between the fixed ones; None without.
    """

    x_0: Images
    eps: Images
    fraction: Images | None = None


def diffuse(schedule: Schedule, x_0: Images, t: Times, eps: Images) -> Images:
    """Draws x_t from q(x_t | x_0) with the noise eps (Ho et al. 2020, Eq. 4).

    Args:
      schedule: the noise schedule.
      x_0: clean images, [*batch, ...].
      t: times in 0 ... T, a scalar or [*batch].
      eps: standard normal noise in the shape of x_0.
    """
    alpha_t, sigma_t = _coefficients(schedule, t, x_0)
    return alpha_t * x_0 + sigma_t * eps


def velocity(schedule: Schedule, x_0: Images, t: Times, eps: Images) -> Images:
    """Returns v = alpha_t eps - sigma_t x_0 (Salimans & Ho 2022, Appendix D)."""
    alpha_t, sigma_t = _coefficients(schedule, t, x_0)
    return alpha_t * eps - sigma_t * x_0


def from_eps(schedule: Schedule, x_t: Images, t: Times, eps: Images) -> Prediction:
    """Reads a prediction of the noise (needs alpha_t > 0)."""
    alpha_t, sigma_t = _coefficients(schedule, t, x_t)
    return Prediction(x_0=(x_t - sigma_t * eps) / alpha_t, eps=eps)


def from_x_0(schedule: Schedule, x_t: Images, t: Times, x_0: Images) -> Prediction:
    """Reads a prediction of the clean image (needs t > 0)."""
    alpha_t, sigma_t = _coefficients(schedule, t, x_t)
    return Prediction(x_0=x_0, eps=(x_t - alpha_t * x_0) / sigma_t)


def from_v(schedule: Schedule, x_t: Images, t: Times, v: Images) -> Prediction:
    """Reads a prediction of v, well conditioned at every t."""
    alpha_t, sigma_t = _coefficients(schedule, t, x_t)
    return Prediction(x_0=alpha_t * x_t - sigma_t * v, eps=sigma_t * x_t + alpha_t * v)


def from_flow(schedule: Schedule, x_t: Images, t: Times, flow: Images) -> Prediction:
    """Reads a prediction of x_0 - eps, well conditioned at every t."""
    alpha_t, sigma_t = _coefficients(schedule, t, x_t)
    total = alpha_t + sigma_t
    return Prediction((x_t + sigma_t * flow) / total, (x_t - alpha_t * flow) / total)


class Parameterization(NamedTuple):
    """What a network is asked for.

    Attributes:
      target: (schedule, x_0, t, eps) -> what the network should output for x_t.
      read: (schedule, x_t, t, output) -> Prediction.
    """

    target: Callable[..., Images]
    read: Callable[..., Prediction]


PARAMETERIZATIONS = {
    "eps": Parameterization(lambda schedule, x_0, t, eps: eps, from_eps),
    "x_0": Parameterization(lambda schedule, x_0, t, eps: x_0, from_x_0),
    "v": Parameterization(velocity, from_v),
    "flow": Parameterization(lambda schedule, x_0, t, eps: x_0 - eps, from_flow),
}


def parameterization(name: str, schedule: Schedule) -> Parameterization:
    """Looks up "eps", "x_0", "v" or "flow"; it must determine x_0 at every t.

    Raises:
      ValueError: for an unknown name, and for "eps" where alpha_T = 0: at t = T the
        noise is all of x_T, and knowing it says nothing about x_0.
    """
    if name not in PARAMETERIZATIONS:
        known = ", ".join(PARAMETERIZATIONS)
        raise ValueError(f"unknown parameterization {name!r}; there are: {known}")
    if name == "eps" and ends_in_noise(schedule):
        raise ValueError(
            "a schedule with zero terminal SNR needs parameterization 'v', 'x_0' or "
            "'flow': "
            "at t = T, x_T is all noise, and predicting eps says nothing about x_0"
        )
    return PARAMETERIZATIONS[name]


def posterior_variance(schedule: Schedule, t: Times, s: Times) -> Float[Array, "..."]:
    """Variance of q(x_s | x_t, x_0), s < t (Ho et al. 2020, Eq. 7; "fixed small")."""
    change = log_snr_change(schedule, t, s)
    return jax.nn.sigmoid(-log_snr(schedule, s)) * -jnp.expm1(change)


def forward_variance(schedule: Schedule, t: Times, s: Times) -> Float[Array, "..."]:
    """Variance of q(x_t | x_s), s < t: β_t where s = t - 1 ("fixed large")."""
    change = log_snr_change(schedule, t, s)
    return jax.nn.sigmoid(-log_snr(schedule, t)) * -jnp.expm1(change)


def _coefficients(schedule: Schedule, t: Times, x: Images):
    """(alpha_t, sigma_t), with the axes that let them multiply x: [*batch, 1, 1, …]."""
    alpha_t, sigma_t = alpha_sigma(schedule, t)
    shape = alpha_t.shape + (1,) * (x.ndim - alpha_t.ndim)
    return alpha_t.reshape(shape), sigma_t.reshape(shape)
