"""DPM-Solver++, multistep: DDIM along an x_0 extrapolated from earlier predictions.

In half the log-SNR as time, the exact solution over a step of length h is an average of
the predicted x_0 under weights that grow like its exponential (Lu et al. 2022, Eq. 8).
Holding x_0 still gives DDIM. With u = 0 ... 1 along the step, DPM-Solver++ takes a
polynomial through the last predictions instead,

    x_0(u) = x_0 + c_1 u + c_2 u^2,

so that its step is DDIM's along D = x_0 + w_1 c_1 + w_2 c_2, where w_k is the average
of u^k. The solution of the SDE (η = 1) is the ancestral step along a D whose weights
grow twice as fast. Between steps of very different lengths that extrapolates badly.

A missing past counts as infinitely far away: the first step is of first order and the
second of second. The last, to s = 0, where h is infinite, is of first order too.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.diffusion.process import Images, from_x_0
from ddpm_jax.diffusion.samplers.base import (
    Past,
    Sampler,
    SamplerState,
    no_past,
    remember,
)
from ddpm_jax.diffusion.samplers.first_order import check_eta, move
from ddpm_jax.diffusion.schedules import Schedule, Times, log_snr_change


def dpmpp_2m(schedule: Schedule, eta: float = 0.0) -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2), and SDE-DPM-Solver++(2M).

    Args:
      schedule: the noise schedule.
      eta: 0 solves the ODE, 1 the SDE; between them the noise is that of `ddim`.
    """
    return _multistep(schedule, eta, 1, second_order)


def dpmpp_3m(schedule: Schedule, eta: float = 0.0) -> Sampler:
    """DPM-Solver++(3M): a parabola through three predictions (code of Lu et al.).

    The authors' code weighs u^2 half as much as its average, which leaves second order;
    here it has its whole weight, and the order is 3.

    Args:
      schedule: the noise schedule.
      eta: 0 solves the ODE, 1 the SDE; between them the noise is that of `ddim`.
    """
    return _multistep(schedule, eta, 2, third_order)


def second_order(x_0: Images, past: Past, spans: Array, growth: float) -> Images:
    """Returns D of a line, with w_1 = 1/2, its value for short steps.

    Args:
      x_0: the prediction at t.
      past: at least one earlier prediction.
      spans: from t to s, and back between the earlier times, in half the log-SNR.
      growth: of the weights; this order does not ask.
    """
    (q, *_) = ratios(past.times, spans)
    return x_0 + q / 2 * (x_0 - past.values[0])


def third_order(x_0: Images, past: Past, spans: Array, growth: float) -> Images:
    """Returns D of a parabola, for two earlier predictions; see `second_order`."""
    q, q_before = ratios(past.times, spans)
    slope = q * (x_0 - past.values[0])
    slope_before = q_before * (past.values[0] - past.values[1])
    share = q_before / jnp.maximum(q + q_before, jnp.finfo(q.dtype).tiny)
    change = share * (slope - slope_before)
    w_1, w_2 = averages(growth * spans[0])
    return x_0 + w_1 * (slope + change) + w_2 * q * change


def averages(length: Float[Array, ""]) -> tuple[Array, Array]:
    """Returns w_1 and w_2, the averages of u and u^2 under exp(length u)."""
    total = 1 / -jnp.expm1(-length)
    w_1 = total - 1 / length
    w_2 = total - 2 / length * w_1
    is_short = length < 0.02  # where the terms cancel, and a series does
    return (
        jnp.where(is_short, 1 / 2 + length / 12 - length**3 / 720, w_1),
        jnp.where(
            is_short,
            1 / 3 + length / 12 + length**2 / 360 - length**3 / 720,
            w_2,
        ),
    )


def spans_of(schedule: Schedule, past: Past, t: Times, s: Times) -> Float[Array, " k"]:
    """Returns the lengths from t to s, and back between earlier times, [order]."""
    times = jnp.concatenate([jnp.stack([jnp.asarray(s), jnp.asarray(t)]), past.times])
    return log_snr_change(schedule, times[:-1], times[1:]) / 2


def ratios(times: Array, spans: Array) -> Float[Array, " past"]:
    """Returns h over each earlier span; 0 where there is none, or h is infinite."""
    usable = (times > 0) & jnp.isfinite(spans[0])
    return jnp.where(usable, spans[0] / spans[1:], 0.0)


def _multistep(schedule, eta: float, length: int, extrapolate: Callable) -> Sampler:
    check_eta(eta)

    def step(denoiser, keys, state, t, s):
        prediction, past = denoiser(state.x, t), state.memory
        spans = spans_of(schedule, past, t, s)
        x_0 = extrapolate(prediction.x_0, past, spans, 1 + eta**2)
        along = from_x_0(schedule, state.x, t, x_0)
        x_s = move(schedule, along, t, s, eta, keys)
        return SamplerState(x_s, remember(past, prediction.x_0, t)), prediction

    return Sampler(lambda x_T: SamplerState(x_T, no_past(x_T, length)), step)
