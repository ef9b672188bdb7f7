"""Editing: inversion, interpolation, SDEdit, the level of noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import (
    Counter,
    image_keys,
    normal,
    pixels,
    rms,
)

from ddpm_jax.diffusion import editing, samplers, schedules, timesteps
from ddpm_jax.diffusion.process import from_eps
from ddpm_jax.diffusion.samplers.loop import sample

MEAN, STD = 0.3, 0.5
SHAPE = (32, 32, 32, 1)  # 32,768 independent pixels
IMAGES = MEAN + STD * normal(SHAPE, 2)
KEYS = image_keys(SHAPE[0])


def few_images():
    return MEAN + STD * normal((8, 4, 4, 1), 3)


def round_trip(num_steps, iterations=1):
    """The noise of some images, and the error of what DDIM makes of it again."""
    schedule, images = schedules.linear(), few_images()
    denoiser, times = (
        pixels(schedule, MEAN, STD),
        timesteps.trailing(schedule, num_steps),
    )
    noise = editing.encode(denoiser, schedule, images, times, iterations)
    sampler, keys = samplers.ddim(schedule), image_keys(8)
    back = sample(sampler, denoiser, keys, noise, times)[0]
    return noise, rms(back - images)


def correlation(a, b):
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def test_ddim_returns_to_the_images_that_were_encoded_to_first_order(x64):
    """Towards noise and back: an error of order 1 / S (Song et al. 2021, 4.3)."""
    errors = [round_trip(num_steps)[1] for num_steps in (50, 100, 200)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert errors[0] < 0.1
    assert np.all((orders > 0.8) & (orders < 1.3)), (errors, orders)


def test_iterations_make_the_inverse_exact(x64):
    """Each is a step of a fixed-point iteration, whose solution is the inverse."""
    errors = [round_trip(20, iterations)[1] for iterations in (1, 3, 5)]
    assert errors[1] < errors[0] / 10 and errors[2] < errors[1] / 10, errors


def test_a_step_with_many_iterations_is_the_inverse_of_ddims(x64):
    schedule = schedules.linear()
    denoiser, x = pixels(schedule, MEAN, STD), few_images()
    for t, s in ((0, 50), (50, 120), (400, 450)):
        up = editing.inversion(schedule, 40).step
        state, prediction = up(denoiser, None, samplers.SamplerState(x), t, s)
        back, _ = samplers.ddim(schedule).step(denoiser, None, state, s, t)
        np.testing.assert_allclose(back.x, x, atol=1e-9)
        again = from_eps(schedule, x, t, denoiser(state.x, s).eps)
        np.testing.assert_allclose(prediction.x_0, again.x_0, atol=1e-7)


def test_the_first_step_up_is_asked_about_clean_images():
    """At t = 0, x_s = alpha_s x + sigma_s eps(x, s): nothing is divided by sigma_0."""
    schedule, images = schedules.linear(), few_images()
    denoiser = pixels(schedule, MEAN, STD)
    state, _ = editing.inversion(schedule).step(
        denoiser, None, samplers.SamplerState(images), 0, 100
    )
    alpha, sigma = schedules.alpha_sigma(schedule, 100)
    expected = alpha * images + sigma * denoiser(images, 100).eps
    np.testing.assert_allclose(state.x, expected, rtol=1e-5, atol=1e-6)


def test_encoded_images_are_the_noise_of_the_probability_flow(x64):
    """For Gaussian data in closed form, and standard normal."""
    schedule, images = schedules.linear(), MEAN + STD * normal(SHAPE, 4)
    times = timesteps.trailing(schedule, 200)
    noise = editing.encode(pixels(schedule, MEAN, STD), schedule, images, times)
    alpha, sigma = schedules.alpha_sigma(schedule, 1000)
    scale = jnp.sqrt(alpha**2 * STD**2 + sigma**2)
    exact = alpha * MEAN + scale * (images - MEAN) / STD
    assert rms(noise - exact) < 0.03
    assert abs(float(noise.mean())) < 5 / 181 + 0.01
    assert abs(float(noise.std()) - 1) < 0.02


@pytest.mark.parametrize("iterations", [1, 3])
def test_an_iteration_is_a_network_call(iterations):
    schedule, counter = schedules.linear(), Counter()
    times = timesteps.trailing(schedule, 5)
    counted = counter(pixels(schedule, MEAN, STD))
    editing.encode(counted, schedule, few_images(), times, iterations)
    assert counter.read() == 8 * 5 * iterations


def test_no_iterations_are_refused():
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        editing.inversion(schedules.linear(), 0)


def test_slerp_of_orthogonal_unit_vectors_is_a_circle(x64):
    """Cos and sin of the angle; the ends are the ends; a weight for each."""
    a, b = np.zeros((2, 5, 1, 3, 1))
    a[:, 0, 0], b[:, 0, 1] = 1, 1
    angle = np.pi / 2 * np.array([0, 0.25, 0.5, 0.9, 1.0])
    result = editing.slerp(jnp.asarray(a), jnp.asarray(b), angle / (np.pi / 2))
    expected = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    np.testing.assert_allclose(result[:, 0, :, 0], expected, atol=1e-12)


def test_slerp_of_noise_is_noise():
    """A straight line would halve its variance in the middle."""
    a, b = normal((5, 32, 32, 3), 5), normal((5, 32, 32, 3), 6)
    result = editing.slerp(a, b, np.linspace(0, 1, 5))
    np.testing.assert_array_equal(result[0], a[0])
    np.testing.assert_allclose(result[-1], b[-1], atol=1e-6)
    norms = jnp.sqrt(jnp.mean(result**2, axis=(1, 2, 3)))
    np.testing.assert_allclose(norms, 1, atol=0.05)
    np.testing.assert_allclose(jnp.std(result[2]), 1, atol=0.05)


@pytest.mark.parametrize("factor", [1.0, -2.0, 1 + 1e-6])
def test_slerp_of_parallel_vectors_is_a_straight_line(factor):
    """Also its gradient, where that of the angle is infinite."""
    a, weight = normal((3, 4, 4, 1)), np.array([0.0, 0.3, 1.0], np.float32)
    line = lambda a, b, w: (1 - w)[:, None, None, None] * a + w[:, None, None, None] * b
    total = lambda *given: jnp.sum(editing.slerp(*given) ** 2)
    slopes = jax.grad(total, argnums=(0, 1, 2))(a, factor * a, jnp.asarray(weight))
    assert all(np.all(np.isfinite(slope)) for slope in slopes)
    result = editing.slerp(a, factor * a, weight)
    np.testing.assert_allclose(result, line(a, factor * a, weight), atol=1e-5)


@pytest.mark.parametrize("t", [1, 1000])
def test_perturb_draws_the_marginal_with_the_noise_of_each_image(t):
    schedule = schedules.linear()
    alpha, sigma = schedules.alpha_sigma(schedule, t)
    noise = (editing.perturb(schedule, KEYS, IMAGES, t) - alpha * IMAGES) / sigma
    few = 5 / np.sqrt(noise.size)
    np.testing.assert_allclose(noise.mean(), 0, atol=few + 1e-3)
    np.testing.assert_allclose(noise.std(), 1, rtol=few + 1e-3)
    assert abs(correlation(noise[0], noise[1])) < 5 / 32
    alone = editing.perturb(schedule, KEYS[3:4], IMAGES[3:4], t)
    np.testing.assert_allclose(
        (alone - alpha * IMAGES[3:4]) / sigma, noise[3:4], atol=1e-4 / sigma
    )


@pytest.mark.parametrize("t", [20, 300, 1000])
def test_sdedit_remembers_what_the_noise_left(t):
    """The correlation of result and input, for Gaussian data.

    With k^2 = alpha^2 STD^2 / (alpha^2 STD^2 + sigma^2), it is k along the probability
    flow, a linear map of x_t, and k^2 where the result is drawn from p(x_0 | x_t).
    """
    schedule = schedules.linear()
    denoiser = pixels(schedule, MEAN, STD)
    times = timesteps.from_time(timesteps.trailing(schedule, 100), t)
    assert times[0] == t
    x_t = editing.perturb(schedule, KEYS, IMAGES, t)
    alpha, sigma = (float(c) for c in schedules.alpha_sigma(schedule, t))
    k = alpha * STD / np.sqrt(alpha**2 * STD**2 + sigma**2)
    for sampler, expected in ((samplers.ddim, k), (samplers.ddpm, k**2)):
        keys = image_keys(SHAPE[0], 9)
        result = sample(sampler(schedule), denoiser, keys, x_t, times)[0]
        error = correlation(result, IMAGES) - expected
        assert abs(error) < 5 / 181 * (1 - expected**2) + 0.01
        assert abs(float(result.std()) - STD) < 0.04
        assert abs(float(result.mean()) - MEAN) < 0.02


LEVELS = np.array([0.05, 0.2, 0.6, 1.5])


@pytest.mark.parametrize("size", [(64, 64), (65, 67)])
def test_the_level_of_noise_in_ramps_is_found(size):
    """Of each image, and of odd sizes; 3,000 differences, 10% is four errors."""
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij")
    ramps = np.stack([rows, columns, rows - columns], axis=-1)
    images = jnp.asarray(np.stack([ramps, -ramps, ramps / 2, 0 * ramps]), jnp.float32)
    np.testing.assert_allclose(editing.noise_level(images), 0, atol=1e-6)
    noisy = images + LEVELS.reshape(4, 1, 1, 1).astype("f") * normal(images.shape)
    np.testing.assert_allclose(editing.noise_level(noisy), LEVELS, rtol=0.1)


@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine])
def test_the_time_of_noise_is_where_the_schedule_has_it(x64, make):
    schedule = make()
    times = np.array([1, 2, 77, 500, 999])
    alpha, sigma = schedules.alpha_sigma(schedule, times)
    found = editing.time_of_noise(schedule, sigma / alpha)
    np.testing.assert_allclose(found, times, rtol=1e-9)
    beyond = editing.time_of_noise(schedule, jnp.array([0.0, 1e-9, 1e9]))
    np.testing.assert_array_equal(beyond, [1, 1, 1000])


def test_denoising_from_the_time_of_the_noise_leaves_the_posteriors_error():
    """One step gives E[x_0 | y], whose error is STD std / sqrt(STD^2 + std^2)."""
    schedule, std = schedules.linear(), 0.4
    noisy = IMAGES + std * normal(SHAPE, 7)
    t = int(jnp.round(editing.time_of_noise(schedule, std)))
    alpha, _ = schedules.alpha_sigma(schedule, t)
    sampler, denoiser = samplers.ddim(schedule), pixels(schedule, MEAN, STD)
    result, _ = sample(sampler, denoiser, KEYS, alpha * noisy, np.array([t, 0]))
    expected = STD * std / np.sqrt(STD**2 + std**2)
    assert abs(rms(result - IMAGES) / expected - 1) < 0.02
    assert abs(rms(noisy - IMAGES) / std - 1) < 0.02
