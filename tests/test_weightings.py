"""Weights are functions of the log-SNR, and each is that of its paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import densities, losses, process, schedules, weightings

SCHEDULE = schedules.log_snr_linear(1000)
LEVELS = np.linspace(-12, 12, 49)
SNR = np.exp(LEVELS)
pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("predicts", process.PARAMETERIZATIONS)
def test_any_prediction_is_one_of_the_clean_image_with_a_weight(predicts):
    x_0, eps, guess = np.random.default_rng(0).standard_normal((3, 1000, 5))
    t = np.arange(1, 1001)
    x_t = process.diffuse(SCHEDULE, x_0, t, eps)
    target = process.PARAMETERIZATIONS[predicts].target
    noise = process.from_x_0(SCHEDULE, x_t, t, guess).eps
    error = target(SCHEDULE, guess, t, noise) - target(SCHEDULE, x_0, t, eps)
    weight = jnp.exp(weightings.WEIGHTINGS[predicts](SCHEDULE.log_snr[1:]))
    expected = weight[:, None] * (guess - x_0) ** 2
    np.testing.assert_allclose(error**2, expected, rtol=1e-6)


PUBLISHED = {
    "edm": (SNR**-1 + 0.25) / (SNR**-0.5 * 0.5) ** 2,  # (σ² + σ_data²) / (σ σ_data)²
    "min_snr": np.minimum(SNR, 5) / SNR * SNR,
    "soft_min_snr": 1 / (1 / SNR + 1 / 4),
    "p2": SNR / (1 + SNR),
    "sigmoid": 1 / (1 + np.exp(-LEVELS)),
    "x_0": np.ones_like(SNR),
    "eps": SNR,
    "v": 1 + SNR,
    "flow": (1 + SNR**0.5) ** 2,
}


@pytest.mark.parametrize("name", weightings.WEIGHTINGS)
def test_each_is_that_of_its_paper(name):
    weight = jnp.exp(weightings.WEIGHTINGS[name](LEVELS))
    np.testing.assert_allclose(weight, PUBLISHED[name], rtol=1e-12)


def test_settings_are_those_of_the_papers():
    found = jnp.exp(weightings.sigmoid(LEVELS, bias=2.0))
    np.testing.assert_allclose(found, np.exp(2) / (1 + np.exp(2 - LEVELS)))
    found = jnp.exp(weightings.p2(LEVELS, k=2.0, gamma=0.5))
    np.testing.assert_allclose(found, SNR / (2 + SNR) ** 0.5)
    assert float(jnp.exp(weightings.flow(jnp.array(99.0), largest=400.0))) <= 400.001


@pytest.mark.parametrize("predicts", ["x_0", "v", "flow"])
@pytest.mark.parametrize("name", weightings.WEIGHTINGS)
def test_pure_noise_has_a_finite_weight(name, predicts):
    weight = weightings.relative(weightings.WEIGHTINGS[name], predicts)
    assert np.isfinite(weight(jnp.array([-jnp.inf, -40.0, 40.0]))).all()


def test_min_snr_bounds_where_there_is_little_noise():
    """In eps it is min(SNR, γ) / SNR, and 1 where there is much; in v, over SNR + 1."""
    of_eps = weightings.relative(weightings.min_snr, "eps")
    np.testing.assert_allclose(of_eps(LEVELS), np.minimum(SNR, 5) / SNR)
    of_v = weightings.relative(weightings.min_snr, "v")
    np.testing.assert_allclose(of_v(LEVELS), np.minimum(SNR, 5) / (SNR + 1))


@pytest.mark.parametrize("name", ["min_snr", "edm", "sigmoid"])
def test_predicting_one_thing_and_losing_in_another(name):
    """All four predictions of the same denoiser have the same loss then."""
    data = {
        "image": jax.random.normal(jax.random.key(0), (64, 2, 2, 1)),
        "id": jnp.arange(64, dtype=jnp.uint32),
    }
    found = []
    for predicts, (target, _) in process.PARAMETERIZATIONS.items():

        def apply(params, x_t, index, cond, keys, target=target):
            guess = process.from_x_0(SCHEDULE, x_t, index + 1, 0.3 * x_t)
            return target(SCHEDULE, guess.x_0, index + 1, guess.eps)

        weighting = weightings.WEIGHTINGS[name]
        loss_fn = losses.simple(apply, SCHEDULE, predicts, weighting=weighting)
        found.append(loss_fn(None, data, jax.random.key(1))[0])
    np.testing.assert_allclose(found, found[0], rtol=1e-9)


def test_a_density_is_a_weight():
    """(p, w) and (p', w p / p') expect the same gradient, of a linear denoiser."""
    u = (np.arange(200_000) + 0.5) / 200_000
    low, high = SCHEDULE.log_snr[-1], SCHEDULE.log_snr[1]

    def expected(density, weight):
        level = schedules.log_snr(SCHEDULE, density.quantile(SCHEDULE, u))
        alpha_sq = jax.nn.sigmoid(level)
        # d/da of E (a x_t - x_0)², for x_0 of variance 1/4 and a = 0.7
        slope = 2 * (0.7 * (alpha_sq / 4 + 1 - alpha_sq) - jnp.sqrt(alpha_sq) / 4)
        return float(jnp.mean(weight(level) * slope))

    def p(level):
        return jax.scipy.stats.norm.pdf(level, 1.0, 2.0)

    weight = lambda level: jnp.exp(weightings.min_snr(level))
    one = expected(densities.normal(1.0, 2.0), weight)
    ratio = lambda level: weight(level) * p(level) * (high - low)
    other = expected(densities.uniform_log_snr(), ratio)
    np.testing.assert_allclose(one, other, rtol=1e-4)
