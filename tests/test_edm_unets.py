"""DDPM++ and NCSN++, against an independent implementation.

data/edm_unets.npz: outputs of SongUNet of NVIDIA's PhysicsNeMo (Apache-2.0), run in
float64 with PyTorch 2.14, with its group normalisation as in training, and the weights
of `random_weights`, which were put into its layers by hand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import networks

SMALL = {
    "channels": 16,
    "channel_mults": (1, 2),
    "num_res_blocks": 1,
    "attention_resolutions": (4,),
    "num_classes": 3,
    "label_dropout": 0.1,
    "augmentation": 9,
}
SHAPE = (8, 8, 3)


def shapes(network, shape=SHAPE):
    return jax.eval_shape(lambda key: network.init(key, shape), jax.random.key(0))


def random_weights(network):
    random = np.random.default_rng(7)
    return jax.tree.map(
        lambda x: 0.3 * random.standard_normal(x.shape), shapes(network)
    )


def count(network, shape):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(network, shape)))


@pytest.mark.parametrize("name, settings, size, expected", [
    ("ddpmpp", {}, 32, 55_733_891),
    ("ddpmpp", {"num_classes": 10}, 32, 55_735_299),
    ("ncsnpp", {}, 32, 56_397_827 + 128),  # its frequencies, which are not trained
    ("ddpmpp", {"channel_mults": (1, 2, 2, 2)}, 64, 61_805_571),
])  # fmt: skip
def test_parameters_are_those_of_the_paper(name, settings, size, expected):
    network = networks.NETWORKS[name](augmentation=9, **settings)
    assert count(network, (size, size, 3)) == expected


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp"])
@pytest.mark.parametrize("precise, tolerance", [(True, 1e-12), (False, 3e-6)])
def test_the_output_is_that_of_another_implementation(name, precise, tolerance):
    with jax.enable_x64(precise), np.load("tests/data/edm_unets.npz") as data:
        network = networks.NETWORKS[name](**SMALL)
        cast = lambda x: jnp.asarray(x, jnp.result_type(float))
        params = jax.tree.map(cast, random_weights(network))
        given = cast(data["x"]), cast(data["level"]), jnp.asarray(data["label"])
        told = cast(data["augmentation"])
        found = jax.jit(network.apply)(params, *given, None, augmentation=told)
        error = np.abs(found - data[name]).max() / np.abs(data[name]).max()
    assert error < tolerance


def test_the_first_network_says_nothing():
    """Its last layer begins near zero, so that F is 0 and D the best linear guess."""
    network = networks.ddpmpp(**SMALL)
    params = jax.jit(lambda key: network.init(key, SHAPE))(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (2, *SHAPE))
    found = jax.jit(network.apply)(params, x, jnp.zeros(2), jnp.zeros(2, int))
    assert np.abs(found).max() < 1e-3
    assert network.convention == {"name": "edm", "sigma_data": 0.5}


def test_what_it_is_told_has_its_effect():
    network = networks.ddpmpp(**SMALL, dropout=0.2)
    apply = jax.jit(network.apply)
    params = jax.tree.map(jnp.asarray, random_weights(network))
    x, level = jax.random.normal(jax.random.key(1), (2, *SHAPE)), jnp.zeros(2)
    plain = apply(params, x, level, jnp.array([0, 3]))
    assert np.abs(plain - apply(params, x, level + 0.1, jnp.array([0, 3]))).max() > 0.01
    other = apply(params, x, level, jnp.array([1, 3]))
    assert np.abs(other - plain)[0].max() > 0.01
    np.testing.assert_array_equal(other[1], plain[1])
    np.testing.assert_allclose(apply(params, x, level)[1], plain[1], atol=1e-5)
    zeros = apply(params, x, level, jnp.array([0, 3]), augmentation=jnp.zeros((2, 9)))
    np.testing.assert_allclose(zeros, plain, atol=1e-5)
    keys = jax.random.split(jax.random.key(2), 2)
    dropped = apply(params, x, level, jnp.array([0, 3]), keys)
    assert np.abs(dropped - plain).max() > 0.01


def test_its_dropout_is_of_each_example():
    network = networks.ncsnpp(**SMALL, dropout=0.2)
    apply = jax.jit(network.apply)
    params = jax.tree.map(jnp.asarray, random_weights(network))
    x, keys = (
        jax.random.normal(jax.random.key(1), (4, *SHAPE)),
        jax.random.split(jax.random.key(2), 4),
    )
    labels = jnp.arange(4) % 3
    whole = apply(params, x, jnp.zeros(4), labels, keys)
    part = apply(params, x[2:], jnp.zeros(2), labels[2:], keys[2:])
    np.testing.assert_allclose(whole[2:], part, atol=1e-4)


def test_frequencies_are_not_trained():
    network = networks.ncsnpp(**SMALL)
    params = jax.tree.map(jnp.asarray, random_weights(network))
    x = jax.random.normal(jax.random.key(1), (2, *SHAPE))
    loss = lambda params: jnp.sum(
        network.apply(params, x, jnp.ones(2), jnp.array([0, 1])) ** 2
    )
    gradient = jax.jit(jax.grad(loss))(params)
    assert not gradient["frequencies"].any() and gradient["level_0"]["kernel"].any()


def test_bfloat16_is_near():
    precise, rough = (
        networks.ddpmpp(**SMALL, dtype=d) for d in ("float32", "bfloat16")
    )
    params = jax.tree.map(jnp.asarray, random_weights(precise))
    x, labels = jax.random.normal(jax.random.key(1), (2, *SHAPE)), jnp.array([0, 1])
    one, two = (
        jax.jit(network.apply)(params, x, jnp.zeros(2), labels)
        for network in (precise, rough)
    )
    assert two.dtype == jnp.float32
    assert 0 < np.abs(one - two).max() / np.abs(one).max() < 0.1


@pytest.mark.parametrize("settings, message", [
    ({"channels": 6}, "multiple of 4"),
    ({"channels": 36 * 4}, "cannot be normalised in groups of 4"),
    ({"channel_mults": []}, "channel_mults must be"),
    ({"num_res_blocks": 0}, "num_res_blocks must be 1"),
    ({"dtype": "float16"}, "float32 or bfloat16"),
    ({"dropout": 1.0}, "must lie in"),
])  # fmt: skip
def test_settings_of_which_nothing_can_be_made(settings, message):
    with pytest.raises(ValueError, match=message):
        networks.ddpmpp(**settings)


def test_images_and_labels_that_do_not_fit():
    network = networks.ddpmpp(**SMALL)
    with pytest.raises(ValueError, match="an image of 9x8 cannot be halved"):
        shapes(network, (9, 8, 3))
    params = jax.tree.map(jnp.asarray, random_weights(network))
    x = jnp.zeros((2, *SHAPE))
    with pytest.raises(ValueError, match="labels must lie in 0 ... 3"):
        network.apply(params, x, jnp.zeros(2), jnp.array([0, 4]))
    plain = networks.ddpmpp(**{**SMALL, "num_classes": 0, "label_dropout": 0.0})
    with pytest.raises(ValueError, match="has no classes"):
        plain.apply(params, x, jnp.zeros(2), jnp.array([0, 1]))
