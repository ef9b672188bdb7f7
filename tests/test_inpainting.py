"""Inpainting by replacement, and RePaint, where the exact conditional is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import SAMPLERS, Counter, correlated, image_keys, measured, normal, pixels

from ddpm_jax.diffusion import editing, samplers, schedules, timesteps
from ddpm_jax.diffusion.samplers.loop import sample

SCHEDULE = schedules.linear()
DENOISER = pixels(SCHEDULE, 0.3, 0.5)
KNOWN = normal((3, 4, 4, 1), 2)
KEYS = image_keys(3)
HERE = jnp.arange(16).reshape(4, 4, 1) % 3 == 0
MASKS = {"one": HERE, "each": jnp.stack([HERE, ~HERE, jnp.roll(HERE, 1, 0)])}
FEW = np.array([1000, 700, 400, 50, 0])


def run(sampler, times=FEW, x_T=None, denoiser=DENOISER, **observing):
    x_T = normal(KNOWN.shape) if x_T is None else x_T
    return sample(sampler, denoiser, image_keys(len(x_T)), x_T, times, **observing)


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_is_known_is_returned_exactly(name):
    inner = SAMPLERS[name](SCHEDULE)
    for mask in MASKS.values():
        known = jnp.where(mask, jnp.nan, KNOWN)  # nothing leaks of what is painted
        sampler = editing.inpaint(inner, SCHEDULE, known, mask)
        x, shown = run(sampler, observe=lambda _, prediction: prediction.x_0)
        there = np.broadcast_to(~mask, x.shape)
        np.testing.assert_array_equal(x[there], KNOWN[there])
        np.testing.assert_array_equal(shown[:, there], np.stack([KNOWN[there]] * 4))
        assert float(jnp.abs(x - KNOWN)[~there].min()) > 1e-4


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_3m", "unipc", "plms"])
def test_nothing_known_and_no_jump_leave_the_sampler_as_it_is(name):
    """Where all is painted, images of nan do not leak; two programs, one rounding."""
    inner = SAMPLERS[name](SCHEDULE)
    everywhere = jnp.ones((4, 4, 1), bool)
    nothing = jnp.full_like(KNOWN, jnp.nan)
    painted = editing.inpaint(inner, SCHEDULE, nothing, everywhere)
    plain, _ = run(inner)
    same, _ = run(editing.resample(painted, SCHEDULE))
    np.testing.assert_allclose(same, plain, atol=1e-5)


def test_what_is_known_has_the_noise_of_its_time_and_not_the_steps_own():
    shape, keys = (32, 32, 32, 1), image_keys(32)
    known, mask = normal(shape, 2), jnp.zeros(shape, bool)
    sampler = editing.inpaint(samplers.ddpm(SCHEDULE), SCHEDULE, known, mask)
    start = samplers.SamplerState(normal(shape))
    state, _ = sampler.step(DENOISER, keys, start, 700, 400)
    alpha, sigma = schedules.alpha_sigma(SCHEDULE, 400)
    noise = (state.x - alpha * known) / sigma
    few = 5 / np.sqrt(noise.size)
    assert abs(float(noise.mean())) < few and abs(float(noise.std()) - 1) < few
    own = samplers.standard_normal(keys, known)
    for other in (own, known, start.x):
        assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < few


RHO, VALUE = 0.9, 1.0
COVARIANCE = np.array([[1, RHO], [RHO, 1]])
BATCH = 1024


def paint(sampler, times):
    """Mean and standard deviation of the right pixel, painted beside a known left."""
    known = jnp.full((BATCH, 1, 2, 1), VALUE).at[:, 0, 1].set(-9.0)
    mask = jnp.array([[[False], [True]]])
    inpainted = editing.inpaint(sampler, SCHEDULE, known, mask)
    denoiser = correlated(SCHEDULE, 0.0, COVARIANCE)
    x, _ = run(
        editing.resample(inpainted, SCHEDULE), times, normal(known.shape), denoiser
    )
    np.testing.assert_array_equal(x[:, 0, 0], VALUE)
    return np.array([x[:, 0, 1].mean(), x[:, 0, 1].std()])


@pytest.mark.parametrize("name", ["ddpm", "unipc"])
def test_repaint_comes_closer_to_the_exact_conditional_than_replacement(name):
    """Of a correlated Gaussian, N(rho value, 1 - rho^2)."""
    mean, covariance = measured(np.zeros(2), COVARIANCE, np.eye(2)[:1], [VALUE])
    np.testing.assert_allclose([mean[1], covariance[1, 1]], [RHO * VALUE, 1 - RHO**2])
    exact = np.array([mean[1], np.sqrt(covariance[1, 1])])
    times, sampler = timesteps.trailing(SCHEDULE, 50), SAMPLERS[name](SCHEDULE)
    replaced = np.abs(paint(sampler, times) - exact)
    walk = timesteps.resampled(times, 2, 8)
    repainted = np.abs(paint(sampler, walk) - exact)
    assert np.hypot(*repainted) < np.hypot(*replaced) / 3


def test_a_jump_up_lands_on_the_marginal():
    """From q(x_s | x_0) to q(x_t | x_0), s < t, whatever the sampler remembers."""
    shape, x_0 = (32, 32, 32, 1), 0.8
    sampler = editing.resample(samplers.dpmpp_3m(SCHEDULE), SCHEDULE)
    for s, t in ((1, 2), (100, 150), (200, 900)):
        alpha, sigma = schedules.alpha_sigma(SCHEDULE, s)
        start = sampler.init(alpha * x_0 + sigma * normal(shape))
        used = jax.tree.map(lambda leaf: leaf + 1, start.memory)
        state, prediction = sampler.step(
            DENOISER, image_keys(32), start._replace(memory=used), s, t
        )
        alpha, sigma = schedules.alpha_sigma(SCHEDULE, t)
        few = 5 / np.sqrt(state.x.size)
        np.testing.assert_allclose(state.x.mean(), alpha * x_0, atol=few * sigma)
        np.testing.assert_allclose(state.x.std(), sigma, rtol=few)
        jax.tree.map(np.testing.assert_array_equal, state.memory, start.memory)
        assert not np.any(prediction.x_0) and not np.any(prediction.eps)


def test_a_jump_up_asks_no_network():
    walk = timesteps.resampled(timesteps.trailing(SCHEDULE, 6), 2, 3)
    counter, down = Counter(), int(np.sum(np.diff(walk) < 0))
    assert down < len(walk) - 1
    sampler = editing.resample(samplers.ddim(SCHEDULE), SCHEDULE)
    run(sampler, walk, denoiser=counter(DENOISER))
    assert counter.read() == 3 * down
