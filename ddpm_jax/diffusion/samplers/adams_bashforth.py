"""PLMS: DDIM along an eps extrapolated from earlier ones (Liu et al. 2022).

Pseudo linear multistep methods put the combination of Adams and Bashforth,

    eps' = (55 eps_0 - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24           (Eq. 9)

in the place of eps in DDIM's step. Those are the weights of a cubic through four
predictions, averaged over the step, for even steps; here they are computed for whatever
times were visited. Where fewer are known, the polynomial is of lower degree, so that a
step is always one call (Zhang & Chen 2023 call that improved PNDM), while the paper
begins with three Runge-Kutta steps of four calls. In DDIM's step eps counts by noise
level, not by time, so the order of convergence is 2, as the paper proves. The last
step, to s = 0, returns the predicted x_0.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from ddpm_jax.diffusion.samplers.base import (
    Past,
    Sampler,
    SamplerState,
    no_past,
    remember,
)
from ddpm_jax.diffusion.samplers.first_order import turn
from ddpm_jax.diffusion.schedules import Schedule, Times


def plms(schedule: Schedule, order: int = 4) -> Sampler:
    """Pseudo linear multistep, of PNDM (Liu et al. 2022).

    Args:
      schedule: the noise schedule.
      order: how many predictions are combined, 2 ... 4.

    Raises:
      ValueError: for another order.
    """
    if order not in (2, 3, 4):
        raise ValueError(f"order must be 2, 3 or 4, got {order}")

    def step(denoiser, keys, state, t, s):
        prediction = denoiser(state.x, t)
        past = state.memory
        known = Past(
            jnp.concatenate([prediction.eps[None], past.values]),
            jnp.append(jnp.asarray(t), past.times),
        )
        weights = adams_bashforth(known.times, t, s).astype(state.x.dtype)
        eps = sum(w * eps for w, eps in zip(weights, known.values, strict=True))
        x_s = turn(schedule, prediction, t, s, eps)
        x_s = jnp.where(jnp.asarray(s) > 0, x_s, prediction.x_0)
        past = remember(past, prediction.eps, t)
        return SamplerState(x_s, past), prediction

    return Sampler(lambda x_T: SamplerState(x_T, no_past(x_T, order - 1)), step)


def adams_bashforth(
    nodes: Num[Array, " order"], t: Times, s: Times
) -> Float[Array, " order"]:
    """Returns the weights of values at the nodes in their average over s ... t.

    Args:
      nodes: distinct times, the first t itself; 0 where there is none.
      t: where the interval begins.
      s: where it ends.
    """
    there = nodes > 0
    points, _ = np.polynomial.legendre.leggauss(2)  # the mean of two, exact for cubics
    x = (t + (s - t) * (points + 1) / 2)[:, None]

    def weight(j):
        others = there & (np.arange(len(nodes)) != j)
        gaps = jnp.where(others, nodes[j] - nodes, 1)[None]
        lagrange = jnp.where(others[None], (x - nodes[None]) / gaps, 1.0).prod(axis=1)
        return jnp.where(there[j], lagrange.mean(), 0.0)

    return jnp.stack([weight(j) for j in range(len(nodes))])
