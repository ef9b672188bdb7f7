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
    "by phases": (convolutions._by_phases, repeated),
    "transposed": (convolutions._transposed, repeated),
    "chosen": (convolutions.doubled_conv_3x3, repeated),
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
    """Four convolutions with 2 x 2 kernels on a CPU, a transposed one elsewhere."""
    x, kernel = jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 3, 5))
    traced = jax.jit(convolutions.doubled_conv_3x3).trace(x, kernel)
    doubled = traced.lower(lowering_platforms=(platform,)).as_text()
    assert doubled.count("stablehlo.convolution") == (4 if platform == "cpu" else 1)


@pytest.fixture
def on_gpu(monkeypatch):
    """What would be compiled for a GPU is traced for the CPU."""

    def choose(*given, default, cuda=None, **others):
        return (cuda or default)(*given)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    jax.clear_caches()
    yield
    monkeypatch.undo()
    jax.clear_caches()


def pulled(dtype, offset):
    """A layer's values, and its gradients by parameters, image and offset."""
    layer = convolutions.Conv3x3(5, dtype)
    x = jax.random.normal(KEYS[0], (2, 4, 6, 3), dtype)
    params = layer.init(KEYS[1], x)
    value, pull = jax.vjp(layer.apply, params, x, offset)
    return value, *pull(jax.random.normal(KEYS[2], value.shape, dtype))


@pytest.mark.parametrize("offset", [0.0, np.arange(10.0, dtype=np.float32)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_gpu_gets_the_same_function(request, dtype, offset):
    offset = np.reshape(offset, (2, 5)) if np.ndim(offset) else offset
    expected = pulled(dtype, offset)
    request.getfixturevalue("on_gpu")
    ours = pulled(dtype, offset)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
@pytest.mark.parametrize(
    ("images", "channels", "laid_out"), [(2, 8, True), (1, 8, False), (2, 3, False)]
)
def test_how_images_lie_on_a_tpu(platform, images, channels, laid_out):
    """[height, width, images, channels], but one image, or one of colours."""
    layer, x = convolutions.Conv3x3(channels, jnp.float32), np.ones((images, 4, 6, 8))
    traced = jax.jit(lambda x: layer.init_with_output(KEYS[0], x)[0]).trace(x)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    asked = laid_out and platform == "tpu"
    assert text.count("LayoutConstraint") == asked
    # From the last axis to the first.
    assert ("result_layouts = [dense<[3, 0, 2, 1]>" in text) == asked


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_what_is_asked_of_compilers(platform):
    """Of a GPU's: the kernel's gradient in the kernel's layout, no image of biases."""
    traced = jax.jit(lambda offset: pulled(jnp.float32, offset)).trace(np.ones((2, 5)))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    on_gpu = platform == "cuda"
    assert ("LayoutConstraint" in text) == on_gpu
    # Of the convolution and of what comes back to it, and of the kernel's gradient.
    assert text.count("optimization_barrier") == (3 if on_gpu else 0)
