"""The forward process and the prediction hub."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import process, schedules

SCHEDULES = [
    schedules.linear(),
    schedules.cosine(100),
    schedules.zero_terminal_snr(schedules.cosine(100)),
]


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["eps", "x_0", "v"])
def test_parameterizations_cycle(x64, schedule, name):
    """The target of each parameterization, read back, gives (x_0, eps)."""
    last = schedule.num_steps - (name == "eps")  # eps is refused where alpha_T = 0
    t = jnp.array([1, 2, last // 2, last])
    x_0, eps = normal(0, 4, 3, 2, 1), normal(1, 4, 3, 2, 1)
    x_t = process.diffuse(schedule, x_0, t, eps)
    target, read = process.PARAMETERIZATIONS[name]
    prediction = read(schedule, x_t, t, target(schedule, x_0, t, eps))
    np.testing.assert_allclose(prediction.x_0, x_0, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(prediction.eps, eps, rtol=1e-7, atol=1e-8)


def test_a_time_for_all_or_for_each(x64):
    schedule, x_0, eps = SCHEDULES[0], normal(0, 2, 3, 3, 1), normal(1, 2, 3, 3, 1)
    for function in (process.diffuse, process.velocity):
        for_all = function(schedule, x_0, 7, eps)
        for_each = function(schedule, x_0, jnp.array([7, 7]), eps)
        np.testing.assert_array_equal(for_all, for_each)


def test_clean_data_at_time_0():
    x_0 = normal(0, 2, 3, 3, 1)
    x_t = process.diffuse(SCHEDULES[0], x_0, 0, normal(1, 2, 3, 3, 1))
    np.testing.assert_array_equal(x_t, x_0)


def test_posterior_is_bayes(x64):
    """q(x_s | x_t, x_0) from the product of two Gaussians (Ho Eq. 6-7)."""
    schedule = SCHEDULES[0]
    for t, s in [(1000, 999), (1000, 500), (500, 499), (20, 3), (2, 1)]:
        alpha_s, sigma_s = schedules.alpha_sigma(schedule, s)
        alpha_t, sigma_t = schedules.alpha_sigma(schedule, t)
        step = alpha_t / alpha_s  # x_t = step x_s + noise of the forward variance
        beta = process.forward_variance(schedule, t, s)
        np.testing.assert_allclose(beta, sigma_t**2 - step**2 * sigma_s**2, rtol=1e-9)
        precision = 1 / sigma_s**2 + step**2 / beta
        variance = process.posterior_variance(schedule, t, s)
        np.testing.assert_allclose(variance, 1 / precision, rtol=1e-9)


def test_variances_are_the_tables_of_ho_et_al():
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - betas)
    before = np.append(1.0, alpha_bar[:-1])
    t = jnp.arange(1, 1001)
    large = process.forward_variance(SCHEDULES[0], t, t - 1)
    small = process.posterior_variance(SCHEDULES[0], t, t - 1)
    np.testing.assert_allclose(large, betas, rtol=1e-4)  # in float32
    np.testing.assert_allclose(
        small, betas * (1 - before) / (1 - alpha_bar), rtol=1e-4, atol=0
    )
    assert small[0] == 0


@pytest.mark.parametrize("num_steps", [10, 1000, 4000])
@pytest.mark.parametrize("make", [
    lambda T: schedules.linear(T, 0.1 / T, min(20 / T, 1.0)),
    schedules.cosine,
    lambda T: schedules.zero_terminal_snr(schedules.cosine(T)),
])  # fmt: skip
def test_variances_of_steps_lose_nothing_in_single_precision(make, num_steps):
    """Also of 1 / 4000 of the way, where λ_t and λ_s share their leading digits."""
    schedule = make(num_steps)
    exact = np.asarray(schedule.log_snr, np.float64)
    t = np.arange(1, num_steps + 1)
    sigma_sq = np.exp(-np.logaddexp(0, exact))
    step = -np.expm1(exact[1:] - exact[:-1])
    for variance, expected in (
        (process.posterior_variance, sigma_sq[:-1] * step),
        (process.forward_variance, sigma_sq[1:] * step),
    ):
        found = jax.jit(lambda t, v=variance: v(schedule, t, t - 1))(t)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_forward_variances_compose(x64, schedule):
    """Noising to s and on to t is noising to t: 1 - β multiply."""
    last = schedule.num_steps
    kept = [
        1 - process.forward_variance(schedule, t, s)
        for t, s in [(last, last // 2), (last // 2, 1), (last, 1)]
    ]
    np.testing.assert_allclose(kept[0] * kept[1], kept[2], rtol=1e-9, atol=1e-15)


def test_eps_is_refused_at_zero_terminal_snr():
    with pytest.raises(ValueError, match="'v', 'x_0' or 'flow'"):
        process.parameterization("eps", SCHEDULES[2])
    assert process.parameterization("v", SCHEDULES[2]).read is process.from_v
    with pytest.raises(ValueError, match="unknown parameterization 'noise'"):
        process.parameterization("noise", SCHEDULES[0])
