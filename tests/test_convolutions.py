"""Each platform's way to convolve is the same function, with the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.networks import convolutions

KEYS = jax.random.split(jax.random.key(0), 3)


def repeated(x, kernel):
    """The definition."""
    return convolutions._conv(x.repeat(2, axis=1).repeat(2, axis=2), kernel)


WAYS = {
    "by taps": (convolutions._by_taps, convolutions._conv),
    "chosen": (convolutions.conv_3x3, convolutions._conv),
    "by phases": (convolutions._by_phases, repeated),
    "transposed": (convolutions._transposed, repeated),
    "chosen, doubled": (convolutions.doubled_conv_3x3, repeated),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [(4, 6), (1, 2), (5, 1)])
def test_the_same_function(x64, way, size):
    fast, definition = WAYS[way]
    x = jax.random.normal(KEYS[0], (2, *size, 3), jnp.float64)
    kernel = jax.random.normal(KEYS[1], (3, 3, 3, 5), jnp.float64)
    expected, pull = jax.vjp(definition, x, kernel)
    value, our_pull = jax.vjp(fast, x, kernel)
    np.testing.assert_allclose(value, expected, atol=1e-12)
    dy = jax.random.normal(KEYS[2], expected.shape, jnp.float64)
    for ours, theirs in zip(our_pull(dy), pull(dy), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_a_platform_gets_its_own(platform):
    """Nine products for the gradient on a CPU; half the taps of a doubled image."""
    x, kernel = jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 3, 5))

    def lowered(function):
        traced = jax.jit(function).trace(x, kernel)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    def gradient(x, kernel):
        return jax.grad(lambda k: convolutions.conv_3x3(x, k).sum())(kernel)

    products = lowered(gradient).count("dot_general")
    assert products == (9 if platform == "cpu" else 0)
    doubled = lowered(convolutions.doubled_conv_3x3)
    assert doubled.count("stablehlo.convolution") == (4 if platform == "cpu" else 1)
