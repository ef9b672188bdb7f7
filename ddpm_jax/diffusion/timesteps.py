"""Which times a sampler visits: a short array instead of a stride in the sampler.

Every function returns the times from the noisiest down to 0, NumPy int32, strictly
decreasing; a sampler walks its consecutive pairs (t, s). Ours count from t = 1, one
noising step, and end in 0, clean data; the index i of the papers' code is t - 1.
`trailing(T, T)` visits every time, as Ho et al. (2020) do.
"""

import numpy as np
from jaxtyping import Int

Timesteps = Int[np.ndarray, " times"]


def trailing(num_times: int, num_steps: int) -> Timesteps:
    """Even steps counted down from T, so that T itself is visited (Lin et al. 2024).

    Args:
      num_times: T, the number of noising steps of the schedule.
      num_steps: how many network calls, 1 ... T.
    """
    _check(num_times, num_steps)
    times = np.round(np.arange(num_steps, 0, -1) * (num_times / num_steps))
    return _descending(times)


def leading(num_times: int, num_steps: int) -> Timesteps:
    """Even steps counted up from t = 1; T is not visited (Song et al. 2021, uniform).

    Args:
      num_times: T, the number of noising steps of the schedule.
      num_steps: how many network calls, 1 ... T.
    """
    _check(num_times, num_steps)
    return _descending(1 + np.arange(num_steps) * (num_times // num_steps))


def linspace(num_times: int, num_steps: int) -> Timesteps:
    """Evenly spaced from t = 1 to t = T, both visited (Nichol & Dhariwal 2021).

    Args:
      num_times: T, the number of noising steps of the schedule.
      num_steps: how many network calls, 1 ... T; a single one is made at T.
    """
    _check(num_times, num_steps)
    return _descending(np.round(np.linspace(num_times, 1, num_steps)))


def quadratic(num_times: int, num_steps: int, fraction: float = 0.8) -> Timesteps:
    """Quadratically spaced up to 0.8 T: dense near the data (Song et al. 2021, CIFAR).

    The smallest times coincide when rounded down to integers; each is visited once, so
    there can be fewer network calls than `num_steps`.

    Args:
      num_times: T, the number of noising steps of the schedule.
      num_steps: how many times to place, 1 ... T.
      fraction: the noisiest time as a fraction of T, in (0, 1].
    """
    _check(num_times, num_steps)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    indices = np.linspace(0, np.sqrt(fraction * num_times), num_steps) ** 2
    return _descending(1 + np.minimum(indices.astype(int), num_times - 1))


def custom(num_times: int, times) -> Timesteps:
    """The given times, noisiest first; 0 is added at the end if it is not there.

    Raises:
      ValueError: if they are not whole, strictly decreasing and within 0 ... T.
    """
    given = np.asarray(times)
    if given.ndim != 1 or given.size == 0 or not np.issubdtype(given.dtype, np.integer):
        raise ValueError("times must be a non-empty list of whole numbers")
    if np.any(np.diff(given) >= 0) or given[0] > num_times or given[-1] < 0:
        raise ValueError(f"times must decrease strictly within {num_times} ... 0")
    return _descending(given)


def _check(num_times: int, num_steps: int) -> None:
    if not 1 <= num_steps <= num_times:
        raise ValueError(
            f"num_steps must be 1 ... {num_times}, the schedule's number of noising "
            f"steps, got {num_steps}"
        )


def _descending(times) -> Timesteps:
    """Sorts, drops repetitions and ends in 0."""
    return np.unique(np.append(times, 0).astype(np.int32))[::-1].copy()
