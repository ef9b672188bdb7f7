"""The exact likelihood of a model, by its probability-flow ODE (Song et al. 2021).

The ODE that has the marginals of the diffusion, with the log-SNR λ as its time, is

    dx/dλ = f(x, λ) = ½ sigma (sigma x - eps(x, λ)),

and along its solution d log p(x) / dλ = -div f. From the data, at t = 1, to the prior
at t = T,

    log p_1(x_1) = log N(x_T; 0, I) + ∫ div f dλ    over λ from λ_1 to λ_T.

The divergence is estimated without bias by zᵀ (∂f/∂x) z, z = ±1 (Hutchinson; the same z
along the way), so a value is exact up to that and the solver's tolerance. Between whole
times, λ is linear in t, and the network is asked at fractional times.
"""

from collections.abc import Callable
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax.diffusion.denoisers import Denoiser, condition, from_network
from ddpm_jax.diffusion.process import Images
from ddpm_jax.diffusion.schedules import Schedule, time_of

LEFT = 1e-3  # the most SNR that may be left where a schedule ends in noise alone


class Likelihood(NamedTuple):
    """What a model says of images.

    Attributes:
      log_density: log p_1(x) in nats, [batch].
      num_steps: how many steps the solver took, [batch].
    """

    log_density: Float[Array | np.ndarray, " batch"]
    num_steps: Int[Array | np.ndarray, " batch"]


def make_likelihood(
    apply: Callable,
    schedule: Schedule,
    predicts: str = "eps",
    transform: Callable[[Denoiser], Denoiser] = lambda denoiser: denoiser,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    num_probes: int = 1,
    max_steps: int = 4096,
) -> Callable[..., Likelihood]:
    """Makes a function that gives the exact likelihood of images.

    Args:
      apply: the network's apply function, (params, x_t, index, cond, None) -> output.
      schedule: the noise schedule, with a signal left at T.
      predicts: what the network predicts: "eps", "x_0" or "v".
      transform: Denoiser -> Denoiser, such as guidance; what is clipped has no density.
      rtol: relative tolerance of the solver for each step.
      atol: absolute tolerance.
      num_probes: draws of z; more of them narrow the estimate of an image.
      max_steps: an error is raised where the solver needs more.

    Returns:
      likelihood_fn(params, keys [batch], x, cond=None) -> Likelihood, for continuous
      images x of [batch, ...], such as `dequantize` makes. It treats each image by
      itself, with steps of its own.

    Raises:
      ValueError: for a schedule of zero terminal SNR, whose ODE has no last time, where
        the step before the last leaves a signal of more than a thousandth; and for
        tolerances, probes or steps that are not positive.
    """
    if not min(rtol, atol, num_probes, max_steps) > 0:
        raise ValueError("rtol, atol, num_probes and max_steps must be positive")
    first, last = float(schedule.log_snr[1]), float(schedule.log_snr[-1])
    if not np.isfinite(last):  # then where next to nothing is left of the image
        last = float(schedule.log_snr[-2])
        if last > np.log(LEFT):
            raise ValueError(
                "the ODE of a schedule with zero terminal SNR ends at λ = -inf, and "
                f"its step before leaves an SNR of {np.exp(last):.2g}: choose more "
                "steps, a schedule that leaves a signal, or the variational bound"
            )

    def likelihood_fn(params, keys, x, cond=None):
        network = transform(from_network(apply, params, schedule, predicts))

        def of_one(key, x, cond):
            probes = jax.random.rademacher(key, (num_probes, *x.shape), x.dtype)
            one = None if cond is None else cond[None]
            drift = _drift(condition(network, one), schedule)

            def field(lambda_t, state, args):
                velocity, pull = jax.vjp(lambda x: drift(lambda_t, x), state[0])
                traces = probes * jax.vmap(lambda z: pull(z)[0])(probes)
                return velocity, jnp.sum(traces) / (num_probes * x.size)

            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                diffrax.Dopri5(),
                t0=first,
                t1=last,
                dt0=None,
                y0=(x, jnp.zeros((), x.dtype)),
                stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
                max_steps=max_steps,
            )
            x_T, mean_divergence = (leaf[0] for leaf in solution.ys)
            log_prior = jnp.sum(-0.5 * jnp.square(x_T) - 0.5 * np.log(2 * np.pi))
            log_density = log_prior + x.size * mean_divergence
            return Likelihood(log_density, solution.stats["num_steps"])

        return jax.vmap(of_one)(keys, x, cond)

    return likelihood_fn


def dequantize(keys: Array, images: Images) -> Images:
    """Spreads each of 256 values evenly over its share of [-1, 1] (Song et al. 2021).

    Args:
      keys: one key per image, [batch].
      images: 8-bit images in [-1, 1], [batch, ...].
    """

    def of_one(key, image):
        spread = jax.random.uniform(key, image.shape, image.dtype)
        return (127.5 * (image + 1) + spread) / 128 - 1

    return jax.vmap(of_one)(keys, images)


def bits_per_dimension(log_density, image_shape: tuple[int, ...]) -> np.ndarray:
    """Bits per dimension of 8-bit images from the log-density of dequantised ones.

    A value's share of [-1, 1] is 1 / 128 wide, hence the 7 bits.

    Args:
      log_density: in nats, [batch].
      image_shape: of one image.
    """
    nats = -np.asarray(log_density, np.float64) / np.prod(image_shape)
    return nats / np.log(2) + 7


def _drift(denoiser, schedule):
    """dx/dλ for one image."""

    def drift(lambda_t, x):
        sigma = jnp.sqrt(jax.nn.sigmoid(-lambda_t)).astype(x.dtype)
        t = time_of(schedule, jnp.asarray(lambda_t))
        return 0.5 * sigma * (sigma * x - denoiser(x[None], t).eps[0])

    return drift
