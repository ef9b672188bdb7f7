"""Which times a sampler visits: a short array instead of a stride in the sampler.

Every function returns the times from the noisiest down to 0, NumPy int32, strictly
decreasing; a sampler walks its consecutive pairs (t, s). Ours count from t = 1, one
noising step, and end in 0, clean data; the index i of the papers' code is t - 1.
`trailing(schedule, T)` visits every time, as Ho et al. (2020) do.
"""

import numpy as np
from jaxtyping import Float, Int

from ddpm_jax.diffusion.schedules import Schedule

Timesteps = Int[np.ndarray, "_"]


def trailing(schedule: Schedule, num_steps: int) -> Timesteps:
    """Even steps counted down from T, so that T itself is visited (Lin et al. 2024).

    Args:
      schedule: the noise schedule, of T noising steps.
      num_steps: how many network calls, 1 ... T.
    """
    num_times = _check(schedule, num_steps)
    times = np.round(np.arange(num_steps, 0, -1) * (num_times / num_steps))
    return _descending(times)


def leading(schedule: Schedule, num_steps: int) -> Timesteps:
    """Even steps counted up from t = 1; T is not visited (Song et al. 2021, uniform).

    Args:
      schedule: the noise schedule, of T noising steps.
      num_steps: how many network calls, 1 ... T.
    """
    num_times = _check(schedule, num_steps)
    return _descending(1 + np.arange(num_steps) * (num_times // num_steps))


def linspace(schedule: Schedule, num_steps: int) -> Timesteps:
    """Evenly spaced from t = 1 to t = T, both visited (Nichol & Dhariwal 2021).

    Args:
      schedule: the noise schedule, of T noising steps.
      num_steps: how many network calls, 1 ... T; a single one is made at T.
    """
    num_times = _check(schedule, num_steps)
    return _descending(np.round(np.linspace(num_times, 1, num_steps)))


def quadratic(schedule: Schedule, num_steps: int, fraction: float = 0.8) -> Timesteps:
    """Quadratically spaced up to 0.8 T: dense near the data (Song et al. 2021, CIFAR).

    The smallest times coincide when rounded down to integers; each is visited once, so
    there can be fewer network calls than `num_steps`.

    Args:
      schedule: the noise schedule, of T noising steps.
      num_steps: how many times to place, 1 ... T.
      fraction: the noisiest time as a fraction of T, in (0, 1].
    """
    num_times = _check(schedule, num_steps)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    indices = np.linspace(0, np.sqrt(fraction * num_times), num_steps) ** 2
    return _descending(1 + np.minimum(indices.astype(int), num_times - 1))


def log_snr_uniform(schedule: Schedule, num_steps: int) -> Timesteps:
    """Evenly spaced in the log-SNR, from t = T to t = 1 (Lu et al. 2022a).

    Rounded to the nearest times; where several round to one, it is visited once, so
    there can be fewer network calls than `num_steps`.

    Args:
      schedule: the noise schedule, of T noising steps.
      num_steps: how many times to place, 1 ... T.
    """
    _check(schedule, num_steps)
    table = _finite(schedule)
    return _nearest(table, np.linspace(table[-1], table[0], num_steps))


def karras(
    schedule: Schedule,
    num_steps: int,
    rho: float = 7.0,
    sigma_max: float = 80.0,
    sigma_min: float = 0.002,
) -> Timesteps:
    """Evenly spaced in the ρ-th root of the noise level (Karras et al. 2022, Eq. 5).

    The noise level sigma / alpha goes from `sigma_max` to `sigma_min`, as far as the
    schedule goes; rounded as in `log_snr_uniform`. A walk from noise needs a
    `sigma_max` at which hardly any signal is left, as at 80.

    Args:
      schedule: the noise schedule, of T noising steps.
      num_steps: how many times to place, 1 ... T.
      rho: 1 is even in the noise level; the larger, the denser near the data.
      sigma_max: noise level to begin at.
      sigma_min: noise level before the last step.
    """
    _check(schedule, num_steps)
    if not (rho > 0 and sigma_max > sigma_min > 0):
        raise ValueError("rho must be positive, and 0 < sigma_min < sigma_max")
    table = _finite(schedule)
    levels = np.clip([sigma_max, sigma_min], *np.exp(-table[[0, -1]] / 2))
    first, last = levels ** (1 / rho)
    return _nearest(table, -2 * rho * np.log(np.linspace(first, last, num_steps)))


def flow(schedule: Schedule, num_steps: int) -> Timesteps:
    """Evenly spaced in flow time τ = α / (α + σ), from 0 towards 1 (Liu et al. 2023).

    Rounded as in `log_snr_uniform`; pure noise is at T.

    Args:
      schedule: the noise schedule, of T noising steps.
      num_steps: how many network calls, 1 ... T.
    """
    _check(schedule, num_steps)
    time = np.arange(num_steps) / num_steps
    with np.errstate(divide="ignore"):  # -inf at pure noise
        return _nearest(_finite(schedule), 2 * (np.log(time) - np.log1p(-time)))


def custom(schedule: Schedule, times) -> Timesteps:
    """The given times, noisiest first; 0 is added at the end if it is not there.

    Raises:
      ValueError: if they are not whole, strictly decreasing and within 0 ... T, or
        there is none but 0.
    """
    given, num_times = np.asarray(times), schedule.num_steps
    if given.ndim != 1 or given.size == 0 or not np.issubdtype(given.dtype, np.integer):
        raise ValueError("times must be a non-empty list of whole numbers")
    falls = np.all(given[1:] < given[:-1])
    if not (falls and 1 <= given[0] <= num_times and given[-1] >= 0):
        raise ValueError(
            f"times must decrease strictly within {num_times} ... 0, from 1 or more"
        )
    return _descending(given)


def from_time(timesteps: Timesteps, t: int) -> Timesteps:
    """The part of a walk that begins at time t, which need not be one of its own.

    Raises:
      ValueError: if t is below 1, where there is nothing to walk.
    """
    if t < 1:
        raise ValueError(f"a walk begins at time 1 or later, not at {t}")
    return _descending([t, *timesteps[timesteps < t]])


def resampled(timesteps: Timesteps, jump_length: int, repeats: int) -> Timesteps:
    """A walk that goes up again and again (RePaint; Lugmayr et al. 2022, Appendix B).

    After each `jump_length` steps it jumps back up by as many, until that stretch has
    been gone down `repeats` times. For samplers of `editing.resample`.

    Args:
      timesteps: decreasing times, ending in 0.
      jump_length: steps between jumps, and of a jump.
      repeats: how often each stretch but the noisiest is gone down, 1 for no jumps.
    """
    if jump_length < 1 or repeats < 1:
        raise ValueError("jump_length and repeats must be at least 1")
    upward = timesteps[-2::-1]  # the places of the walk, from the data's side
    left = dict.fromkeys(range(0, len(upward) - jump_length, jump_length), repeats - 1)
    walk, place = [], len(upward)
    while place:
        place -= 1
        walk.append(upward[place])
        if left.get(place):
            left[place] -= 1
            place += jump_length
            walk.append(upward[place])
    return np.array([*walk, 0], np.int32)


def _check(schedule: Schedule, num_steps: int) -> int:
    """Returns T."""
    if not 1 <= num_steps <= schedule.num_steps:
        raise ValueError(
            f"num_steps must be 1 ... {schedule.num_steps}, the schedule's number of "
            f"noising steps, got {num_steps}"
        )
    return schedule.num_steps


def _finite(schedule: Schedule) -> Float[np.ndarray, " T"]:
    """λ_1 ... λ_T; a last one of -inf counts as far from its neighbour as that does."""
    table = np.asarray(schedule.log_snr[1:], np.float64)
    finite = table[np.isfinite(table)]
    if len(finite) == len(table):
        return table
    return np.append(finite, 2 * finite[-1] - finite[-2] if len(finite) > 1 else 0.0)


def _nearest(table: Float[np.ndarray, " T"], levels) -> Timesteps:
    """The times whose log-SNR is nearest to the levels."""
    middles = (table[1:] + table[:-1]) / 2
    return _descending(1 + np.searchsorted(-middles, -levels))


def _descending(times) -> Timesteps:
    """Sorts, drops repetitions and ends in 0."""
    return np.unique(np.append(times, 0).astype(np.int32))[::-1].copy()


TIMESTEPS = {
    "trailing": trailing,
    "leading": leading,
    "linspace": linspace,
    "quadratic": quadratic,
    "log_snr_uniform": log_snr_uniform,
    "karras": karras,
    "flow": flow,
    "custom": custom,
}
