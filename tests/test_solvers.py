"""Fast solvers against their papers' formulas, written again in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import samplers, schedules
from ddpm_jax.diffusion.process import from_x_0
from ddpm_jax.diffusion.samplers import base
from ddpm_jax.diffusion.samplers.adams_bashforth import adams_bashforth
from ddpm_jax.diffusion.samplers.dpm_solver import averages

SCHEDULE = schedules.cosine()
T, U, S, R = 800, 520, 370, 300  # four times, of uneven steps
X_T = np.linspace(-2, 2, 6).reshape(2, 3)
NOISE = np.cos(np.arange(6.0)).reshape(2, 3)
TOLERANCE = {"rtol": 1e-10, "atol": 1e-12}


def predicted(x, t):
    """A nonlinear prediction of x_0."""
    return np.tanh(x + t / 1000)


def denoiser(x_t, t):
    return from_x_0(SCHEDULE, x_t, t, jnp.tanh(x_t + t / 1000))


def levels(t):
    """Returns alpha, sigma and λ = log(alpha / sigma), half of our log-SNR."""
    alpha_sq = 1 / (1 + np.exp(-SCHEDULE.log_snr[t]))
    alpha, sigma = np.sqrt(alpha_sq), np.sqrt(1 - alpha_sq)
    return alpha, sigma, np.log(alpha / sigma)


def walk(method, *times):
    """Returns our state after each of the steps, from X_T."""
    state, states = method.init(jnp.asarray(X_T)), []
    step = jax.jit(lambda state, t, s: method.step(denoiser, keys(), state, t, s)[0])
    for t, s in zip(times[:-1], times[1:], strict=True):
        state = step(state, t, s)
        states.append(np.asarray(state.x))
    return states


def keys():
    return jax.random.split(jax.random.key(0), 2)


def solve(x, t, s, D):
    """DPM-Solver++: sigma_s / sigma_t x - alpha_s (e^-h - 1) D."""
    (_, sigma_t, lambda_t), (alpha_s, sigma_s, lambda_s) = levels(t), levels(s)
    return sigma_s / sigma_t * x - alpha_s * np.expm1(lambda_t - lambda_s) * D


def two_steps_back(x_0, x_0_before, before, t, s):
    """D of Algorithm 2: (1 + 1 / 2r) x_0 - 1 / 2r of the one before."""
    h, h_before = levels(s)[2] - levels(t)[2], levels(t)[2] - levels(before)[2]
    r = h_before / h
    return (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * x_0_before


def test_dpmpp_2m_is_algorithm_2(x64):
    """Of Lu et al. (2022), three uneven steps."""
    expected, x, before = [], X_T, None
    for t, s in [(T, U), (U, S), (S, R)]:
        x_0 = D = predicted(x, t)
        if before:
            D = two_steps_back(x_0, before[0], before[1], t, s)
        x, before = solve(x, t, s, D), (x_0, t)
        expected.append(x)
    ours = walk(samplers.dpmpp_2m(SCHEDULE), T, U, S, R)
    np.testing.assert_allclose(ours, expected, **TOLERANCE)


def test_sde_dpmpp_2m(x64, monkeypatch):
    """Of Lu et al. (2022), Section 5 and Appendix: with e^-2h, and noise."""
    monkeypatch.setattr(base, "standard_normal", lambda keys, x: jnp.asarray(NOISE))
    expected, x, before = [], X_T, None
    for t, s in [(T, U), (U, S), (S, R)]:
        x_0 = D = predicted(x, t)
        if before:
            D = two_steps_back(x_0, before[0], before[1], t, s)
        (_, sigma_t, lambda_t), (alpha_s, sigma_s, lambda_s) = levels(t), levels(s)
        h = lambda_s - lambda_t
        noise = sigma_s * np.sqrt(-np.expm1(-2 * h)) * NOISE
        x = sigma_s / sigma_t * np.exp(-h) * x - alpha_s * np.expm1(-2 * h) * D + noise
        before = x_0, t
        expected.append(x)
    ours = walk(samplers.dpmpp_2m(SCHEDULE, 1.0), T, U, S, R)
    np.testing.assert_allclose(ours, expected, **TOLERANCE)


def average(function, h, growth):
    """The average over u in [0, 1] under e^(growth h u), by quadrature."""
    nodes, shares = np.polynomial.legendre.leggauss(40)
    u = (nodes + 1) / 2
    weights = shares * np.exp(growth * h * u)
    return sum(w * function(v) for w, v in zip(weights, u, strict=True)) / weights.sum()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dpmpp_3m_integrates_the_parabola(x64, monkeypatch, eta):
    """Its third step: Lagrange's parabola in λ under the exact weights of Eq. 8."""
    monkeypatch.setattr(base, "standard_normal", lambda keys, x: jnp.asarray(0 * x))
    states = [X_T, *walk(samplers.dpmpp_3m(SCHEDULE, eta), T, U, S, R)]
    nodes = [levels(t)[2] for t in (T, U, S)]
    values = [predicted(x, t) for x, t in zip(states, (T, U, S), strict=False)]
    (_, sigma_s, lambda_s), (alpha_r, sigma_r, lambda_r) = levels(S), levels(R)
    h = lambda_r - lambda_s

    def parabola(u):
        x = lambda_s + u * h
        return sum(
            value * np.prod([(x - m) / (n - m) for m in nodes if m != n])
            for n, value in zip(nodes, values, strict=True)
        )

    growth = 1 + eta**2
    D = average(parabola, h, growth)
    shrink = np.exp(-h * eta**2) * sigma_r / sigma_s
    expected = shrink * states[2] - alpha_r * np.expm1(-growth * h) * D
    np.testing.assert_allclose(states[3], expected, **TOLERANCE)


