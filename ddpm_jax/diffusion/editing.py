"""Editing: real images into the noise and back, mixed, changed, and repaired.

Each is a starting point for `samplers.sample`, or a sampler made of another:

    x_T = encode(denoiser, schedule, images, timesteps)           DDIM inversion
    x_t = perturb(schedule, keys, images, timesteps[0])           SDEdit, img2img
    inpaint(sampler, schedule, known, mask)                       replacement
    resample(inpaint(...), schedule)                              RePaint

on the times of `timesteps.from_time` and `timesteps.resampled`. What is known of an
image by a linear measurement is in `inverse`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ddpm_jax.diffusion.denoisers import Denoiser
from ddpm_jax.diffusion.process import (
    Images,
    Prediction,
    diffuse,
    forward_variance,
    from_eps,
)
from ddpm_jax.diffusion.samplers import Sampler, SamplerState, base
from ddpm_jax.diffusion.samplers.first_order import mean
from ddpm_jax.diffusion.samplers.loop import sample
from ddpm_jax.diffusion.schedules import (
    Schedule,
    Times,
    alpha_sigma,
    check_times,
    time_of,
)
from ddpm_jax.diffusion.timesteps import Timesteps


def inversion(schedule: Schedule, iterations: int = 1) -> Sampler:
    """DDIM towards noise, for increasing times (Song et al. 2021, Section 4.3).

    A step from t to s > t is the inverse of DDIM's from s to t, whose eps is that of
    the unknown x_s. The network is asked at s about x_t in its stead, as diffusers
    does, and then about the x_s that this gives, which makes the inverse more exact.

    Args:
      schedule: the noise schedule.
      iterations: network calls a step, at least 1; three are nearly exact but for
        long steps in much noise.

    Raises:
      ValueError: for no iterations.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")

    def step(denoiser, keys, state, t, s):
        def closer(_, guess):
            eps = denoiser(guess[0], s).eps
            prediction = from_eps(schedule, state.x, t, eps)
            return mean(schedule, prediction, t, s, 0.0), prediction

        start = state.x, Prediction(state.x, state.x)
        x_s, prediction = jax.lax.fori_loop(0, iterations, closer, start)
        return SamplerState(x_s), prediction

    return Sampler(SamplerState, step, calls=iterations)


def encode(
    denoiser: Denoiser,
    schedule: Schedule,
    images: Images,
    timesteps: Timesteps,
    iterations: int = 1,
) -> Images:
    """Returns the noise from which DDIM makes these images, up to its step size.

    Args:
      denoiser: (x_t, t) -> Prediction, without clipping: what is clipped cannot be
        inverted.
      schedule: the noise schedule.
      images: in [-1, 1], [batch, ...].
      timesteps: those that `samplers.ddim` will visit, noisiest first.
      iterations: see `inversion`.

    Raises:
      ValueError: for no iterations, and for times that the schedule has not.
    """
    check_times(schedule, timesteps)
    keys = jax.random.split(jax.random.key(0), len(images))  # nothing is drawn
    upward = inversion(schedule, iterations)
    return sample(upward, denoiser, keys, images, timesteps[::-1])[0]


def slerp(a: Images, b: Images, weight: Float[Array | np.ndarray, " batch"]) -> Images:
    """Interpolates noise on the sphere, from a to b (Song et al. 2021, Eq. 67).

    Args:
      a: noise, [batch, ...].
      b: noise, [batch, ...].
      weight: how far, 0 ... 1, for each, [batch].
    """
    axes = tuple(range(1, a.ndim))

    def dot(x, y):
        return jnp.sum(x * y, axis=axes, keepdims=True)

    cosine = dot(a, b) / jnp.sqrt(dot(a, a) * dot(b, b))
    inside = jnp.abs(cosine) < 1  # at ±1 the gradient of arccos is infinite
    angle = jnp.arccos(jnp.where(inside, cosine, jnp.sign(cosine)))
    weight = jnp.reshape(weight, angle.shape)
    apart = jnp.abs(jnp.sin(angle)) > 1e-4  # neither parallel nor opposite
    sine = jnp.where(apart, jnp.sin(angle), 1.0)

    def share(w):
        return jnp.where(apart, jnp.sin(w * angle) / sine, w)

    return share(1 - weight) * a + share(weight) * b


