"""The U-Net: published sizes, initialisation, options, and what it refuses."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.networks import layers, unet

TINY = dict(channels=8, channel_mults=(1, 2), num_res_blocks=1, num_groups=4)
TINY = {**TINY, "attention_resolutions": (4,)}
KEY = jax.random.key(0)


def abstract(network, image_shape):
    return jax.eval_shape(lambda key: network.init(key, image_shape), KEY)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def init(network, image_shape=(8, 8, 1)):
    return jax.jit(lambda key: network.init(key, image_shape))(KEY)


def forward(network, params, image_shape=(8, 8, 1), batch=2, cond=None, keys=None):
    x = jax.random.normal(jax.random.key(1), (batch, *image_shape))
    return jax.jit(network.apply)(params, x, jnp.arange(batch) * 100, cond, keys)


def random_params(network, image_shape=(8, 8, 1)):
    """Random parameters everywhere, also where initialisation puts zeros."""
    random = np.random.default_rng(2)

    def draw(leaf):
        return jnp.asarray(0.3 * random.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(draw, abstract(network, image_shape))


def test_published_sizes():
    """Ho et al. (2020): 35.7M for CIFAR-10, 114M at 256x256; tensors as published."""
    cifar = abstract(unet(), (32, 32, 3))
    assert count(cifar) == 35_746_307 and len(jax.tree.leaves(cifar)) == 328
    large = abstract(unet(channel_mults=(1, 1, 2, 2, 4, 4)), (256, 256, 3))
    assert count(large) == 113_673_219 and len(jax.tree.leaves(large)) == 450
    celeba = abstract(unet(channel_mults=(1, 2, 2, 2, 4)), (64, 64, 3))
    assert count(celeba) == 78_700_803  # Song et al. (2021)


def test_initialisation():
    """Fan-average uniform, and "zero" (1e-10) for what ends a residual branch."""
    params = init(unet(**TINY))
    for name, scale in [("conv1", 1), ("conv2", 1e-10)]:
        kernel = params["down_1_0_block"][name]["kernel"]
        fan_average = 9 * (kernel.shape[2] + kernel.shape[3]) / 2
        bound = np.sqrt(3 * scale / fan_average)
        assert 0.9 * bound < np.abs(kernel).max() <= bound
        assert not params["down_1_0_block"][name]["bias"].any()
    assert np.abs(params["conv_out"]["kernel"]).max() < 1e-4
    assert np.abs(params["mid_attn"]["proj_out"]["kernel"]).max() < 1e-4
    out = forward(unet(**TINY), params)
    assert np.abs(out).max() < 1e-2


def test_sinusoid():
    embedded = layers.sinusoid(jnp.array([0, 1, 999]), 8)
    frequencies = 1e4 ** -(np.arange(4) / 3)
    angles = np.array([[0.0], [1], [999]]) * frequencies
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(embedded, expected, atol=1e-4)


def test_downsampling_pads_below_and_right():
    """Stride 2 looks at rows (0, 1, 2), (2, 3, 4), ..., the last one padded."""
    layer = layers.Downsample(False, "float32")
    x = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(1.0)
    params = layer.init(KEY, x)
    kernel = params["params"]["conv"]["kernel"][..., 0, 0]
    np.testing.assert_allclose(layer.apply(params, x)[0, 0, 0, 0], kernel[0, 0])
    corner = jnp.zeros((1, 4, 4, 1)).at[0, 3, 3, 0].set(1.0)
    np.testing.assert_allclose(layer.apply(params, corner)[0, 1, 1, 0], kernel[1, 1])


def test_resampling():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(
        layers.upsample(x)[0, ..., 0],
        [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]],
    )
    np.testing.assert_array_equal(layers.downsample(layers.upsample(x)), x)


def test_attention_is_softmax_of_scaled_products():
    """One head over all pixels and channels, scale 1 / sqrt(C) (Ho et al., App. B)."""
    layer = layers.Attention(
        num_heads=1, num_groups=2, norm_eps=1e-6, dtype=jnp.float32
    )
    x = jax.random.normal(KEY, (2, 3, 5, 4))
    params = jax.tree.map(lambda p: p + 0.2, layer.init(KEY, x))
    p = params["params"]
    h = layers.nn.GroupNorm(2, epsilon=1e-6).apply({"params": p["norm"]}, x)
    q, k, v = (
        layers.dense(4, None).apply({"params": p[n]}, h).reshape(2, 15, 4)
        for n in "qkv"
    )
    weights = jax.nn.softmax(q @ k.swapaxes(1, 2) / 2, axis=-1)
    out = layers.dense(4, None).apply(
        {"params": p["proj_out"]}, (weights @ v).reshape(x.shape)
    )
    np.testing.assert_allclose(layer.apply(params, x), x + out, rtol=1e-4, atol=1e-5)


OPTIONS = {
    "plain": {},
    "heads": {"num_heads": 4},
    "head channels": {"head_channels": 4},
    "scale-shift": {"scale_shift": True},
    "residual resampling": {"residual_resample": True},
    "classes": {"num_classes": 5, "label_dropout": 0.5},
    "learned variance": {"learned_variance": True},
    "everywhere attentive": {"attention_resolutions": (8, 4)},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    """Each has the output's shape, an effect, and depends on x and on time."""
    network = unet(**{**TINY, **OPTIONS[name]})
    params = random_params(network)
    cond = jnp.array([3, 3]) if name == "classes" else None
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    apply = jax.jit(network.apply)
    out = apply(params, x, jnp.array([5, 5]), cond)
    assert out.shape == (2, 8, 8, 2 if name == "learned variance" else 1)
    assert out.dtype == x.dtype
    later = apply(params, x, jnp.array([5, 900]), cond)
    np.testing.assert_allclose(out[0], later[0], atol=1e-5)
    assert np.abs(out[1] - later[1]).max() > 1e-3
    changes_tensors = name not in ("plain", "heads", "head channels")
    plain = abstract(unet(**TINY), (8, 8, 1))
    assert (jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, plain)) == (
        changes_tensors
    )


