"""The variance of a reverse step: fixed small, fixed large, or learned in between.

With the posterior variance β̃ (Ho et al. 2020, Eq. 7) and the forward variance β,

    Σ(t→s) = β̃(t→s)^(1 - v) β(t→s)^v               (Nichol & Dhariwal 2021, Eq. 15)
           = β̃(t→s) (sigma_t^2 / sigma_s^2)^v,       as β̃ = β sigma_s^2 / sigma_t^2.

v = 0 is "fixed_small", v = 1 is "fixed_large", and a network of twice the channels
learns v for each pixel, "learned_range". At s = 0 all of them vanish: samplers add no
noise there.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.process import Images, Prediction, posterior_variance
from ddpm_jax.diffusion.schedules import Schedule, Times, log_snr

FIXED = {"fixed_small": 0.0, "fixed_large": 1.0}
NAMES = (*FIXED, "learned_range")


def fraction_of(variance: str, prediction: Prediction) -> Images | float:
    """Returns v of the variance so called: 0, 1, or what the network learned.

    Raises:
      ValueError: for an unknown name, and where the network learned none.
    """
    check(variance)
    if variance in FIXED:
        return FIXED[variance]
    if prediction.fraction is None:
        raise ValueError(
            "variance 'learned_range' needs a network with learned_variance=True"
        )
    return prediction.fraction


def check(variance: str) -> None:
    """Refuses an unknown name.

    Raises:
      ValueError: naming those there are.
    """
    if variance not in NAMES:
        known = ", ".join(NAMES)
        raise ValueError(f"unknown variance {variance!r}; there are: {known}")


def log_range(schedule: Schedule, t: Times, s: Times) -> Float[Array, "..."]:
    """Returns log β(t→s) / β̃(t→s) = log sigma_t^2 / sigma_s^2, and 0 at s = 0."""
    log_sigma_sq_t = jax.nn.log_sigmoid(-log_snr(schedule, t))
    log_sigma_sq_s = jax.nn.log_sigmoid(-log_snr(schedule, s))
    return jnp.where(jnp.asarray(s) > 0, log_sigma_sq_t - log_sigma_sq_s, 0.0)


def reverse_variance(
    schedule: Schedule, t: Times, s: Times, fraction: Images | float
) -> Images:
    """Returns Σ(t→s) for scalar times s < t; 0 at s = 0.

    Args:
      schedule: the noise schedule.
      t: the time stepped from.
      s: the time stepped to.
      fraction: v, a number or one for each pixel.
    """
    small = posterior_variance(schedule, t, s)
    return small * jnp.exp(fraction * log_range(schedule, t, s))
