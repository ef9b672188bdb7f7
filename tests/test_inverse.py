"""Linear inverse problems: the laws of A⁺, and what each method knows of the rest."""

import jax.numpy as jnp
import numpy as np
import pytest
from exact import SAMPLERS, correlated, image_keys, measured, normal, pixels

from ddpm_jax.diffusion import inverse, samplers, schedules, timesteps
from ddpm_jax.diffusion.samplers.loop import sample

SHAPE = (3, 4, 4, 3)
HIDDEN = jnp.arange(48).reshape(4, 4, 3) % 3 != 1
MEASUREMENTS = {
    "visible": inverse.visible(HIDDEN),
    "visible pixels": inverse.visible(jnp.arange(16).reshape(4, 4, 1) % 3 != 1),
    "downsampled by 2": inverse.downsampled(2),
    "downsampled by 4": inverse.downsampled(4),
    "grey": inverse.grey(),
}
METHODS = {"replace": inverse.replace, "guide": inverse.pseudoinverse_guide}


def images():
    return normal(SHAPE, 2)


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_the_pseudo_inverse_obeys_moore_and_penrose(x64, name):
    """A A⁺ A = A, A⁺ A A⁺ = A⁺, and A⁺A and A A⁺ are symmetric (Penrose 1955)."""
    apply, invert = MEASUREMENTS[name]
    flat = lambda function, shape: np.stack(
        [function(unit.reshape(1, *shape)).ravel() for unit in jnp.eye(np.prod(shape))],
        axis=1,
    )
    shape = SHAPE[1:]
    a = flat(apply, shape)
    b = flat(invert, apply(images()).shape[1:])
    for left, right in ((a @ b @ a, a), (b @ a @ b, b), (b @ a, (b @ a).T)):
        np.testing.assert_allclose(left, right, atol=1e-12)
    np.testing.assert_allclose(a @ b, (a @ b).T, atol=1e-12)
    assert 0 < np.linalg.matrix_rank(a) < 48


def test_what_is_measured(x64):
    """Means of squares, a weighted sum of colours, the pixels that are not hidden."""
    x = images()
    means = inverse.downsampled(2).apply(x)
    np.testing.assert_allclose(means[1, 0, 1], x[1, :2, 2:].mean(axis=(0, 1)))
    grey = inverse.grey().apply(x)[..., 0]
    weighted = 0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2]
    np.testing.assert_allclose(grey, weighted, atol=1e-12)
    shown = inverse.visible(HIDDEN).apply(x)
    np.testing.assert_array_equal(shown[:, ~HIDDEN], x[:, ~HIDDEN])
    assert not np.any(shown[:, HIDDEN])


@pytest.mark.parametrize(
    "name, measurement",
    [(name, "grey") for name in SAMPLERS]
    + [("ddpm", "visible"), ("unipc", "downsampled by 2")],
)
def test_replacement_ends_in_what_was_measured(name, measurement):
    schedule, measurement = schedules.linear(), MEASUREMENTS[measurement]
    y = measurement.apply(images())
    denoiser = inverse.replace(pixels(schedule, 0.2, 0.5), schedule, measurement, y)
    times, keys = np.array([1000, 600, 200, 0]), image_keys(3)
    x, _ = sample(SAMPLERS[name](schedule), denoiser, keys, normal(SHAPE), times)
    np.testing.assert_allclose(measurement.apply(x), y, atol=2e-6)
    assert float(jnp.abs(x - images()).mean()) > 0.1


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_where_the_prediction_agrees_it_stays(x64, name):
    schedule, measurement = schedules.linear(), MEASUREMENTS[name]
    denoiser, x_t = pixels(schedule, 0.2, 0.5), normal(SHAPE)
    plain = denoiser(x_t, 300)
    y = measurement.apply(plain.x_0)
    for method in METHODS.values():
        x_0, eps, _ = method(denoiser, schedule, measurement, y)(x_t, 300)
        np.testing.assert_allclose(x_0, plain.x_0, atol=1e-12)
        np.testing.assert_allclose(eps, plain.eps, atol=1e-9)


def test_hidden_pixels_may_read_anything(x64):
    """Only what was seen of y counts."""
    schedule, seen = schedules.linear(), inverse.visible(HIDDEN)
    denoiser, x_t, y = pixels(schedule, 0.2, 0.5), normal(SHAPE), images()
    for method in METHODS.values():
        full, hidden = (
            method(denoiser, schedule, seen, given)(x_t, 300).x_0
            for given in (y, seen.apply(y))
        )
        np.testing.assert_allclose(full, hidden, atol=1e-12)