def perturb(schedule: Schedule, keys: Array, images: Images, t: Times) -> Images:
    """Draws x_t of given images: where SDEdit begins (Meng et al. 2022).

    Args:
      schedule: the noise schedule.
      keys: one per image, [batch].
      images: in [-1, 1], [batch, ...].
      t: the time to begin at; the later, the freer the result.
    """
    return diffuse(schedule, images, t, base.standard_normal(keys, images))


def inpaint(
    inner: Sampler,
    schedule: Schedule,
    known: Images,
    mask: Bool[Array | np.ndarray, "..."],
) -> Sampler:
    """Inpainting by replacement: what is known is put back after every step.

    At time s it has the noise of s (Lugmayr et al. 2022, Eq. 8), and at 0 none, so that
    it is returned exactly.

    Args:
      inner: any sampler.
      schedule: the noise schedule.
      known: the images, in [-1, 1], [batch, ...].
      mask: where to paint, in a shape that broadcasts to theirs.
    """

    def step(denoiser, keys, state, t, s):
        state, prediction = inner.step(denoiser, keys, state, t, s)
        there = perturb(schedule, _others(keys), known, s)
        shown = jnp.where(mask, prediction.x_0, known)
        x = jnp.where(mask, state.x, there)
        return SamplerState(x, state.memory), prediction._replace(x_0=shown)

    return inner._replace(step=step)


def resample(inner: Sampler, schedule: Schedule) -> Sampler:
    """Lets a sampler walk upward too, adding noise: RePaint (Lugmayr et al. 2022).

    After inpainting by replacement, the painted part does not know of what was put back
    beside it. Noised again and denoised again, they grow together. A multistep sampler
    begins anew after a step upward, which asks no network and predicts nothing (zeros).

    Args:
      inner: a sampler, such as `inpaint` gives.
      schedule: the noise schedule.
    """

    def step(denoiser, keys, state, t, s):
        def up():
            ratio = alpha_sigma(schedule, s)[0] / alpha_sigma(schedule, t)[0]
            std = jnp.sqrt(forward_variance(schedule, s, t))
            x_s = ratio * state.x + std * base.standard_normal(keys, state.x)
            nothing = jax.eval_shape(down)[1]
            return inner.init(x_s), jax.tree.map(jnp.zeros_like, nothing)

        def down():
            return inner.step(denoiser, keys, state, t, s)

        return jax.lax.cond(jnp.asarray(s) > t, up, down)

    return inner._replace(step=step)


def noise_level(images: Images) -> Float[Array, " batch"]:
    """Estimates the standard deviation of noise in images, [batch, height, width, c].

    The median of the finest diagonal differences, which smooth pictures hardly have
    (Donoho & Johnstone 1994, with the Haar wavelet).
    """
    h, w = (size - size % 2 for size in images.shape[1:3])
    x = images[:, :h, :w]
    diagonal = x[:, ::2, ::2] - x[:, 1::2, ::2] - x[:, ::2, 1::2] + x[:, 1::2, 1::2]
    magnitude = jnp.abs(diagonal / 2).reshape(len(x), -1)
    return jnp.median(magnitude, axis=1) / 0.6745  # the quartile of a normal


def time_of_noise(schedule: Schedule, std) -> Float[Array, "..."]:
    """Returns the time, within 1 ... T, at which sigma_t / alpha_t is `std`.

    A noisy image y = x_0 + std z is there alpha_t y, and a sampler that begins with it
    at t takes the noise off.
    """
    return time_of(schedule, -2 * jnp.log(jnp.asarray(std)))


def _others(keys):
    """Keys for other noise than the step's own."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, 1)
