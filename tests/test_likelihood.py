"""The exact likelihood, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import likelihood, schedules

MEAN, STD = 0.3, 0.5
KEYS = jax.random.split(jax.random.key(0), 4)
SHAPE = (4, 6, 6, 3)


def exact(schedule, predicts):
    """The network that knows data ~ N(0.3, 0.5^2), asked at any time."""

    def apply(params, x, index, cond, keys):
        alpha, sigma = (
            value[:, None, None, None]
            for value in schedules.alpha_sigma(schedule, index + 1)
        )
        mean = MEAN if cond is None else cond[:, None, None, None]
        eps = sigma * (x - alpha * mean) / (alpha**2 * STD**2 + sigma**2)
        x_0 = (x - sigma * eps) / alpha
        return {"eps": eps, "x_0": x_0, "v": alpha * eps - sigma * x_0}[predicts]

    return apply


def marginal(schedule, t, mean=MEAN):
    alpha, sigma = schedules.alpha_sigma(schedule, t)
    return alpha * mean, jnp.sqrt(alpha**2 * STD**2 + sigma**2)


def log_normal(x, mean, std):
    log_p = -0.5 * ((x - mean) / std) ** 2 - jnp.log(std) - 0.5 * np.log(2 * np.pi)
    return log_p.reshape(len(x), -1).sum(axis=1)


def closed_form(schedule, x, mean=MEAN):
    """The flow of Gaussians is linear: it ends in x_T, whose density is the prior's."""
    mean_1, std_1 = marginal(schedule, 1, mean)
    mean_T, std_T = marginal(schedule, schedule.num_steps, mean)
    x_T = mean_T + std_T / std_1 * (x - mean_1)
    return log_normal(x_T, 0.0, 1.0) + x[0].size * jnp.log(std_T / std_1)


@pytest.mark.parametrize("predicts", ["eps", "x_0", "v"])
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_exact_gaussian(name, predicts):
    """To 1e-3 nats per dimension, on data (two images) and far from it (two)."""
    schedule = getattr(schedules, name)(1000)
    x = MEAN + STD * jax.random.normal(jax.random.key(1), SHAPE) * jnp.array(
        [1.0, 1.0, 2.0, 2.0]
    ).reshape(4, 1, 1, 1)
    fn = jax.jit(
        likelihood.make_likelihood(exact(schedule, predicts), schedule, predicts)
    )
    found = fn(None, KEYS, x)
    per_dim = (found.log_density - closed_form(schedule, x)) / x[0].size
    np.testing.assert_allclose(per_dim, 0, atol=1e-3)
    of_data = log_normal(x, *marginal(schedule, 1))
    per_dim = (found.log_density - of_data) / x[0].size
    np.testing.assert_allclose(per_dim[:2], 0, atol=1e-3)
    assert np.all(found.num_steps > 5) and np.all(found.num_steps < 500)


def test_conditions_reach_the_network():
    schedule = schedules.linear()
    x = STD * jax.random.normal(jax.random.key(1), SHAPE)
    means = jnp.array([0.0, 0.5, -0.5, 1.0])
    fn = jax.jit(likelihood.make_likelihood(exact(schedule, "eps"), schedule))
    expected = jnp.stack(
        [
            closed_form(schedule, x[i : i + 1], mean)[0]
            for i, mean in enumerate(np.asarray(means))
        ]
    )
    found = fn(None, KEYS, x, means).log_density
    np.testing.assert_allclose((found - expected) / x[0].size, 0, atol=1e-3)


def test_an_image_is_scored_by_itself():
    schedule = schedules.linear()
    x = jax.random.normal(jax.random.key(1), SHAPE)
    apply = lambda p, x, *_: jnp.tanh(x + 0.3 * jnp.roll(x, 1, axis=1))
    fn = likelihood.make_likelihood(apply, schedule, rtol=1e-4, atol=1e-4)
    whole, part = fn(None, KEYS, x), fn(None, KEYS[1:2], x[1:2])
    np.testing.assert_allclose(whole.log_density[1], part.log_density[0], rtol=1e-4)
    assert whole.num_steps[1] == part.num_steps[0]


def test_the_trace_is_estimated_without_bias():
    """A network that mixes pixels: many probes agree with a single image's exact trace.

    For eps(x) = A x with constant A the flow is linear, so the divergence is known.
    """
    schedule = schedules.linear()
    mix = 0.3 * jax.random.normal(jax.random.key(2), (4, 4))

    def apply(params, x, *_):
        return (x.reshape(-1, 4) @ mix.T).reshape(x.shape)

    lambdas = jnp.linspace(schedule.log_snr[1], schedule.log_snr[-1], 200_001)
    sigma_sq = jax.nn.sigmoid(-lambdas)
    trace = 0.5 * (4 * sigma_sq - jnp.sqrt(sigma_sq) * jnp.trace(mix))
    divergence = jnp.trapezoid(trace, lambdas)
    x = jnp.zeros((1, 2, 2, 1))  # a fixed point: x_T = 0
    num_probes = 200_000
    fn = likelihood.make_likelihood(apply, schedule, num_probes=num_probes)
    found = fn(None, KEYS[:1], x).log_density[0]
    expected = divergence - 2 * np.log(2 * np.pi)
    # z^T A z has the variance 2 |A's symmetric part off its diagonal|^2.
    off = (mix + mix.T) / 2 * (1 - jnp.eye(4))
    error = jnp.sqrt(2 * jnp.sum(off**2) / num_probes)
    error *= jnp.abs(jnp.trapezoid(0.5 * jnp.sqrt(sigma_sq), lambdas))
    assert error < 0.02
    np.testing.assert_allclose(found, expected, rtol=0, atol=4 * error)


def test_dequantised_images_keep_their_value():
    images = jnp.arange(256, dtype=jnp.float32).reshape(1, 16, 16, 1) / 127.5 - 1
    spread = likelihood.dequantize(KEYS[:1], images)
    assert spread.min() >= -1 and spread.max() < 1
    np.testing.assert_array_equal(jnp.floor((spread + 1) * 128).ravel(), np.arange(256))
    uniform = np.full(1, -3 * np.log(2.0))  # density 1/2 on [-1, 1], three dimensions
    np.testing.assert_allclose(likelihood.bits_per_dimension(uniform, (1, 1, 3)), 8)


def test_zero_terminal_snr_is_followed_to_where_next_to_nothing_is_left():
    schedule, x = schedules.flow(), STD * jax.random.normal(jax.random.key(1), SHAPE)
    fn = likelihood.make_likelihood(exact(schedule, "x_0"), schedule, "x_0")
    per_dim = jax.jit(fn)(None, KEYS, MEAN + x).log_density / x[0].size
    of_data = log_normal(MEAN + x, *marginal(schedule, 1)) / x[0].size
    np.testing.assert_allclose(per_dim, of_data, atol=1e-3)
    with pytest.raises(ValueError, match="its step before leaves an SNR of 0.012"):
        likelihood.make_likelihood(exact(schedule, "v"), schedules.flow(10), "v")


@pytest.mark.parametrize(
    "settings", [{"rtol": 0.0}, {"atol": -1.0}, {"num_probes": 0}, {"max_steps": 0}]
)
def test_tolerances_and_counts_are_positive(settings):
    schedule = schedules.linear()
    with pytest.raises(ValueError, match="must be positive"):
        likelihood.make_likelihood(exact(schedule, "eps"), schedule, **settings)