def test_visible_pixels_are_replaced_exactly_and_the_others_are_left():
    schedule, seen, x = schedules.linear(), inverse.visible(HIDDEN), images()
    denoiser, x_t = pixels(schedule, 0.2, 0.5), normal(SHAPE)
    x_0, *_ = inverse.replace(denoiser, schedule, seen, seen.apply(x))(x_t, 500)
    np.testing.assert_allclose(x_0[:, ~HIDDEN], x[:, ~HIDDEN], atol=1e-6)
    plain = denoiser(x_t, 500).x_0
    np.testing.assert_array_equal(x_0[:, HIDDEN], plain[:, HIDDEN])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_of_independent_unit_pixels_the_conditional_is_exact(x64, name, method):
    """Given A x_0 = y, N(0, 1) pixels are A⁺y where seen, and free elsewhere.

    x_0 = A⁺y + (1 - A⁺A) z with z normal, so E[x_0 | x_t, y] is A⁺y and, of what A does
    not see, the unconditional alpha_t x_t: the projection commutes with the noise.
    """
    schedule, (apply, invert) = schedules.linear(), MEASUREMENTS[name]
    y, x_t = apply(images()), normal(SHAPE)
    denoiser = METHODS[method](
        pixels(schedule, 0.0, 1.0), schedule, MEASUREMENTS[name], y
    )
    for t in (1, 400, 1000, jnp.array([5, 300, 900])):
        alpha, sigma = (
            c.reshape(c.shape + (1,) * (4 - c.ndim))
            for c in schedules.alpha_sigma(schedule, t)
        )
        free = alpha * x_t
        expected = invert(y) + free - invert(apply(free))
        x_0, eps, _ = denoiser(x_t, t)
        np.testing.assert_allclose(x_0, expected, atol=1e-9)
        np.testing.assert_allclose(eps, (x_t - alpha * expected) / sigma, atol=1e-7)


BATCH = 2048
DISTANCE = np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
COVARIANCE = 0.9**DISTANCE  # of 4 pixels in a row, unit variance each
FIRST_TWO_HIDDEN = jnp.array([[[True], [True], [False], [False]]])
ROWS = {
    "visible": (inverse.visible(FIRST_TWO_HIDDEN), np.eye(4)[2:], [1.2, -0.3]),
    "mean of two": (
        inverse.Measurement(
            lambda x: x[:, :, 2:].mean(axis=2, keepdims=True),
            lambda y: jnp.concatenate([0 * y, 0 * y, y, y], axis=2),
        ),
        np.array([[0, 0, 0.5, 0.5]]),
        [1.0],
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_guidance_moves_the_unseen_part_where_replacement_does_not(name):
    """The mean of samples against the exact conditional of a correlated Gaussian."""
    schedule, (measurement, matrix, value) = schedules.linear(), ROWS[name]
    exact, _ = measured(np.zeros(4), COVARIANCE, matrix, np.array(value))
    truth = jnp.broadcast_to(
        jnp.asarray(np.linalg.pinv(matrix) @ value, jnp.float32).reshape(1, 1, 4, 1),
        (BATCH, 1, 4, 1),
    )
    y = measurement.apply(truth)
    denoiser = correlated(schedule, np.zeros(4), COVARIANCE)
    times, errors = timesteps.trailing(schedule, 50), {}
    for method, make in METHODS.items():
        x, _ = sample(
            samplers.ddim(schedule, 1.0),
            make(denoiser, schedule, measurement, y),
            image_keys(BATCH),
            normal(truth.shape),
            times,
        )
        errors[method] = np.linalg.norm(np.mean(x, axis=0).ravel() - exact)
    assert errors["guide"] < 0.75 * errors["replace"], errors


def test_downsampling_needs_a_factor_of_the_size():
    with pytest.raises(ValueError, match="3 does not divide images of 8x8"):
        inverse.downsampled(3).apply(jnp.zeros((1, 8, 8, 1)))
    with pytest.raises(ValueError, match="factor must be 1 or more, got -2"):
        inverse.downsampled(-2)


def test_restoring_is_guided_and_ends_in_what_was_measured():
    schedule, measurement = schedules.linear(), inverse.downsampled(2)
    denoiser, x_t = pixels(schedule, 0.2, 0.5), normal(SHAPE)
    y = measurement.apply(images())
    free = lambda x: x - measurement.invert(measurement.apply(x))
    guided, restored = (
        method(denoiser, schedule, measurement, y)(x_t, 300).x_0
        for method in (inverse.pseudoinverse_guide, inverse.restore)
    )
    np.testing.assert_allclose(measurement.apply(restored), y, atol=1e-5)
    np.testing.assert_allclose(free(restored), free(guided), atol=1e-5)
