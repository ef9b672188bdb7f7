"""Which noise levels a network is trained at: densities of the log-SNR λ.

A density is an example's time as a function of a number u, uniform in [0, 1): the more
probable a level, the more of these lead to it. Times are whole, or lie between whole
ones where the density is one of λ; levels beyond the schedule's are not drawn.

| name | λ | source |
|---|---|---|
| `uniform` | as the schedule has it at t ~ U{1 … T} | Ho et al. 2020 |
| `uniform_log_snr` | even between the schedule's ends | Kingma et al. 2021 |
| `normal` | N(mean, std²) | |
| `edm` | N(2.4, 2.4²), which is ln σ ~ N(-1.2, 1.2²) | Karras et al. 2022, Table 1 |
| `edm2` | N(1.6, 3.2²) | Karras et al. 2024, at 64x64 |
| `ect` | N(2.2, 4²) | Geng et al. 2024 |
| `logit_normal` | N(0, 2²), a logit-normal flow time | Esser et al. 2024 |
| `jit` | N(-1.6, 1.6²) | Li & He 2025, up to 256x256 |

With one u for each example from its own key, levels of a batch are independent.
`spread` gives numbers that are spread evenly over any run of examples, whatever part of
it a device has: the golden ratio's multiples (Kingma et al. spread theirs by i / B).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.diffusion.schedules import Schedule, Times, time_of


class Density(NamedTuple):
    """How noise levels are drawn.

    Attributes:
      draw: (schedule, key) -> the time of one example.
      quantile: (schedule, u [batch]) -> times [batch], of which `draw` gives one for a
        uniform u.
    """

    draw: Callable[[Schedule, Array], Array]
    quantile: Callable[[Schedule, Float[Array, " batch"]], Times]


def uniform() -> Density:
    """Every whole time as often."""

    def draw(schedule, key):
        return jax.random.randint(key, (), 1, schedule.num_steps + 1)

    def quantile(schedule, u):
        times = 1 + jnp.floor(u * schedule.num_steps).astype(jnp.int32)
        return jnp.minimum(times, schedule.num_steps)

    return Density(draw, quantile)


def uniform_log_snr() -> Density:
    """Every λ between the ends of the schedule as often."""

    def level(u, low, high):
        return low + u * (high - low)

    return _of_levels(level)


def normal(mean: float, std: float) -> Density:
    """A normal distribution of λ, within the ends of the schedule.

    Args:
      mean: its mean.
      std: its standard deviation.

    Raises:
      ValueError: for a standard deviation that is not positive.
    """
    if not 0 < std < float("inf"):
        raise ValueError(f"std must be positive, got {std}")

    def level(u, low, high):
        below, above = (
            jax.scipy.stats.norm.cdf((end - mean) / std) for end in (low, high)
        )
        return mean + std * jax.scipy.special.ndtri(below + u * (above - below))

    return _of_levels(level)


DENSITIES = {
    "uniform": uniform,
    "uniform_log_snr": uniform_log_snr,
    "normal": normal,
    "edm": functools.partial(normal, 2.4, 2.4),
    "edm2": functools.partial(normal, 1.6, 3.2),
    "ect": functools.partial(normal, 2.2, 4.0),
    "logit_normal": functools.partial(normal, 0.0, 2.0),
    "jit": functools.partial(normal, -1.6, 1.6),
}


def spread(key: Array, ids: Array | np.ndarray) -> Float[Array, " batch"]:
    """Returns a number in [0, 1] for each example, evenly spread over successive ids.

    Args:
      key: of the step; each key shifts all numbers by another amount.
      ids: uint32 [batch].
    """
    start = jax.random.bits(key, (), jnp.uint32)
    bits = start + ids.astype(jnp.uint32) * np.uint32(2654435769)  # 2^32 / the ratio
    return bits.astype(jnp.float32) / 2.0**32


def _of_levels(level) -> Density:
    """The density of (u, low, high) -> λ within these ends."""

    def quantile(schedule, u):
        table = jnp.asarray(schedule.log_snr)[1:]
        low = jnp.where(jnp.isfinite(table[-1]), table[-1], table[-2])
        return time_of(schedule, jnp.clip(level(u, low, table[0]), low, table[0]))

    def draw(schedule, key):
        return quantile(schedule, jax.random.uniform(key))

    return Density(draw, quantile)
