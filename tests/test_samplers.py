"""Laws of samplers, on data whose exact denoiser is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import samplers, schedules, timesteps
from ddpm_jax.diffusion.process import Prediction
from ddpm_jax.diffusion.samplers.loop import sample

MEAN, STD = 0.3, 0.5
SHAPE = (32, 16, 16, 1)  # 8,192 independent pixels


def gaussian(schedule):
    """The exact denoiser of data ~ N(MEAN, STD^2): E[x_0 | x_t] and E[eps | x_t]."""

    def denoiser(x_t, t):
        alpha, sigma = schedules.alpha_sigma(schedule, t)
        score = (x_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        return Prediction(x_0=MEAN + alpha * STD**2 * score, eps=sigma * score)

    return denoiser


def dirac(schedule, x_0):
    """The exact denoiser of a single image."""

    def denoiser(x_t, t):
        alpha, sigma = schedules.alpha_sigma(schedule, t)
        return Prediction(x_0=jnp.full_like(x_t, x_0), eps=(x_t - alpha * x_0) / sigma)

    return denoiser


def flow(schedule, x_t, t):
    """Where the probability flow ends: every pixel keeps its quantile."""
    alpha, sigma = schedules.alpha_sigma(schedule, t)
    scale = jnp.sqrt(alpha**2 * STD**2 + sigma**2)
    return MEAN + STD * (x_t - alpha * MEAN) / scale


def keys(seed=0):
    return jax.random.split(jax.random.key(seed), SHAPE[0])


def prior(seed=1):
    return jax.random.normal(jax.random.key(seed), SHAPE)


SAMPLERS = {
    "ddpm, fixed_small": samplers.ddpm,
    "ddpm, fixed_large": lambda s: samplers.ddpm(s, "fixed_large"),
    "ddim, eta 0": samplers.ddim,
    "ddim, eta 0.5": lambda s: samplers.ddim(s, 0.5),
    "ddim, eta 1": lambda s: samplers.ddim(s, 1.0),
    "probability_flow": samplers.probability_flow,
    "reverse_sde": samplers.reverse_sde,
    "dpmpp_2m, eta 0": samplers.dpmpp_2m,
    "dpmpp_2m, eta 0.5": lambda s: samplers.dpmpp_2m(s, 0.5),
    "dpmpp_2m, eta 1": lambda s: samplers.dpmpp_2m(s, 1.0),
    "dpmpp_3m, eta 0": samplers.dpmpp_3m,
    "dpmpp_3m, eta 1": lambda s: samplers.dpmpp_3m(s, 1.0),
    "unipc": samplers.unipc,
    "heun": samplers.heun,
    "heun, churn 0.1": lambda s: samplers.heun(s, churn=0.1),
    "plms, order 2": lambda s: samplers.plms(s, 2),
    "plms, order 3": lambda s: samplers.plms(s, 3),
    "plms, order 4": samplers.plms,
}
EULER = ["probability_flow", "reverse_sde"]
FIRST_ORDER = list(SAMPLERS)[: list(SAMPLERS).index("dpmpp_2m, eta 0")]
HIGHER_ORDER = list(SAMPLERS)[len(FIRST_ORDER) :]
ODE = ["ddim, eta 0", *(n for n in HIGHER_ORDER if n[-1] not in "15")]
MULTISTEP = [name for name in ODE[1:] if name != "heun"]
ON_THE_MARGINAL = [n for n in SAMPLERS if n not in (*EULER, "ddpm, fixed_large")]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_exact_gaussian_is_reproduced(make, name):
    schedule = make()
    times, error = timesteps.log_snr_uniform(schedule, 60), 15 / 60**2
    if name in FIRST_ORDER:
        times, error = timesteps.trailing(schedule, 500), 4 / 500
    x_0, _ = jax.jit(
        lambda x_T: sample(
            SAMPLERS[name](schedule), gaussian(schedule), keys(), x_T, times
        )
    )(prior())
    # Five standard errors, and the steps' own error, of first or second order.
    standard_error = STD / np.sqrt(x_0.size)
    assert abs(float(x_0.mean()) - MEAN) < 5 * standard_error + error / 2
    assert abs(float(x_0.std()) - STD) < 5 * standard_error + error


def test_ddim_solves_the_ode_to_first_order(x64):
    """Its error against the probability flow of a Gaussian, in closed form: ~ 1/S."""
    schedule, x_T = schedules.cosine(), prior()
    exact, errors = flow(schedule, x_T, 1000), []
    for num_steps in (50, 100, 200):
        times = timesteps.trailing(schedule, num_steps)
        sampler = samplers.ddim(schedule)
        x_0, _ = sample(sampler, gaussian(schedule), keys(), x_T, times)
        errors.append(float(jnp.sqrt(jnp.mean((x_0 - exact) ** 2))))
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all((orders > 0.8) & (orders < 1.3)), (errors, orders)


@pytest.mark.parametrize(
    "name, num_steps",
    [(name, 20) for name in ON_THE_MARGINAL]
    + [(name, 1000) for name in ON_THE_MARGINAL if name in FIRST_ORDER],
)
def test_dirac_data_stay_on_the_marginal(name, num_steps):
    """From q(x_T | x_0), every x_s is distributed as q(x_s | x_0), for any eta."""
    schedule, x_0 = schedules.linear(), 0.4
    times = timesteps.trailing(schedule, num_steps)
    alpha, sigma = schedules.alpha_sigma(schedule, jnp.asarray(times))
    num = 8 if num_steps == 1000 else SHAPE[0]
    x_T = alpha[0] * x_0 + sigma[0] * prior()[:num]
    x, (means, stds) = jax.jit(
        lambda x_T: sample(
            SAMPLERS[name](schedule),
            dirac(schedule, x_0),
            keys()[:num],
            x_T,
            times,
            observe=lambda state, _: (state.x.mean(), state.x.std()),
        )
    )(x_T)
    few = 5 / np.sqrt(x.size)  # five standard errors of a mean of unit variance
    np.testing.assert_allclose(means, alpha[1:] * x_0, atol=few)
    np.testing.assert_allclose(stds, sigma[1:], rtol=few, atol=1e-5)
    np.testing.assert_allclose(x, x_0, atol=3e-6)


def test_fixed_large_adds_the_forward_variance():
    schedule, zero = schedules.linear(), jnp.zeros(SHAPE)
    sampler = samplers.ddpm(schedule, "fixed_large")
    nothing = lambda x_t, t: Prediction(zero, zero)
    for t, s in [(1000, 999), (900, 500), (2, 1)]:
        state, _ = sampler.step(nothing, keys(), samplers.SamplerState(zero), t, s)
        (alpha_t, alpha_s) = (schedules.alpha_sigma(schedule, u)[0] for u in (t, s))
        expected = np.sqrt(1 - (alpha_t / alpha_s) ** 2)
        np.testing.assert_allclose(state.x.std(), expected, rtol=0.03)


@pytest.mark.parametrize("name", [n for n in SAMPLERS if "plms" not in n])
def test_the_last_step_returns_the_prediction(name):
    """Whatever is remembered; but for PLMS, whose eps is then another."""
    schedule = schedules.linear()
    sampler = SAMPLERS[name](schedule)
    step = jax.jit(functools.partial(sampler.step, gaussian(schedule), keys()[:4]))
    state = sampler.init(prior()[:4, :4, :4])
    for t, s in [(70, 40), (40, 15), (15, 0)]:
        state, prediction = step(state, t, s)
        apart = np.abs(state.x - prediction.x_0).max()
        assert (apart < 1e-6) == (s == 0)  # a fused product rounds x_0 otherwise


def uneven(schedule):
    """Even in time and even in the log-SNR at once: steps of all lengths in turn."""
    even = (f(schedule, 50) for f in (timesteps.linspace, timesteps.log_snr_uniform))
    return timesteps.custom(schedule, np.union1d(*even)[::-1])


@pytest.mark.parametrize(
    "name, spacing",
    [(name, uneven) for name in SAMPLERS]
    + [(name, timesteps.karras) for name in MULTISTEP]
    + [(name, timesteps.quadratic) for name in MULTISTEP],
)
def test_any_times_will_do(name, spacing):
    """The ODE keeps each pixel's quantile; the chain and the SDE the distribution."""
    schedule, x_T = schedules.linear(), prior()[:, :16, :16]
    times = spacing(schedule) if spacing is uneven else spacing(schedule, 40)
    sampler, denoiser = SAMPLERS[name](schedule), gaussian(schedule)
    x_0, _ = sample(sampler, denoiser, keys(), x_T, times)
    error = 0.05 if name in FIRST_ORDER else 0.02
    if name in ODE:
        expected = flow(schedule, x_T, times[0])
        assert float(jnp.sqrt(jnp.mean((x_0 - expected) ** 2))) < error / 2
    standard_error = STD / np.sqrt(x_0.size)
    assert abs(float(x_0.mean()) - MEAN) < 5 * standard_error + error / 2
    assert abs(float(x_0.std()) - STD) < 5 * standard_error + error


