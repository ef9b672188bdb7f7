"""U-ViT: its size, the authors' own outputs, and laws.

data/uvit.npz: see tests/data/README.md.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import count, lines, random_params, read, reference, shapes_of

from ddpm_jax import networks
from ddpm_jax.interop import uvit as interop
from ddpm_jax.interop.layout import make_entries, unstacked

SMALL = {"depth": 4, "channels": 32, "num_heads": 2, "num_classes": 3}
SHAPE = (8, 8, 3)
X = np.random.default_rng(1).standard_normal((2, *SHAPE)).astype(np.float32)
INDEX = np.array([0, 500], np.int32)


def test_the_published_network_tensor_by_tensor():
    network = networks.uvit()
    assert count(network, (32, 32, 3)) == 44_255_328
    theirs = json.loads(str(reference("uvit", 12)[0]["small"]))
    layout = interop.make_layout(12, {k: tuple(v) for k, v in theirs.items()})
    like = jax.tree.map(
        lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape),
        shapes_of(network, (32, 32, 3)),
    )
    entries = make_entries(layout, unstacked(like, layout.stacks)).values()
    assert {e.name: [*e.shape] for e in entries} == theirs


@pytest.mark.parametrize("precise, tolerance", [(True, 1e-10), (False, 1e-5)])
def test_the_output_is_that_of_the_authors(precise, tolerance):
    held, weights = reference("uvit", 12)
    with jax.enable_x64(precise):
        network, dtype = (
            networks.uvit(**SMALL, time_layers=True),
            jnp.result_type(float),
        )
        params = read(interop, network, 4, weights, SHAPE, dtype)
        x = jnp.asarray(held["x"].transpose(0, 2, 3, 1), dtype)
        given = x, jnp.asarray(held["index"], dtype), jnp.asarray(held["label"])
        found = np.asarray(jax.jit(network.apply)(params, *given))
    expected = held["out"].transpose(0, 2, 3, 1)
    assert np.abs(found - expected).max() / np.abs(expected).max() < tolerance


def test_what_it_is_told_has_its_effect():
    network = networks.uvit(**SMALL, label_dropout=0.1)
    apply, params = jax.jit(network.apply), random_params(network, SHAPE)
    plain = apply(params, X, INDEX, np.array([0, 1]))
    for other in ((INDEX + 100, np.array([0, 1])), (INDEX, np.array([2, 1]))):
        assert np.abs(apply(params, X, *other) - plain).max() > 1e-4
    none, null = apply(params, X, INDEX), apply(params, X, INDEX, np.full(2, 3))
    np.testing.assert_allclose(none, null, atol=1e-6)
    keys = jax.random.split(jax.random.key(0), 200)
    many = [np.repeat(each[:1], 200, axis=0) for each in (X, INDEX, np.array([0]))]
    differs = lambda x: np.abs(x - plain[:1]).max(axis=(1, 2, 3))
    dropped = differs(apply(params, *many, keys)) > differs(null[:1]) / 2
    assert 4 < dropped.sum() < 40


def test_a_program_does_not_grow_with_depth():
    sizes = []
    for depth in (4, 8):
        network = networks.uvit(**{**SMALL, "depth": depth, "num_classes": 0})
        sizes.append(lines(network.apply, random_params(network, SHAPE), X, INDEX))
    assert sizes[0] == sizes[1]


def test_bfloat16_and_remat():
    found = []
    for more in ({}, {"remat": True}, {"dtype": "bfloat16"}):
        network = networks.uvit(**{**SMALL, "num_classes": 0}, **more)
        params = random_params(network, SHAPE)
        loss = lambda p, n=network: jnp.mean(n.apply(p, X, INDEX) ** 2)
        found.append(jax.jit(jax.value_and_grad(loss))(params))
    plain, again, rough = found
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        plain,
        again,
    )
    np.testing.assert_allclose(plain[0], rough[0], rtol=0.1)


@pytest.mark.parametrize("settings, message", [
    ({"depth": 5}, "depth must be even"),
    ({"num_heads": 3}, "a multiple of num_heads"),
    ({"patch_size": 0}, "patch_size must be 1 or more"),
    ({"num_classes": -1}, "num_classes must be 0 or more"),
    ({"dtype": "float16"}, "float32 or bfloat16"),
    ({"label_dropout": 1.0}, "must lie in"),
])  # fmt: skip
def test_settings_of_which_nothing_can_be_made(settings, message):
    with pytest.raises(ValueError, match=message):
        networks.uvit(**{**SMALL, **settings})


def test_images_that_patches_do_not_cover_are_refused():
    with pytest.raises(ValueError, match="9x8 cannot be cut into patches of 2x2"):
        networks.uvit(**SMALL).init(jax.random.key(0), (9, 8, 3))