def test_averages_of_powers(x64):
    for length in (0.05, 0.7, 5.0):
        expected = [average(lambda u, k=k: u**k, length, 1) for k in (1, 2)]
        np.testing.assert_allclose(averages(jnp.array(length)), expected, rtol=1e-10)


def test_unipc_corrects_with_the_parabola(x64):
    """A predictor as dpmpp_2m, started again at the corrected states (Zhao et al.).

    The first correction is a line with weight 1/2, as in the authors' code.
    """
    first = solve(X_T, T, U, predicted(X_T, T))
    x_T, x_U = predicted(X_T, T), predicted(first, U)
    corrected = solve(X_T, T, U, (x_T + x_U) / 2)
    second = solve(corrected, U, S, two_steps_back(x_U, x_T, T, U, S))
    x_S, nodes = predicted(second, S), [levels(t)[2] for t in (T, U, S)]
    h = nodes[2] - nodes[1]

    def parabola(u):
        x, values = nodes[1] + u * h, (x_T, x_U, x_S)
        return sum(
            value * np.prod([(x - m) / (n - m) for m in nodes if m != n])
            for n, value in zip(nodes, values, strict=True)
        )

    corrected = solve(corrected, U, S, average(parabola, h, 1))
    third = solve(corrected, S, R, two_steps_back(x_S, x_U, U, S, R))
    ours = walk(samplers.unipc(SCHEDULE), T, U, S, R)
    np.testing.assert_allclose(ours, [first, second, third], **TOLERANCE)


def test_heun_is_algorithm_1(x64):
    """Of Karras et al. (2022), for x / alpha at noise levels sigma / alpha."""
    (alpha_t, sigma_t, _), (alpha_s, sigma_s, _) = levels(T), levels(U)
    level_t, level_s = sigma_t / alpha_t, sigma_s / alpha_s
    x = X_T / alpha_t
    slope = (x - predicted(X_T, T)) / level_t
    trial = x + (level_s - level_t) * slope
    slope_there = (trial - predicted(alpha_s * trial, U)) / level_s
    expected = alpha_s * (x + (level_s - level_t) * (slope + slope_there) / 2)
    (ours,) = walk(samplers.heun(SCHEDULE), T, U)
    np.testing.assert_allclose(ours, expected, **TOLERANCE)


def test_churn_raises_the_noise_level(x64, monkeypatch):
    """Algorithm 2: level <- level (1 + churn), S_noise times as much noise, S_tmin."""
    monkeypatch.setattr(base, "standard_normal", lambda keys, x: jnp.asarray(NOISE))
    seen = []
    spy = lambda x, t: seen.append((x, t)) or denoiser(x, jnp.asarray(t))
    state = samplers.SamplerState(jnp.asarray(X_T))
    alpha_t, sigma_t, _ = levels(T)
    level = sigma_t / alpha_t
    method = samplers.heun(SCHEDULE, 0.2, level * 0.9, level * 1.1, 1.5)
    method.step(spy, keys(), state, T, U)
    x, time = seen[0]
    below = int(time)
    low, high = SCHEDULE.log_snr[below], SCHEDULE.log_snr[below + 1]
    raised = np.exp(-(low + (time - below) * (high - low)) / 2)
    np.testing.assert_allclose(raised, 1.2 * level, rtol=1e-10)
    noisier = X_T / alpha_t + 1.5 * np.sqrt(1.2**2 - 1) * level * NOISE
    np.testing.assert_allclose(x * np.sqrt(1 + raised**2), noisier, rtol=1e-10)
    outside = samplers.heun(SCHEDULE, 0.2, level * 1.05, level * 1.1)
    seen.clear()
    outside.step(spy, keys(), state, T, U)
    np.testing.assert_allclose(seen[0][0], X_T, rtol=1e-10)
    np.testing.assert_allclose(seen[0][1], T, rtol=1e-10)


