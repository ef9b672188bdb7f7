"""The variational bound on the likelihood, term by term, in bits per dimension.

    -log p(x_0) ≤ KL(q(x_T | x_0) ‖ N(0, I)) + Σ_{s > 0} L(t→s) - log p(x_0 | x_1)
    L(t→s) = KL(q(x_s | x_t, x_0) ‖ p(x_s | x_t))                   (Ho et al., Eq. 5)

over the pairs (t, s) of the times visited. With Σ = β̃ exp(r) (see `variances`), both
Gaussians are known from λ, and

    L(t→s) = ½ (r - 1 + e^-r + e^-r (SNR_s - SNR_t) (x_0 - x̂_0)^2)

per pixel; at r = 0 this is the weighted error of Kingma et al. (2021, Eq. 13). The last
term is a Gaussian cut into the 256 values of a pixel (Ho et al., Eq. 13), where β̃ = 0
is replaced by the posterior variance of the step before, as in their code.

Times are respaced by giving fewer of them; this scores another model, with its own
bound. A model trained on T steps is scored on all of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.diffusion import variances
from ddpm_jax.diffusion.denoisers import Denoiser, condition, from_network
from ddpm_jax.diffusion.process import (
    Images,
    Prediction,
    diffuse,
    forward_variance,
    posterior_variance,
)
from ddpm_jax.diffusion.samplers import standard_normal
from ddpm_jax.diffusion.schedules import (
    Schedule,
    Times,
    alpha_sigma,
    check_times,
    log_snr,
    log_snr_change,
)
from ddpm_jax.diffusion.timesteps import Timesteps


class Bound(NamedTuple):
    """The terms of the bound, in bits per dimension.

    Attributes:
      prior: what x_T still tells of x_0, [batch].
      steps: L(t→s) in the order of the times, noisiest first; the last is that of the
        decoder, [batch, steps].
    """

    prior: Float[Array | np.ndarray, " batch"]
    steps: Float[Array | np.ndarray, "batch steps"]

    def total(self) -> Float[np.ndarray, " batch"]:
        """Returns bits per dimension, [batch], summed in float64 on the host."""
        return np.asarray(self.prior, np.float64) + np.sum(
            np.asarray(self.steps, np.float64), axis=1
        )


def make_bound(
    apply: Callable,
    schedule: Schedule,
    timesteps: Timesteps,
    predicts: str = "eps",
    variance: str = "fixed_small",
    transform: Callable[[Denoiser], Denoiser] = lambda denoiser: denoiser,
    chunk: int = 1,
) -> Callable[..., Bound]:
    """Makes a function that scores images by one draw of noise for each time.

    Args:
      apply: the network's apply function, (params, x_t, index, cond, None) -> output.
      schedule: the noise schedule.
      timesteps: decreasing times that end in 0, all being
        `timesteps.trailing(schedule, T)`.
      predicts: what the network predicts: "eps", "x_0" or "v".
      variance: of a reverse step, "fixed_small", "fixed_large" or "learned_range".
      transform: Denoiser -> Denoiser, such as clipping; published numbers clip.
      chunk: how many times the network sees at once, a divisor of the number of steps.

    Returns:
      bound_fn(params, keys [batch], x_0, cond=None) -> Bound, for x_0 of [batch, ...],
      8-bit images in [-1, 1]. It is pure, and scores each image by itself.

    Raises:
      ValueError: for an unknown variance, fewer than two steps, times that the schedule
        has not, and a chunk that does not divide them.
    """
    num_steps = len(timesteps) - 1
    check_times(schedule, timesteps)
    if chunk < 1 or num_steps % chunk:
        raise ValueError(f"chunk must divide the {num_steps} steps, got {chunk}")
    term = make_term(schedule, variance, timesteps)

    def bound_fn(params, keys, x_0, cond=None):
        network = from_network(apply, params, schedule, predicts)
        denoiser = condition(transform(network), cond)

        def step(visit):
            i, t, s = visit
            x_t = diffuse(schedule, x_0, t, noise(keys, i, x_0))
            return term(denoiser(x_t, t), x_0, t, s)

        times = jnp.asarray(timesteps)
        visits = (jnp.arange(num_steps), times[:-1], times[1:])
        steps = jax.lax.map(step, visits, batch_size=chunk)
        return Bound(prior(schedule, x_0, int(timesteps[0])), jnp.moveaxis(steps, 0, 1))

    return bound_fn


def make_term(schedule: Schedule, variance: str, timesteps: Timesteps) -> Callable:
    """Makes the function that computes one term of the bound.

    Args:
      schedule: the noise schedule.
      variance: of a reverse step.
      timesteps: decreasing times that end in 0.

    Returns:
      term(prediction at x_t, x_0, t, s) -> bits per dimension [batch], for times that
      are scalars or [batch]; L(t→s), or the decoder's term where s = 0.

    Raises:
      ValueError: for an unknown variance, and for fewer than two steps.
    """
    variances.check(variance)
    if len(timesteps) < 3:
        raise ValueError("the bound needs at least two steps")
    before_t, before_s = map(int, timesteps[-3:-1])

    def term(prediction: Prediction, x_0: Images, t: Times, s: Times):
        last = jnp.asarray(s) == 0
        # Where β̃ is 0 and the SNR infinite, those of the step before stand in.
        inner_t, inner_s = jnp.where(last, before_t, t), jnp.where(last, before_s, s)
        log_small = jnp.log(posterior_variance(schedule, inner_t, inner_s))
        log_large = jnp.log(forward_variance(schedule, t, s))
        change = log_snr_change(schedule, inner_t, inner_s)
        gap = jnp.exp(log_snr(schedule, inner_s)) * -jnp.expm1(change)  # SNR_s - SNR_t
        fraction = variances.fraction_of(variance, prediction)
        if variance == "fixed_large":  # of the decoder: fixed small, as in Ho's code
            fraction = jnp.where(last, 0.0, fraction)

        last, log_small, log_range, gap, fraction = (
            _per_pixel(value, x_0)
            for value in (last, log_small, log_large - log_small, gap, fraction)
        )
        r = fraction * log_range
        kl = divergence(r, gap * jnp.square(x_0 - prediction.x_0))
        nll = -log_discretized(x_0, prediction.x_0, 0.5 * (log_small + r))
        return _bits_per_dimension(jnp.where(last, nll, kl))

    return term


def divergence(r: Images, distance_sq: Images) -> Images:
    """KL(N(m_1, Σ_1) ‖ N(m_2, Σ_2)) in nats, for each pixel.

    Args:
      r: log Σ_2 / Σ_1.
      distance_sq: (m_1 - m_2)^2 / Σ_1.
    """
    return 0.5 * (r + jnp.expm1(-r) + jnp.exp(-r) * distance_sq)


def prior(schedule: Schedule, x_0: Images, t: int) -> Float[Array, " batch"]:
    """Returns KL(q(x_t | x_0) ‖ N(0, I)) in bits per dimension, [batch]."""
    alpha_t, sigma_t = alpha_sigma(schedule, t)
    variance_term = sigma_t**2 - 1 - 2 * jnp.log(sigma_t)
    return _bits_per_dimension(0.5 * (variance_term + jnp.square(alpha_t * x_0)))


def log_discretized(x: Images, mean: Images, log_std: Images) -> Images:
    """Log-probability of 8-bit values under a Gaussian cut into their bins.

    The outer bins reach to infinity. The distribution function is the tanh
    approximation of Ho et al.'s code, and probabilities are at least 1e-12, so that
    numbers compare.

    Args:
      x: values in [-1, 1], 2 / 255 apart.
      mean: of the Gaussian, in the shape of x.
      log_std: logarithm of its standard deviation, in the shape of x.
    """
    upper = _normal_cdf((x - mean + 1 / 255) * jnp.exp(-log_std))
    lower = _normal_cdf((x - mean - 1 / 255) * jnp.exp(-log_std))
    mass = jnp.where(x < -0.999, upper, jnp.where(x > 0.999, 1 - lower, upper - lower))
    return jnp.log(jnp.maximum(mass, 1e-12))


def noise(keys: Array, i: Array, like: Images) -> Images:
    """The noise of step i, each example's from its own key."""
    return standard_normal(jax.vmap(jax.random.fold_in, (0, None))(keys, i), like)


def _normal_cdf(x):
    return 0.5 * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _per_pixel(value, x):
    """A scalar, [batch] or per-pixel value, with the axes that let it multiply x."""
    value = jnp.asarray(value)
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim))


def _bits_per_dimension(nats):
    return jnp.mean(nats, axis=tuple(range(1, nats.ndim))) / np.log(2)
