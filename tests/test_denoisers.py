"""Wrapping denoisers: clipping, guidance, conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import denoisers, guidance, process, schedules

SCHEDULE = schedules.linear()
NULL = 10
X = jax.random.normal(jax.random.key(0), (6, 4, 4, 1))
LABELS = jnp.array([0, 3, 9, 1, 1, 7])


class CountingNetwork:
    """Adds the label to the image, and counts the images that it is asked for."""

    def __init__(self):
        self.images = 0

    def __call__(self, params, x, index, cond=None, dropout_keys=None):
        self.images += len(x)
        return x + cond[:, None, None, None] / 10


def guided(scale):
    network = CountingNetwork()
    denoiser = denoisers.from_network(network, None, SCHEDULE)
    return guidance.guide(denoiser, scale, NULL), denoiser, network


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a, b)


def test_guidance_of_1_is_conditional_and_0_unconditional_at_one_call():
    for scale, labels in [(1.0, LABELS), (0, jnp.full(6, NULL))]:
        wrapped, denoiser, network = guided(scale)
        result = wrapped(X, 500, LABELS)
        assert network.images == 6
        assert_same(result, denoiser(X, 500, labels))


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_guidance_extrapolates_along_the_line(scale):
    wrapped, denoiser, network = guided(scale)
    result = wrapped(X, 500, LABELS)
    assert network.images == 12
    null, cond = denoiser(X, 500, jnp.full(6, NULL)), denoiser(X, 500, LABELS)
    assert_same(result, jax.tree.map(lambda n, c: n + scale * (c - n), null, cond))
    # What it says of x_0 and of eps still agrees.
    again = process.from_eps(SCHEDULE, X, 500, result.eps)
    np.testing.assert_allclose(result.x_0, again.x_0, rtol=1e-3, atol=1e-3)


def test_guidance_with_a_time_for_each_and_a_traced_scale():
    times = jnp.array([1, 10, 100, 500, 900, 1000])
    for_each = guided(2.0)[0](X, times, LABELS)
    traced = jax.jit(lambda s: guided(s)[0](X, times, LABELS))(2.0)
    assert_same(for_each, traced)
    one = guided(2.0)[0](X[3:4], 500, LABELS[3:4])
    np.testing.assert_allclose(for_each.x_0[3:4], one.x_0, rtol=1e-5)


def test_pairs_are_interleaved():
    """Each image stays beside its pair: a sharded batch needs no communication."""
    seen = []
    guidance.guide(
        lambda x, t, cond: seen.append(cond) or process.Prediction(x, x), 2.0, NULL
    )(X, 500, LABELS)
    np.testing.assert_array_equal(seen[0][::2], LABELS)
    np.testing.assert_array_equal(seen[0][1::2], NULL)


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


def test_condition():
    wrapped, _, _ = guided(2.0)
    conditioned = denoisers.condition(wrapped, LABELS)
    assert_same(conditioned(X, 500), wrapped(X, 500, LABELS))


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
        guidance.guide(denoiser, 3.0, null=10),
        guidance.guide(denoiser, 1, null=10),
    ):
        fraction = wrapped(X, 500, LABELS).fraction
        np.testing.assert_allclose(fraction, expected, rtol=1e-6)
