"""Orders of convergence, against the probability flow of a Gaussian in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import samplers, schedules
from ddpm_jax.diffusion.process import Prediction
from ddpm_jax.diffusion.samplers.loop import sample

MEAN, STD = 0.3, 0.5
SCHEDULE = schedules.cosine(2_000_000)  # so many that whole times do not disturb
NOISY, CLEAN = -2.0, 4.0  # the log-SNR where a walk begins and where it ends
NUM_STEPS = np.array([20, 40, 80, 160])


def marginal(t):
    """The mean and the standard deviation of x_t."""
    alpha, sigma = schedules.alpha_sigma(SCHEDULE, t)
    return alpha * MEAN, jnp.sqrt(alpha**2 * STD**2 + sigma**2)


def denoiser(x_t, t):
    (alpha, sigma), (mean, std) = schedules.alpha_sigma(SCHEDULE, t), marginal(t)
    score = (x_t - mean) / std**2
    return Prediction(x_0=MEAN + alpha * STD**2 * score, eps=sigma * score)


def times(num_steps):
    """Even in the log-SNR, after a start of growing steps.

    The first step of a multistep method is of first order, and the second of second.
    What they leave, short as they are here, is below the error of third order.
    """
    even, length = np.linspace(NOISY, CLEAN, num_steps + 1, retstep=True)
    start = np.array([1, 2, 4, 8, num_steps, 2 * num_steps]) / num_steps**2
    levels = np.append(even, NOISY + length * start)
    times = np.searchsorted(-SCHEDULE.log_snr, -levels)
    return np.unique(times).astype(np.int32)[::-1].copy()


def error(sampler, num_steps):
    """The root mean square, of quantiles from -2 to 2."""
    few = times(num_steps)
    (mean, std), (mean_end, std_end) = marginal(few[0]), marginal(few[-1])
    quantiles, keys = jnp.linspace(-2, 2, 8), jax.random.split(jax.random.key(0), 8)
    x, _ = sample(sampler, denoiser, keys, mean + std * quantiles, few)
    return float(jnp.sqrt(jnp.mean((x - mean_end - std_end * quantiles) ** 2)))


@pytest.mark.parametrize(
    "make, order",
    [
        (samplers.ddim, 1),
        (samplers.probability_flow, 1),
        (samplers.heun, 2),
        (samplers.dpmpp_2m, 2),
        (lambda schedule: samplers.plms(schedule, 2), 2),
        (samplers.plms, 2),
        (samplers.dpmpp_3m, 3),
        (samplers.unipc, 3),
    ],
    ids=["ddim", "euler", "heun", "dpmpp_2m", "plms_2", "plms_4", "dpmpp_3m", "unipc"],
)
def test_the_order_is_what_the_docstring_says(x64, make, order):
    """The slope of log error against log steps, by least squares."""
    errors = [error(make(SCHEDULE), n) for n in NUM_STEPS]
    slope = -np.polyfit(np.log(NUM_STEPS), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.25, (slope, errors)
    assert errors[-1] < {1: 1e-2, 2: 1e-4, 3: 1e-6}[order]
