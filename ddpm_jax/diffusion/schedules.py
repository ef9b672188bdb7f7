"""Noise schedules: one array of log signal-to-noise ratios says everything.

The forward process of Ho et al. (2020) is, at the integer times t = 0 ... T,

    q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I),   alpha_t^2 + sigma_t^2 = 1,

so a schedule is the log-SNR λ_t = log(alpha_t^2 / sigma_t^2), and

    alpha_t^2 = sigmoid(λ_t),    sigma_t^2 = sigmoid(-λ_t).

t = 0 is clean data (λ_0 = +inf), t = T the prior. The papers' α-bar_t is
alpha_t^2 here, their β_t is `process.forward_variance(schedule, t, t - 1)`.

Tables are NumPy float64 and are cast to the default JAX precision where they are
read; of differences, the roundings are added (`log_snr_change`). So single precision
costs one rounding of λ and no cancellation: in float32 sigma_t^2 and the variances of
steps are good to 1e-6 relative, where 1 - alpha_t^2 is to 2e-4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

MOST_STEPS = 10**7  # float32 holds all whole times up to 2^24
MOST_LEFT = 0.2  # of alpha_T; the linear schedule with 1000 steps leaves 0.006

Times = int | Int[Array | np.ndarray | np.integer, "*batch"] | Float[Array, "*batch"]


class Schedule(NamedTuple):
    """A variance-preserving noise schedule on the times 0 ... T.

    Attributes:
      log_snr: log(alpha_t^2 / sigma_t^2) for t = 0 ... T, strictly decreasing, shape
        [T + 1]; the first entry is +inf (clean data), the last may be -inf.
    """

    log_snr: Float[Array | np.ndarray, " times"]

    @property
    def num_steps(self) -> int:
        """T, the number of noising steps."""
        return self.log_snr.shape[0] - 1


def ends_in_noise(schedule: Schedule) -> bool:
    """Returns whether alpha_T = 0 (zero terminal SNR); False where that is traced."""
    table = schedule.log_snr
    return isinstance(table, np.ndarray) and bool(np.isneginf(table[-1]))


def remarks(schedule: Schedule) -> list[str]:
    """Returns in a line what is odd about training on a schedule, if anything is."""
    left = float(np.exp(-0.5 * np.logaddexp(0, -float(schedule.log_snr[-1]))))
    if left < MOST_LEFT:
        return []
    return [
        f"the schedule leaves {left:.0%} of the image at its last step, but samples "
        "begin with noise alone: raise num_steps or the last betas"
    ]


def log_snr(schedule: Schedule, t: Times) -> Float[Array, "*batch"]:
    """Returns λ_t in the shape of t.

    Times are whole, in 0 ... T, or floating-point arrays within 1 ... T, between whole
    ones of which λ is linear.

    Raises:
      ValueError: for other times, unless they are traced and so not known yet.
    """
    check_times(schedule, t)
    table = jnp.asarray(schedule.log_snr)
    if jnp.issubdtype(jnp.result_type(t), jnp.integer):
        return table[t]
    below = jnp.clip(jnp.floor(t).astype(jnp.int32), 1, schedule.num_steps - 1)
    share, change = t - below, table[below + 1] - table[below]
    return table[below] + jnp.where(share > 0, share * change, 0.0)  # not 0 * inf


def log_snr_change(schedule: Schedule, t: Times, s: Times) -> Float[Array, "..."]:
    """Returns λ_t - λ_s, whose leading digits cancel where t is near s.

    What rounding takes from a table of NumPy is a table of its own; of a table that is
    traced or of JAX, there is none.
    """
    change = log_snr(schedule, t) - log_snr(schedule, s)
    if not isinstance(schedule.log_snr, np.ndarray):
        return change
    exact = schedule.log_snr.astype(np.float64)
    rounded = exact.astype(jnp.result_type(float))
    finite, rest = np.isfinite(exact), np.zeros_like(exact)
    lost = Schedule(np.subtract(exact, rounded, out=rest, where=finite))
    return change + (log_snr(lost, t) - log_snr(lost, s))


def check_times(schedule: Schedule, t: Times, first: int = 0) -> None:
    """Refuses times that the table would wrap or clamp; those traced pass.

    Args:
      schedule: the noise schedule.
      t: whole times, or floating-point ones, which have to be 1 or later.
      first: the earliest that is allowed.

    Raises:
      ValueError: naming the range, and what was found.
    """
    if isinstance(t, jax.core.Tracer):
        return
    times, last = np.asarray(t), schedule.num_steps
    first = first if np.issubdtype(times.dtype, np.integer) else 1
    if times.size and not np.all((first <= times) & (times <= last)):
        raise ValueError(
            f"times must lie in {first} ... {last}, got {times.min()} ... {times.max()}"
        )


def time_of(
    schedule: Schedule, lambda_t: Float[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Returns the time t within 1 ... T at which the log-SNR is λ_t."""
    table = jnp.asarray(schedule.log_snr)[1:]
    times = jnp.arange(1, schedule.num_steps + 1, dtype=table.dtype)
    return jnp.interp(-lambda_t, -table, times)


