"""Wrapping denoisers: clipping, thresholding, conditions, the call of the network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import denoisers, guidance, process, schedules
from ddpm_jax.diffusion.process import Prediction

SCHEDULE = schedules.linear()
X = jax.random.normal(jax.random.key(0), (6, 4, 4, 1))
LABELS = jnp.array([0, 3, 9, 1, 1, 7])


def says(x_0, eps=None):
    """A denoiser that says x_0 of whatever it is asked."""
    return lambda x_t, t, cond=None: Prediction(x_0, x_0 if eps is None else eps)


def labelled(params, x, index, cond, dropout_keys):
    """A network that adds the label to the image."""
    return x + cond[:, None, None, None] / 10


@pytest.mark.parametrize("rederive", [True, False])
def test_clip(rederive):
    raw = denoisers.from_network(lambda *args: 0.1 * X, None, SCHEDULE)
    clipped = denoisers.clip(raw, SCHEDULE, rederive=rederive)(3 * X, 300)
    np.testing.assert_allclose(
        clipped.x_0, jnp.clip(raw(3 * X, 300).x_0, -1, 1), rtol=1e-6
    )
    if rederive:
        x_t = process.diffuse(SCHEDULE, clipped.x_0, 300, clipped.eps)
        np.testing.assert_allclose(x_t, 3 * X, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(clipped.eps, 0.1 * X)


IMAGES = 3 * jax.random.normal(jax.random.key(1), (6, 8, 8, 3))


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.5, 100.0])
def test_threshold_divides_by_the_percentile(percentile):
    """Clipped to [-r, r] and divided by r, the percentile of each image's pixels."""
    x_0 = IMAGES / jnp.array([1, 2, 3, 4, 5, 100.0])[:, None, None, None]
    r = np.percentile(np.abs(x_0), percentile, axis=(1, 2, 3), keepdims=True)
    assert 0 < np.sum(r < 1) < 6
    r = np.maximum(r, 1)
    bounded = denoisers.threshold(says(x_0), SCHEDULE, percentile)(IMAGES, 300)
    np.testing.assert_allclose(bounded.x_0, np.clip(x_0, -r, r) / r, rtol=1e-5)
    assert float(jnp.abs(bounded.x_0).max()) <= 1


def test_threshold_leaves_images_within_the_range_as_they_are():
    x_0 = jnp.tanh(IMAGES)
    bounded = denoisers.threshold(says(x_0), SCHEDULE)(IMAGES, 300)
    np.testing.assert_array_equal(bounded.x_0, x_0)


def test_threshold_is_of_each_image_by_itself():
    bounded = denoisers.threshold(says(IMAGES), SCHEDULE, 80.0)(IMAGES, 300).x_0
    louder = IMAGES.at[1:].multiply(50)
    beside = denoisers.threshold(says(louder), SCHEDULE, 80.0)(IMAGES, 300).x_0
    np.testing.assert_allclose(beside[0], bounded[0], rtol=1e-6)


def test_threshold_divides_by_no_more_than_the_largest():
    r = np.percentile(np.abs(IMAGES), 99.5, axis=(1, 2, 3))
    assert r.min() > 2
    bounded = denoisers.threshold(says(IMAGES), SCHEDULE, largest=2.0)(IMAGES, 300)
    np.testing.assert_allclose(bounded.x_0, jnp.clip(IMAGES, -2, 2) / 2, rtol=1e-6)
    plain = denoisers.threshold(says(IMAGES), SCHEDULE, largest=1.0)(IMAGES, 300)
    np.testing.assert_array_equal(plain.x_0, jnp.clip(IMAGES, -1, 1))


def test_threshold_can_keep_eps():
    for rederive in (True, False):
        denoiser = denoisers.threshold(
            says(IMAGES, X[:, :1, :1]), SCHEDULE, rederive=rederive
        )
        x_0, eps, _ = denoiser(IMAGES, 300)
        if rederive:
            x_t = process.diffuse(SCHEDULE, x_0, 300, eps)
            np.testing.assert_allclose(x_t, IMAGES, rtol=1e-4, atol=1e-4)
        else:
            np.testing.assert_array_equal(eps, X[:, :1, :1])


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.5])
def test_a_percentile_outside_its_range_is_refused(percentile):
    with pytest.raises(ValueError, match=r"percentile must lie in \(0, 100\]"):
        denoisers.threshold(says(X), SCHEDULE, percentile)


def test_a_bound_below_the_images_range_is_refused():
    with pytest.raises(
        ValueError, match="bound of dynamic thresholding is 0.5, below 1"
    ):
        denoisers.threshold(says(X), SCHEDULE, largest=0.5)


def test_condition():
    denoiser = denoisers.from_network(labelled, None, SCHEDULE)
    conditioned = denoisers.condition(denoiser, LABELS)(X, 500)
    expected = denoiser(X, 500, LABELS)
    np.testing.assert_array_equal(conditioned.x_0, expected.x_0)
    assert float(jnp.abs(expected.x_0 - denoiser(X, 500, 0 * LABELS).x_0).max()) > 0.1


def test_networks_count_one_noising_step_as_0():
    network = lambda params, x, index, *_: 0 * x + index[:, None, None, None]
    for t in (1, jnp.full(6, 1)):
        seen, fraction = denoisers.call_network(network, None, X, t)
        np.testing.assert_array_equal(seen, jnp.zeros_like(X))
        assert fraction is None


def test_an_output_of_another_shape_is_refused():
    """Grey images would broadcast against three channels without a word."""
    network = lambda params, x, index, *_: jnp.concatenate([x, x, x], axis=-1)
    with pytest.raises(ValueError, match="twice the channels"):
        denoisers.call_network(network, None, X, 1)


def test_a_learned_variance_rides_along():
    """The second half of the output, from [-1, 1] to [0, 1]; guidance keeps cond's."""

    def network(params, x, index, cond, keys):
        between = 0 * x + (cond.astype(float) / 10)[:, None, None, None]
        return jnp.concatenate([0.1 * x, between], axis=-1)

    schedule = schedules.linear()
    denoiser = denoisers.from_network(network, None, schedule)
    expected = jnp.broadcast_to((LABELS / 10 + 1)[:, None, None, None] / 2, X.shape)
    for wrapped in (
        denoiser,
        denoisers.clip(denoiser, schedule),
        denoisers.threshold(denoiser, schedule),
        guidance.guide(denoiser, 3.0, null=10),
        guidance.guide(denoiser, 1, null=10),
    ):
        fraction = wrapped(X, 500, LABELS).fraction
        np.testing.assert_allclose(fraction, expected, rtol=1e-6)


def test_bounds_that_bound_nothing_are_refused():
    schedule = schedules.linear()
    with pytest.raises(ValueError, match="low < high, got 1.0, -1.0"):
        denoisers.clip(denoisers.clip, schedule, 1.0, -1.0)
    for settings in ({"percentile": 0.0}, {"percentile": np.nan}, {"largest": 0.5}):
        with pytest.raises(ValueError, match="must|below 1"):
            denoisers.threshold(denoisers.clip, schedule, **settings)
