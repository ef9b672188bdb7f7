"""What a sampler is, where it is, and what it remembers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ddpm_jax.diffusion.process import Images, Prediction
from ddpm_jax.diffusion.schedules import Times


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
        scalar times s < t; of `editing`, also s > t.
      calls: network calls of a step; the last one, to s = 0, makes one.
    """

    init: Callable[[Images], SamplerState]
    step: Callable[..., tuple[SamplerState, Prediction]]
    calls: int = 1


class Past(NamedTuple):
    """What was predicted at earlier times, the latest first.

    Attributes:
      values: predictions of x_0 or eps, [length, batch, ...].
      times: when, [length]; 0, which no step begins at, where there is none yet.
    """

    values: Images
    times: Int[Array, " past"]


def no_past(x: Images, length: int) -> Past:
    """The memory of `length` predictions before the first one."""
    return Past(jnp.stack([jnp.zeros_like(x)] * length), jnp.zeros(length, jnp.int32))


def remember(past: Past, value: Images, t: Times) -> Past:
    """Puts a prediction first and drops the oldest."""

    def push(new, old):
        return jnp.concatenate([new[None], old[:-1]])

    times = jnp.asarray(t, past.times.dtype)
    return Past(push(value, past.values), push(times, past.times))


def standard_normal(keys: Array, like: Images) -> Images:
    """Standard normal noise in the shape of `like`, each example from its own key."""
    return jax.vmap(lambda key, x: jax.random.normal(key, x.shape, x.dtype))(keys, like)