def test_heads_split_the_channels():
    shapes = (
        jax.tree.map(lambda x: x.shape, abstract(unet(**TINY, **o), (8, 8, 1)))
        for o in ({}, {"num_heads": 4}, {"head_channels": 4})
    )
    one, four, by_channels = shapes
    assert one == four == by_channels  # the parameters are the same, the result not
    params = random_params(unet(**TINY))
    outs = [
        forward(unet(**TINY, **o), params)
        for o in ({}, {"num_heads": 4}, {"head_channels": 4})
    ]
    np.testing.assert_allclose(outs[1], outs[2], rtol=1e-5)  # 16 channels: 4 heads of 4
    assert np.abs(outs[0] - outs[1]).max() > 1e-4


@pytest.mark.parametrize("image_shape", [(8, 12, 3), (16, 8, 1), (4, 4, 5)])
def test_any_shape_and_channels(image_shape):
    network = unet(**TINY)
    params = random_params(network, image_shape)
    assert forward(network, params, image_shape).shape == (2, *image_shape)


def test_attention_stands_where_it_is_asked_for():
    shapes = abstract(unet(**{**TINY, "attention_resolutions": (8,)}), (8, 12, 1))
    attentive = sorted(name for name in shapes if name.endswith("attn"))
    assert attentive == ["down_0_0_attn", "mid_attn", "up_0_0_attn", "up_0_1_attn"]


def test_bfloat16_computes_coarsely_with_float32_parameters():
    params = random_params(unet(**TINY))
    fine, coarse = (
        forward(unet(**TINY, dtype=dtype), params) for dtype in ("float32", "bfloat16")
    )
    half = abstract(unet(**TINY, dtype="bfloat16"), (8, 8, 1))
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    error = np.abs(fine - coarse).max() / np.abs(fine).max()
    # Each of the layers rounds to 2^-9, relatively; errors add up as their squares.
    assert 1e-3 < error < 0.02 and coarse.dtype == jnp.float32


