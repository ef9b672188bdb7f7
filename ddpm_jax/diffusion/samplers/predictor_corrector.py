"""UniPC: DPM-Solver++(2M) whose every step is corrected once its end is known.

A step from u to t is taken along a line through two predictions, as in `dpm_solver`.
Once the network has been asked at t, the same step is taken again, along a parabola
through all three predictions (Zhao et al. 2023, Eq. 3 and 10 with B(h) = e^h - 1),

    D = x_0(u) + w_1 (ahead - change) + w_2 change,

with ahead = x_0(t) - x_0(u), and the next step starts from there. The prediction is
kept as it is, so a step remains one call. The corrector raises the order from 2 to 3.
The first correction has two predictions only, and w_1 = 1/2 as in the authors' code.
The last step, to s = 0, is of first order.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.process import Images, from_x_0
from ddpm_jax.diffusion.samplers.base import (
    Past,
    Sampler,
    SamplerState,
    no_past,
    remember,
)
from ddpm_jax.diffusion.samplers.dpm_solver import (
    averages,
    ratios,
    second_order,
    spans_of,
)
from ddpm_jax.diffusion.samplers.first_order import move
from ddpm_jax.diffusion.schedules import Schedule


class LastStep(NamedTuple):
    """What a step needs to be taken again.

    Attributes:
      x: the images where it began.
      past: the predictions of x_0 there and before.
    """

    x: Images
    past: Past


def unipc(schedule: Schedule) -> Sampler:
    """UniPC-2: predictor and corrector (Zhao et al. 2023, Algorithm 1)."""

    def step(denoiser, keys, state, t, s):
        prediction, last = denoiser(state.x, t), state.memory
        x_t = jax.lax.cond(
            last.past.times[0] > 0,
            lambda: _correct(schedule, last, prediction.x_0, t),
            lambda: state.x,
        )
        spans = spans_of(schedule, last.past, t, s)
        x_0 = second_order(prediction.x_0, last.past, spans, 1.0)
        x_s = move(schedule, from_x_0(schedule, x_t, t, x_0), t, s)
        last = LastStep(x_t, remember(last.past, prediction.x_0, t))
        return SamplerState(x_s, last), prediction

    def init(x_T):
        return SamplerState(x_T, LastStep(jnp.zeros_like(x_T), no_past(x_T, 2)))

    return Sampler(init, step)


def _correct(schedule, last, x_0, t):
    """Takes the last step again, now that x_0 at its end is predicted."""
    u, start = last.past.times[0], last.past.values[0]
    before = Past(last.past.values[1:], last.past.times[1:])
    spans = spans_of(schedule, before, u, t)
    (q,) = ratios(before.times, spans)
    w_1, w_2 = averages(spans[0])
    w_1 = jnp.where(q > 0, w_1, 0.5)
    ahead = x_0 - start
    change = q / (1 + q) * (ahead - q * (start - before.values[0]))
    along = start + w_1 * (ahead - change) + w_2 * change
    return move(schedule, from_x_0(schedule, last.x, u, along), u, t)
