"""Laws of noise schedules, and the papers' tables in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import bound, denoisers, editing, process, samplers, schedules
from ddpm_jax.diffusion.samplers import loop

MAKERS = ["linear", "quadratic", "sigmoid", "constant", "cosine"]


def alpha_bar(schedule):
    return 1 / (1 + np.exp(-np.asarray(schedule.log_snr, np.float64)))


@pytest.mark.parametrize("num_steps", [1, 2, 10, 1000, 5000])
@pytest.mark.parametrize("make", MAKERS)
def test_variance_preserving_and_ever_noisier(make, num_steps):
    schedule = getattr(schedules, make)(num_steps)
    assert schedule.num_steps == num_steps
    assert schedule.log_snr[0] == np.inf
    assert np.all(np.diff(schedule.log_snr) < 0)
    alpha, sigma = schedules.alpha_sigma(schedule, jnp.arange(num_steps + 1))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=2e-6)
    assert alpha[0] == 1 and sigma[0] == 0


def test_linear_is_ho_et_al():
    betas = np.linspace(1e-4, 0.02, 1000)
    expected = np.cumprod(1 - betas)
    np.testing.assert_allclose(
        alpha_bar(schedules.linear())[1:], expected, rtol=1e-12, atol=0
    )


def test_cosine_is_nichol_and_dhariwal():
    t = np.arange(1001) / 1000
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    # The cap of 0.999 acts on the last step only.
    np.testing.assert_allclose(
        alpha_bar(schedules.cosine())[1:-1], (f / f[0])[1:-1], rtol=1e-10
    )
    assert alpha_bar(schedules.cosine())[-1] > 0


def test_quadratic_sigmoid_and_constant_betas():
    def betas(schedule):
        return 1 - np.divide(*[alpha_bar(schedule)[i:][:1000] for i in (1, 0)])

    roots = np.sqrt(betas(schedules.quadratic()))
    np.testing.assert_allclose(np.diff(roots), np.diff(roots).mean(), rtol=1e-6)
    middle = betas(schedules.sigmoid(1001))[500]
    np.testing.assert_allclose(middle, (1e-4 + 2e-2) / 2, rtol=1e-9)
    np.testing.assert_allclose(betas(schedules.constant(1000)), 2e-2, rtol=1e-9)


def test_float32_keeps_small_variances():
    schedule = schedules.linear()
    t = np.arange(1, 1001)
    _, sigma = schedules.alpha_sigma(schedule, t)
    exact = -np.expm1(np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000))))
    assert sigma.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(sigma, np.float64) ** 2, exact, rtol=1.5e-6)


@pytest.mark.parametrize("make", MAKERS)
def test_zero_terminal_snr(make):
    schedule = getattr(schedules, make)(50)
    rescaled = schedules.zero_terminal_snr(schedule)
    assert rescaled.log_snr[-1] == -np.inf
    assert np.all(np.diff(rescaled.log_snr) < 0)
    np.testing.assert_allclose(rescaled.log_snr[1], schedule.log_snr[1], rtol=1e-9)
    # Lin et al.: alpha is shifted and scaled, so its differences keep their ratios.
    steps, rescaled_steps = (
        np.diff(np.sqrt(alpha_bar(s))[1:]) for s in (schedule, rescaled)
    )
    np.testing.assert_allclose(
        rescaled_steps / rescaled_steps[0], steps / steps[0], rtol=1e-6
    )
    alpha, sigma = schedules.alpha_sigma(rescaled, 50)
    assert alpha == 0 and sigma == 1


def test_a_schedule_can_be_an_argument_of_a_jitted_function():
    schedule = schedules.linear(10)
    traced = jax.jit(schedules.alpha_sigma)(schedule, 3)
    np.testing.assert_array_equal(traced, schedules.alpha_sigma(schedule, 3))


@pytest.mark.parametrize(
    "betas, message",
    [([], "non-empty"), ([[0.1]], "non-empty"), ([0.1, 0], "0, 1"), ([1.1], "0, 1")],
)
def test_bad_betas(betas, message):
    with pytest.raises(ValueError, match=message):
        schedules.from_betas(betas)


def test_no_steps():
    for make in MAKERS:
        for num_steps in (0, 10**7 + 1):
            with pytest.raises(ValueError, match="at least 1, at most 10000000"):
                getattr(schedules, make)(num_steps)
    with pytest.raises(ValueError, match="at least 2"):
        schedules.zero_terminal_snr(schedules.linear(1))


def test_times_between_whole_ones():
    """λ is linear between them, and `time_of` is its inverse."""
    schedule = schedules.cosine(10)
    t = jnp.array([1.0, 1.25, 3.5, 9.75, 10.0])
    lambda_t = schedules.log_snr(schedule, t)
    np.testing.assert_allclose(lambda_t[0], schedule.log_snr[1], rtol=1e-6)
    np.testing.assert_allclose(lambda_t[2], schedule.log_snr[3:5].mean(), rtol=1e-5)
    np.testing.assert_allclose(lambda_t[-1], schedule.log_snr[10], rtol=1e-6)
    np.testing.assert_allclose(schedules.time_of(schedule, lambda_t), t, rtol=1e-5)


BAD = [
    ("linear", {"beta_end": 2.0}),
    ("linear", {"beta_start": 0.0}),
    ("linear", {"beta_start": 0.02, "beta_end": 1e-4}),
    ("linear", {"beta_end": np.nan}),
    ("quadratic", {"beta_start": -1e-4}),
    ("quadratic", {"beta_end": np.inf}),
    ("sigmoid", {"beta_end": 2.0}),
    ("sigmoid", {"beta_start": np.nan}),
    ("constant", {"beta": 1.0}),
    ("constant", {"beta": np.nan}),
    ("cosine", {"offset": -1.0}),
    ("cosine", {"offset": np.nan}),
    ("cosine", {"max_beta": 1.5}),
    ("cosine", {"max_beta": 0.0}),
    ("from_betas", {"betas": [0.1, 1.0, 0.1]}),
    ("from_betas", {"betas": [0.1, np.nan]}),
    ("from_betas", {"betas": [[0.1]]}),
]


@pytest.mark.parametrize("make, settings", BAD)
def test_what_makes_no_schedule(make, settings):
    with pytest.raises(ValueError, match="beta"):
        getattr(schedules, make)(**settings)


def test_a_last_beta_of_1_is_zero_terminal_snr():
    assert schedules.ends_in_noise(schedules.from_betas([0.1, 1.0]))


SCHEDULE = schedules.linear(10, 1e-4, 0.9)
ONES, KEYS = np.ones((2, 1), np.float32), jax.random.split(jax.random.key(0), 2)
NETWORK = lambda params, x, index, cond, keys: x
# Each reads the table at t; `network` is asked about 1 ... T only.
READERS = {
    "log_snr": lambda t: schedules.log_snr(SCHEDULE, t),
    "alpha_sigma": lambda t: schedules.alpha_sigma(SCHEDULE, t),
    "diffuse": lambda t: process.diffuse(SCHEDULE, ONES, t, ONES),
    "from_eps": lambda t: process.from_eps(SCHEDULE, ONES, t, ONES),
    "variance of t": lambda t: process.posterior_variance(SCHEDULE, t, 1),
    "variance of s": lambda t: process.forward_variance(SCHEDULE, 10, t),
    "perturb": lambda t: editing.perturb(SCHEDULE, KEYS, ONES, t),
    "prior": lambda t: bound.prior(SCHEDULE, ONES, t),
    "network": lambda t: denoisers.from_network(NETWORK, None, SCHEDULE)(ONES, t),
    "sampler": lambda t: loop.make_sample_fn(
        NETWORK, SCHEDULE, samplers.ddim(SCHEDULE), np.array([t, 0]), (1,)
    ),
    "bound": lambda t: bound.make_bound(NETWORK, SCHEDULE, np.array([t, 1, 0])),
    "encode": lambda t: editing.encode(
        NETWORK, SCHEDULE, ONES, np.array([t, 0], np.int32)
    ),
}


@pytest.mark.parametrize("t", [-1, 11])
@pytest.mark.parametrize("reader", READERS)
def test_times_beyond_the_table_are_refused(reader, t):
    with pytest.raises(ValueError, match=rf"times must lie in \d \.\.\. 10, .*{t}"):
        READERS[reader](t)


def test_networks_are_not_asked_about_clean_data():
    with pytest.raises(ValueError, match=r"must lie in 1 \.\.\. 10, got 0"):
        READERS["network"](0)
    READERS["network"](1)


@pytest.mark.parametrize("t", [0.5, 10.5, np.nan])
def test_times_between_whole_ones_lie_within_1_and_T(t):
    with pytest.raises(ValueError, match="times must lie in 1 ... 10"):
        schedules.log_snr(SCHEDULE, jnp.array([2.0, t]))


def test_traced_times_are_not_known():
    table = jax.jit(lambda t: schedules.log_snr(SCHEDULE, t))
    np.testing.assert_allclose(table(jnp.array([0, 10])), SCHEDULE.log_snr[[0, -1]])