def test_ddpm_is_ddim_with_eta_1():
    schedule = schedules.cosine(200)
    times = timesteps.linspace(schedule, 50)
    ddpm, ddim = (
        sample(sampler, gaussian(schedule), keys(), prior(), times)[0]
        for sampler in (samplers.ddpm(schedule), samplers.ddim(schedule, 1.0))
    )
    np.testing.assert_array_equal(ddpm, ddim)


@pytest.mark.parametrize(
    "name", [n for n in SAMPLERS if n not in EULER and "churn" not in n]
)
def test_zero_terminal_snr_is_sampled_from_pure_noise(name):
    schedule, x_T = schedules.zero_terminal_snr(schedules.linear()), prior()[:, :8]
    sampler, times = SAMPLERS[name](schedule), timesteps.trailing(schedule, 100)
    x_0, _ = sample(sampler, gaussian(schedule), keys(), x_T, times)
    assert np.all(np.isfinite(x_0))
    assert abs(float(x_0.mean()) - MEAN) < 5 * STD / np.sqrt(x_0.size) + 2e-3


def test_every_image_has_its_own_noise():
    schedule = schedules.linear(100)
    times = timesteps.trailing(schedule, 10)
    run = lambda n: sample(
        samplers.ddpm(schedule), gaussian(schedule), keys()[:n], prior()[:n], times
    )[0]
    np.testing.assert_allclose(run(32)[:3], run(3), atol=1e-6)
    again = sample(
        samplers.ddpm(schedule), gaussian(schedule), keys(7), prior(), times
    )[0]
    assert float(jnp.abs(run(32) - again).mean()) > 0.1


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_is_between_0_and_1(eta):
    with pytest.raises(ValueError, match="eta must lie"):
        samplers.ddim(schedules.linear(), eta)