def lines_of(jaxpr):
    """All lines of a traced program and of those within it."""
    for line in jaxpr.eqns:
        yield line
        for value in jax.tree.leaves(line.params, is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from lines_of(inner)


def test_what_bfloat16_is_used_for():
    """Products of activations; not sums, exponentials, times, or the last layers."""
    network = unet(**{**TINY, "scale_shift": True}, dtype="bfloat16", dropout=0.1)
    params = abstract(network, (8, 8, 3))
    x, index = jnp.zeros((2, 8, 8, 3)), jnp.zeros(2, int)
    keys = jax.random.split(KEY, 2)

    def loss(params):
        return jnp.sum(network.apply(params, x, index, None, keys) ** 2)

    lines = list(lines_of(jax.make_jaxpr(jax.value_and_grad(loss))(params).jaxpr))

    def dtypes(*names):
        found = [line for line in lines if line.primitive.name in names]
        assert found
        return [(line, line.invars[0].aval.dtype) for line in found]

    precise = ("exp", "logistic", "rsqrt", "reduce_max", "sin", "cos", "log")
    for name in precise:
        if any(line.primitive.name == name for line in lines):
            assert all(dtype == jnp.float32 for _, dtype in dtypes(name)), name
    pixels = [  # sums over pixels; those of biases are sums over examples, too
        dtype for line, dtype in dtypes("reduce_sum") if line.params["axes"] == (1, 2)
    ]
    assert pixels and set(pixels) == {jnp.dtype("float32")}
    convolutions = dtypes("conv_general_dilated")
    fine = {
        tuple(line.outvars[0].aval.shape)
        for line, dtype in convolutions
        if dtype == jnp.float32
    }
    coarse = [dtype for _, dtype in convolutions if dtype == jnp.bfloat16]
    # conv_out alone: its result, and the gradients of what it reads and of its kernel.
    assert fine == {(2, 8, 8, 3), (2, 8, 8, 8), (3, 3, 8, 3)} and len(coarse) > 30


def test_the_dtypes_there_are():
    with pytest.raises(ValueError, match="dtype must be 'float32' or 'bfloat16'"):
        unet(**TINY, dtype="float16")


def test_dropout_is_one_examples_own():
    network = unet(**TINY, dropout=0.5)
    params = random_params(network)
    keys = jax.random.split(KEY, 3)
    dropped = forward(network, params, batch=3, keys=keys)
    assert np.abs(dropped - forward(network, params, batch=3)).max() > 1e-2
    np.testing.assert_array_equal(dropped, forward(network, params, batch=3, keys=keys))
    fewer = forward(network, params, batch=2, keys=keys[:2])
    np.testing.assert_allclose(dropped[:2], fewer, atol=1e-4)
    other = forward(network, params, batch=3, keys=keys[::-1])
    assert np.abs(dropped - other)[0].max() > 1e-2


def test_remat_changes_memory_alone():
    """The same parameters, outputs, dropout and gradients, with less kept for them."""
    settings = {**TINY, "dropout": 0.5, "num_classes": 5, "label_dropout": 0.5}
    plain, lighter = unet(**settings), unet(**settings, remat=True)
    params = random_params(plain)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, random_params(lighter)
    )
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))

    def of(network):
        def loss(params):
            keys = jax.random.split(KEY, 2)
            out = network.apply(params, x, jnp.array([3, 700]), jnp.array([1, 4]), keys)
            return jnp.sum(out**2)

        kept = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
        num_bytes = sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept)
        )
        return num_bytes, *jax.jit(jax.value_and_grad(loss))(params)

    (before, value, grads), (after, same_value, same_grads) = of(plain), of(lighter)
    # Norms and dropout keep no more than their inputs in both, hence no less of it.
    assert after < 0.7 * before
    np.testing.assert_allclose(same_value, value, rtol=1e-5)
    same_grads, grads = map(jax.tree.leaves, (same_grads, grads))
    largest = max(np.abs(grad).max() for grad in grads)
    for a, b in zip(same_grads, grads, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest)