@pytest.mark.parametrize(
    "weights",
    [
        [1],
        [3 / 2, -1 / 2],
        np.divide([23, -16, 5], 12),
        np.divide([55, -59, 37, -9], 24),
    ],
)
def test_adams_bashforth_at_even_times(x64, weights):
    """Liu et al. (2022), Eq. 9, and its lower orders while less is known."""
    nodes = np.zeros(4, int)
    nodes[: len(weights)] = 500 + 20 * np.arange(len(weights))
    ours = adams_bashforth(jnp.asarray(nodes), 500, 480)
    padded = np.append(weights, np.zeros(4 - len(weights)))
    np.testing.assert_allclose(ours, padded, atol=1e-12)


def test_adams_bashforth_integrates_a_cubic(x64):
    nodes, s = np.array([500, 513, 560, 700]), 430
    cubic = np.polynomial.Polynomial([3.0, 0.2, -1e-3, 2e-6])
    ours = adams_bashforth(jnp.asarray(nodes), 500, s) @ cubic(nodes)
    expected = (cubic.integ()(500) - cubic.integ()(s)) / (500 - s)
    np.testing.assert_allclose(ours, expected, rtol=1e-11)


def test_plms_puts_the_combination_into_ddim(x64):
    """Liu et al. (2022), Eq. 9 and 11, the fourth of four even steps."""
    times = [800, 700, 600, 500, 400]
    states = [X_T, *walk(samplers.plms(SCHEDULE), *times)]
    values = [
        denoiser(jnp.asarray(x), t).eps for x, t in zip(states, times, strict=True)
    ]
    eps = np.tensordot(np.divide([55, -59, 37, -9], 24), values[3::-1], 1)
    (alpha_t, sigma_t, _), (alpha_s, sigma_s, _) = levels(500), levels(400)
    expected = alpha_s * (states[3] - sigma_t * eps) / alpha_t + sigma_s * eps
    np.testing.assert_allclose(states[4], expected, **TOLERANCE)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("make", [samplers.dpmpp_2m, samplers.dpmpp_3m])
def test_the_first_step_is_ddim(x64, make, eta):
    (ours,), (ddim,) = (walk(f(SCHEDULE, eta), T, U) for f in (make, samplers.ddim))
    np.testing.assert_allclose(ours, ddim, **TOLERANCE)


def test_the_score_samplers_are_euler_steps(x64, monkeypatch):
    """Song et al. (2021), Eq. 6 and 13, with ∫ β = log(alpha_s^2 / alpha_t^2)."""
    monkeypatch.setattr(base, "standard_normal", lambda keys, x: jnp.asarray(NOISE))
    (alpha_t, sigma_t, _), alpha_s = levels(T), levels(U)[0]
    area = 2 * np.log(alpha_s / alpha_t)
    score = -(X_T - alpha_t * predicted(X_T, T)) / sigma_t**2
    (flow,) = walk(samplers.probability_flow(SCHEDULE), T, U)
    expected = X_T + area * (X_T + score) / 2
    np.testing.assert_allclose(flow, expected, **TOLERANCE)
    (sde,) = walk(samplers.reverse_sde(SCHEDULE), T, U)
    expected = X_T + area * (X_T / 2 + score) + np.sqrt(area) * NOISE
    np.testing.assert_allclose(sde, expected, **TOLERANCE)


def test_a_walk_of_one_step_is_the_prediction(x64):
    expected = denoiser(jnp.asarray(X_T), T).x_0
    for make in (samplers.dpmpp_2m, samplers.dpmpp_3m, samplers.unipc, samplers.heun):
        (ours,) = walk(make(SCHEDULE), T, 0)
        np.testing.assert_allclose(ours, expected, **TOLERANCE)