def test_unknown_variance():
    with pytest.raises(ValueError, match="unknown variance 'huge'"):
        samplers.ddpm(schedules.linear(), "huge")


@pytest.mark.parametrize("name", EULER)
def test_euler_needs_a_signal_at_T(name):
    with pytest.raises(ValueError, match="cannot begin where alpha_T = 0"):
        SAMPLERS[name](schedules.zero_terminal_snr(schedules.linear()))


def test_settings_are_checked():
    schedule = schedules.linear()
    for eta in (-0.1, 1.1):
        for make in (samplers.dpmpp_2m, samplers.dpmpp_3m):
            with pytest.raises(ValueError, match="eta must lie"):
                make(schedule, eta)
    for churn in (-0.1, 0.5):
        with pytest.raises(ValueError, match="churn must lie"):
            samplers.heun(schedule, churn)
    for settings in (
        {"churn_noise": -1.0},
        {"churn_noise": np.nan},
        {"churn_from": -1.0},
        {"churn_from": 3.0, "churn_to": 2.0},
    ):
        with pytest.raises(ValueError, match="churn needs 0 <= churn_from < churn_to"):
            samplers.heun(schedule, 0.1, **settings)
    for order in (1, 5):
        with pytest.raises(ValueError, match="order must be"):
            samplers.plms(schedule, order)


def test_churn_needs_a_noise_level_to_raise():
    schedule = schedules.zero_terminal_snr(schedules.linear())
    with pytest.raises(ValueError, match="leaves a signal"):
        samplers.heun(schedule, churn=0.1)
    with pytest.raises(ValueError, match="churn must lie"):
        samplers.heun(schedules.linear(), churn=0.5)