def test_the_null_class():
    """No label is the null class; a share of the labels becomes it while training."""
    network = unet(**TINY, num_classes=5, label_dropout=0.3)
    params = random_params(network)
    many, labels = 200, jnp.full(200, 2)
    x, index = jnp.ones((many, 8, 8, 1)), jnp.zeros(many, int)
    apply = jax.jit(network.apply)
    null = apply(params, x, index, jnp.full(many, 5))
    np.testing.assert_allclose(apply(params, x, index, None), null, atol=1e-5)
    plain = apply(params, x, index, labels)
    keys = jax.random.split(KEY, many)
    trained = apply(params, x, index, labels, keys)
    is_null = np.isclose(trained, null, atol=1e-5).all(axis=(1, 2, 3))
    is_plain = np.isclose(trained, plain, atol=1e-5).all(axis=(1, 2, 3))
    assert np.all(is_null ^ is_plain) and 0.2 < is_null.mean() < 0.4


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"channels": 30}, "30 features .* num_groups 4"),
        ({"channels": 7}, "channels must be even"),
        ({"head_channels": 3}, "8 features .* head_channels 3"),
        ({"num_heads": 3}, "8 features .* num_heads 3"),
    ],
)
def test_widths_that_do_not_divide(settings, message):
    with pytest.raises(ValueError, match=message):
        unet(**{**TINY, **settings})


def test_images_that_cannot_be_halved():
    with pytest.raises(ValueError, match="28x30 cannot be halved 2 times.* 30 is no"):
        abstract(unet(**{**TINY, "channel_mults": (1, 2, 2)}), (28, 30, 1))


def test_labels_and_networks_must_agree():
    network = unet(**TINY)
    params = random_params(network)
    with pytest.raises(ValueError, match="has no classes"):
        forward(network, params, cond=jnp.array([0, 1]))
    network = unet(**TINY, num_classes=5)
    params = random_params(network)
    with pytest.raises(ValueError, match="no null class"):
        forward(network, params)
    for cond in (jnp.array([0]), jnp.array(0), jnp.array([[0, 1]])):
        with pytest.raises(ValueError, match="one for each of 2 images, got"):
            forward(network, params, cond=cond)
    x, index = jnp.zeros((2, 8, 8, 1)), jnp.zeros(2, int)
    for cond in (jnp.array([0, 5]), np.array([-1, 0]), np.array([0.0, 1.0])):
        with pytest.raises(ValueError, match="labels must"):
            network.apply(params, x, index, cond)


@pytest.mark.parametrize(
    "shape, settings, said",
    [
        ((8, 8, 1), {}, []),
        ((8, 12, 1), {"attention_resolutions": (8, 4)}, []),
        ((64, 64, 3), {"channel_mults": (1,) * 3, "attention_resolutions": (16,)}, []),
        ((8, 8, 1), {"attention_resolutions": ()}, []),
        ((8, 8, 1), {"attention_resolutions": (8, 5)}, ["5: .* there are 8, 4"]),
        ((28, 28, 1), {}, ["4: no level has that size, there are 28, 14"]),
        ((8, 8, 1), {"head_channels": 4}, []),
        ((8, 8, 1), {"head_channels": 4, "num_heads": 2}, ["num_heads 2 has no"]),
        ((8, 8, 1), {"label_dropout": 0.1}, ["label_dropout has no effect"]),
        ((8, 8, 1), {"label_dropout": 0.1, "num_classes": 2}, []),
    ],
)
def test_settings_without_effect_are_named(shape, settings, said):
    found = unet(**{**TINY, **settings}).remarks(shape)
    assert len(found) == len(said)
    for text, pattern in zip(found, said, strict=True):
        assert re.search(pattern, text)