def alpha_sigma(
    schedule: Schedule, t: Times
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Returns (alpha_t, sigma_t) for times t in 0 ... T, in the shape of t."""
    lambda_t = log_snr(schedule, t)
    return jnp.sqrt(jax.nn.sigmoid(lambda_t)), jnp.sqrt(jax.nn.sigmoid(-lambda_t))


def from_betas(betas) -> Schedule:
    """Builds a schedule from β_1 ... β_T (Ho et al. 2020, Eq. 2).

    Args:
      betas: forward variances, each in (0, 1], shape [T]; β_T = 1 is a zero terminal
        signal-to-noise ratio.

    Raises:
      ValueError: if `betas` is not a non-empty vector within (0, 1].
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or betas.size == 0:
        raise ValueError(f"betas must be a non-empty vector, got shape {betas.shape}")
    if not np.all((betas > 0) & (betas <= 1)) or np.any(betas[:-1] == 1):
        raise ValueError(
            "betas must lie in (0, 1], and be 1 at the last step only, got "
            f"{betas.min():.3g} ... {betas.max():.3g}"
        )
    with np.errstate(divide="ignore"):  # log(0) = -inf is meant where β_T = 1
        log_alpha_sq = np.cumsum(np.log1p(-betas))
    log_sigma_sq = np.log(-np.expm1(log_alpha_sq))
    return Schedule(np.concatenate([[np.inf], log_alpha_sq - log_sigma_sq]))


def linear(
    num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2
) -> Schedule:
    """β_t linear in t (Ho et al. 2020, Section 4)."""
    _check_rise(beta_start, beta_end)
    return from_betas(np.linspace(beta_start, beta_end, _positive(num_steps)))


def quadratic(
    num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2
) -> Schedule:
    """sqrt(β_t) linear in t, also called scaled-linear (Song et al. 2021, code)."""
    _check_rise(beta_start, beta_end)
    roots = np.linspace(beta_start**0.5, beta_end**0.5, _positive(num_steps))
    return from_betas(roots**2)


def sigmoid(
    num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 2e-2
) -> Schedule:
    """β_t a sigmoid of t over [-6, 6] (Song et al. 2021, code)."""
    _check_rise(beta_start, beta_end)
    ramp = 1 / (1 + np.exp(-np.linspace(-6, 6, _positive(num_steps))))
    return from_betas(beta_start + (beta_end - beta_start) * ramp)


def constant(num_steps: int = 1000, beta: float = 2e-2) -> Schedule:
    """β_t the same at every step."""
    return from_betas(np.full(_positive(num_steps), beta))


def cosine(
    num_steps: int = 1000, offset: float = 8e-3, max_beta: float = 0.999
) -> Schedule:
    """alpha_t a quarter cosine, β_t capped (Nichol & Dhariwal 2021, Eq. 17)."""
    if not (0 <= offset <= 1 and 0 < max_beta <= 1):
        raise ValueError(
            f"offset must lie in [0, 1], max_beta in (0, 1], got {offset}, {max_beta}"
        )
    t = np.arange(_positive(num_steps) + 1) / num_steps
    alpha_sq = np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2
    return from_betas(np.minimum(1 - alpha_sq[1:] / alpha_sq[:-1], max_beta))


def log_snr_linear(
    num_steps: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> Schedule:
    """λ_t linear in t, from one noise level sigma / alpha to another.

    The defaults are the range of Karras et al. (2022).

    Args:
      num_steps: T, at least 2.
      sigma_min: noise level at t = 1.
      sigma_max: noise level at t = T.

    Raises:
      ValueError: for levels that do not rise from above 0, or a single step.
    """
    if not 0 < sigma_min < sigma_max < float("inf") or num_steps < 2:
        raise ValueError(
            "a schedule linear in the log-SNR needs 0 < sigma_min < sigma_max and 2 "
            f"steps or more, got {sigma_min}, {sigma_max} and {num_steps}"
        )
    ends = -2 * np.log([sigma_min, sigma_max])
    return Schedule(
        np.concatenate([[np.inf], np.linspace(*ends, _positive(num_steps))])
    )


def flow(num_steps: int = 1000) -> Schedule:
    """Flow time α_t / (α_t + σ_t) = 1 - t / T (Liu et al. 2023); x_T is pure noise."""
    time = 1 - np.arange(_positive(num_steps) + 1) / num_steps
    with np.errstate(divide="ignore"):  # λ_0 = +inf and λ_T = -inf are meant
        return Schedule(2 * (np.log(time) - np.log1p(-time)))


def shift(schedule: Schedule, change: float) -> Schedule:
    """Adds to λ_t at every t.

    Pictures of d x d pixels want 2 log(64 / d) more than those of 64 x 64, for which
    most schedules were made: noise averages out over more pixels (Hoogeboom et al.
    2023, Eq. 6).
    """
    return Schedule(schedule.log_snr + change)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """Shifts and scales alpha_t so that x_T is pure noise (Lin et al. 2024, Alg. 1).

    alpha_1 stays and alpha_T becomes 0. At t = T the noise then says nothing about x_0,
    so the network must predict x_0 or v; `process.parameterization` refuses eps.

    Raises:
      ValueError: if T = 1, where alpha_1 cannot both stay and vanish.
    """
    if schedule.num_steps < 2:
        raise ValueError("zero terminal SNR needs at least 2 noising steps")
    alpha = np.exp(-0.5 * np.logaddexp(0, -np.asarray(schedule.log_snr, np.float64)))
    first, last = alpha[1], alpha[-1]
    alpha[1:] = (alpha[1:] - last) * first / (first - last)
    with np.errstate(divide="ignore"):  # λ_0 = +inf and λ_T = -inf are meant
        return Schedule(2 * np.log(alpha) - np.log1p(-(alpha**2)))


def _check_rise(beta_start: float, beta_end: float) -> None:
    if not 0 < beta_start <= beta_end <= 1:
        raise ValueError(
            f"betas must rise within (0, 1], got beta_start {beta_start} and beta_end "
            f"{beta_end}"
        )


def _positive(num_steps: int) -> int:
    if not 1 <= num_steps <= MOST_STEPS:
        raise ValueError(
            f"num_steps must be at least 1, at most {MOST_STEPS}, got {num_steps}"
        )
    return num_steps


SCHEDULES = {
    "linear": linear,
    "quadratic": quadratic,
    "sigmoid": sigmoid,
    "constant": constant,
    "cosine": cosine,
    "log_snr_linear": log_snr_linear,
    "flow": flow,
    "from_betas": from_betas,
}
