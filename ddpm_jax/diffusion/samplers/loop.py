"""The sampling loop: one `lax.scan` over the pairs (t, s), whatever the sampler.

Every image has its own key, so image i is the same in any batch, on any number of
devices. The compiled program has one size for 10 and for 1000 steps.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ddpm_jax.diffusion.denoisers import Denoiser, condition, from_network
from ddpm_jax.diffusion.process import Images, Prediction
from ddpm_jax.diffusion.samplers.base import Sampler, SamplerState
from ddpm_jax.diffusion.schedules import Schedule, check_times
from ddpm_jax.diffusion.timesteps import Timesteps


def nothing(state: SamplerState, prediction: Prediction) -> None:
    """Observes nothing: the loop keeps only where it is."""


def sample(
    sampler: Sampler,
    denoiser: Denoiser,
    keys: Array,
    x_T: Images,
    timesteps: Timesteps,
    observe: Callable[[SamplerState, Prediction], Any] = nothing,
) -> tuple[Images, Any]:
    """Walks from x_T along `timesteps` with one compiled step.

    Args:
      sampler: the sampler, such as `samplers.ddim(schedule)`.
      denoiser: (x_t, t) -> Prediction.
      keys: one key per image, [batch]; step i uses each key folded with i.
      x_T: images at the first time, [batch, ...].
      timesteps: the times, [steps + 1], such as `timesteps.trailing(schedule, 50)`;
        decreasing, but for samplers that walk upward too (see `editing`).
      observe: (state at s, prediction at t) -> what to keep of a step; memory grows
        with the number of steps only by what it returns.

    Returns:
      The images at the last time, and what `observe` gave, stacked over steps.
    """

    state = sampler.init(x_T)
    state, trace = walk(sampler, denoiser, keys, state, visits_of(timesteps), observe)
    return state.x, trace


def visits_of(timesteps: Timesteps) -> tuple[Array, Array, Array]:
    """Returns (i, t, s) of all steps: their numbers, and from where to where."""
    times = jnp.asarray(timesteps)
    return jnp.arange(len(times) - 1), times[:-1], times[1:]


def walk(
    sampler: Sampler,
    denoiser: Denoiser,
    keys: Array,
    state: SamplerState,
    visits: tuple[Array, Array, Array],
    observe: Callable[[SamplerState, Prediction], Any] = nothing,
) -> tuple[SamplerState, Any]:
    """Walks on from where a sampler is: `sample` may be cut into parts.

    Args:
      sampler: the sampler.
      denoiser: (x_t, t) -> Prediction.
      keys: one key per image, [batch]; step i uses each key folded with i.
      state: where the sampler is, of `sampler.init` at the first time.
      visits: (i, t, s) of some steps, see `visits_of`.
      observe: see `sample`.

    Returns:
      Where the sampler is then, and what `observe` gave, stacked over these steps.
    """

    def step(state, visit):
        i, t, s = visit
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        state, prediction = sampler.step(denoiser, step_keys, state, t, s)
        return state, observe(state, prediction)

    # Differentiated, a step is computed again: only its state is kept.
    step = jax.checkpoint(step, prevent_cse=False)
    return jax.lax.scan(step, state, visits)


def draw_prior(keys: Array, image_shape: tuple[int, ...]) -> tuple[Images, Array]:
    """Draws x_T from one key per image, [batch]; returns it and keys for the steps."""
    prior_keys, step_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    x_T = jax.vmap(lambda key: jax.random.normal(key, image_shape))(prior_keys)
    return x_T, step_keys


def make_denoiser(
    apply: Callable,
    schedule: Schedule,
    predicts: str = "eps",
    transform: Callable[[Denoiser], Denoiser] = lambda denoiser: denoiser,
) -> Callable[..., Denoiser]:
    """Returns (params, cond=None) -> the denoiser that samplers call as (x_t, t).

    Args:
      apply: the network's apply function, (params, x_t, index, cond, None) -> output.
      schedule: the noise schedule.
      predicts: what the network predicts: "eps", "x_0" or "v".
      transform: Denoiser -> Denoiser, such as clipping and guidance.
    """

    def denoiser_of(params, cond=None):
        return condition(
            transform(from_network(apply, params, schedule, predicts)), cond
        )

    return denoiser_of


def make_sample_fn(
    apply: Callable,
    schedule: Schedule,
    sampler: Sampler,
    timesteps: Timesteps,
    image_shape: tuple[int, ...],
    predicts: str = "eps",
    transform: Callable[[Denoiser], Denoiser] = lambda denoiser: denoiser,
) -> Callable[..., Images]:
    """Puts a network, a schedule and a sampler together to a function that samples.

    Args:
      apply: the network's apply function, (params, x_t, index, cond, None) -> output.
      schedule: the noise schedule.
      sampler: the sampler.
      timesteps: the times to visit.
      image_shape: (height, width, channels).
      predicts: what the network predicts: "eps", "x_0" or "v".
      transform: Denoiser -> Denoiser, such as clipping and guidance.

    Returns:
      sample_fn(params, keys [batch], cond=None) -> images [batch, height, width,
      channels], about [-1, 1]. It is pure: jit it, shard it, differentiate it.

    Raises:
      ValueError: for times that the schedule has not.
    """
    check_times(schedule, timesteps)
    denoiser_of = make_denoiser(apply, schedule, predicts, transform)

    def sample_fn(params, keys, cond=None):
        x_T, step_keys = draw_prior(keys, image_shape)
        denoiser = denoiser_of(params, cond)
        images, _ = sample(sampler, denoiser, step_keys, x_T, timesteps)
        return images

    return sample_fn
