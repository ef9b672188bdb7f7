"""What networks call time, and what they are given of a noisy image.

Here x_t = alpha_t x_0 + sigma_t eps with alpha_t² + sigma_t² = 1, and networks are told
the index t - 1, which counts one noising step as 0 (Ho et al. 2020). Others keep other
books of the same chain: any α x_0 + σ eps is a multiple of the x_t of the same log-SNR
λ = 2 log(α / σ). A convention makes of such a network one as ours are:

    convention(apply, schedule) -> (params, x_t, index, cond, dropout_keys) -> output
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.schedules import (
    Schedule,
    alpha_sigma,
    ends_in_noise,
    log_snr,
)


def index(apply: Callable, schedule: Schedule) -> Callable:
    """That of Ho et al. (2020): the network as it is."""
    return apply


def edm(apply: Callable, schedule: Schedule, sigma_data: float = 0.5) -> Callable:
    """That of Karras et al. (2022), Table 1: preconditioned, the network predicts x_0.

    With x = x_t / alpha_t and the noise level σ = sigma_t / alpha_t, the network F is
    called as F(c_in x, c_noise), and what is returned is c_skip x + c_out F. It follows
    that F is -v of the images divided by σ_data.

    Args:
      apply: called with c_noise = ln(σ) / 4 in the place of the index.
      schedule: the noise schedule.
      sigma_data: standard deviation of the images.

    Raises:
      ValueError: for a deviation that is not positive, and a schedule of zero terminal
        SNR, where ln(σ) is infinite; from the function, for a network that learns a
        variance, of which this chain has none.
    """
    if not 0 < sigma_data < float("inf"):
        raise ValueError(f"sigma_data must be positive, got {sigma_data}")
    if ends_in_noise(schedule):
        raise ValueError(
            "the convention 'edm' tells ln(sigma), which is infinite on a schedule "
            "with zero terminal SNR: leave out zero_terminal_snr"
        )

    def denoise(params, x_t, index, cond=None, dropout_keys=None, **more):
        alpha, sigma, noise = _of(schedule, index, x_t)
        c_in = 1 / jnp.sqrt(sigma**2 + (alpha * sigma_data) ** 2)  # of x_t
        c_skip = alpha * sigma_data**2 * c_in**2
        c_out = sigma * sigma_data * c_in
        output = apply(params, c_in * x_t, -noise / 8, cond, dropout_keys, **more)
        if output.shape != x_t.shape:
            raise ValueError(
                f"the network's output {output.shape} is not of the images' shape "
                f"{x_t.shape}: preconditioned networks learn no variance"
            )
        return c_skip * x_t + c_out * output

    return denoise


def flow(apply: Callable, schedule: Schedule) -> Callable:
    """That of rectified flows with clean images at time 1 (Li & He 2025).

    The network is given z = τ x_0 + (1 - τ) eps and the time τ in [0, 1]; what it
    predicts is as it was, x_0 or "flow", which is x_0 - eps.

    Args:
      apply: called with τ = α / (α + σ) in the place of the index.
      schedule: the noise schedule.
    """

    def predict(params, x_t, index, cond=None, dropout_keys=None, **more):
        alpha, sigma, noise = _of(schedule, index, x_t)
        z, time = x_t / (alpha + sigma), jax.nn.sigmoid(noise / 2)
        return apply(params, z, time, cond, dropout_keys, **more)

    return predict


def _of(schedule, index, x_t):
    """(alpha_t, sigma_t) with the axes of x_t, and λ_t [batch], at the index t - 1."""
    t = index + 1
    axes = (-1, *(1,) * (x_t.ndim - 1))
    alpha, sigma = (c.reshape(axes) for c in alpha_sigma(schedule, t))
    return alpha, sigma, log_snr(schedule, t)


CONVENTIONS = {"index": index, "edm": edm, "flow": flow}
