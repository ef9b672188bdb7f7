"""Laws of noise schedules, and the papers' tables in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules

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
    with pytest.raises(ValueError, match="at least 1"):
        schedules.cosine(0)
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
