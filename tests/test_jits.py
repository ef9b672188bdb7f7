"""JiT: its sizes, the authors' own outputs, and laws.

data/jit.npz: see tests/data/README.md.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import count, lines, random_params, read, reference

from ddpm_jax import networks
from ddpm_jax.diffusion import (
    conventions,
    denoisers,
    guidance,
    samplers,
    schedules,
    timesteps,
)
from ddpm_jax.interop import jit as interop

SMALL = {
    "patch_size": 2,
    "depth": 4,
    "channels": 32,
    "num_heads": 2,
    "bottleneck": 12,
    "class_tokens": 5,
    "class_tokens_from": 2,
    "num_classes": 3,
    "label_dropout": 0.1,
}
SHAPE = (8, 8, 3)


@pytest.mark.parametrize("size, patch_size, side, expected", [
    ("B", 16, 256, 131_123_712),
    ("L", 16, 256, 458_877_664),
    ("H", 16, 256, 952_514_368),
    ("B", 4, 64, 130_477_872),
])  # fmt: skip
def test_parameters_are_those_of_the_paper(size, patch_size, side, expected):
    network = networks.jit(size, patch_size, num_classes=1000, label_dropout=0.1)
    assert count(network, (side, side, 3)) == expected


@pytest.mark.parametrize("precise, tolerance", [(True, 1e-10), (False, 1e-5)])
def test_the_output_is_that_of_the_authors(precise, tolerance):
    held, weights = reference("jit", 11)
    with jax.enable_x64(precise):
        network, dtype = networks.jit(**SMALL), jnp.result_type(float)
        params = read(interop, network, 4, weights, SHAPE, dtype)
        x = jnp.asarray(held["x"].transpose(0, 2, 3, 1), dtype)
        given = x, jnp.asarray(held["time"], dtype), jnp.asarray(held["label"])
        found = np.asarray(jax.jit(network.apply)(params, *given))
    expected = held["out"].transpose(0, 2, 3, 1)
    assert np.abs(found - expected).max() / np.abs(expected).max() < tolerance


@pytest.mark.parametrize("name", ["heun/0.05", "heun/1e-09", "euler/1e-09"])
def test_the_sampler_is_that_of_the_authors(x64, name):
    """50 steps with guidance between times 0.1 and 1, of a network in closed form."""
    held, _ = reference("jit", 11)
    schedule = schedules.flow()

    def network(params, z, time, label, keys=None):
        slope, shift = ((0.3 + time), 0.1 * (label + 1))
        return jnp.tanh(z * slope[:, None, None, None] + shift[:, None, None, None])

    apply = conventions.flow(network, schedule)
    plain = denoisers.from_network(apply, {}, schedule, "x_0")
    guided = guidance.guide(plain, 2.9, 3)
    denoiser = guidance.within(guided, plain, schedule, 0.0, 8.99)
    sampler = {
        "heun/0.05": samplers.heun_flow(schedule, t_eps=0.05),
        "heun/1e-09": samplers.heun_flow(schedule),
        "euler/1e-09": samplers.ddim(schedule),
    }[name]
    walk = lambda x_T: samplers.sample(
        sampler,
        lambda x, t: denoiser(x, t, jnp.array([0, 2])),
        jax.random.split(jax.random.key(0), 2),
        x_T,
        timesteps.flow(schedule, 50),
    )
    x_0, _ = jax.jit(walk)(jnp.asarray(held["walk/x_T"].transpose(0, 2, 3, 1)))
    expected = held[f"walk/{name}"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(x_0, expected, atol=1e-12)


def apply_of(**changes):
    network = networks.jit(**{**SMALL, **changes})
    return jax.jit(network.apply), random_params(network, SHAPE)


X = np.random.default_rng(1).standard_normal((4, *SHAPE)).astype(np.float32)
TIME, LABEL = np.linspace(0.1, 0.9, 4, dtype=np.float32), np.arange(4) % 3


def test_the_first_network_says_nothing():
    network = networks.jit(**SMALL)
    params = jax.jit(lambda key: network.init(key, SHAPE))(jax.random.key(0))
    assert not np.any(network.apply(params, X, TIME, LABEL))
    assert network.convention == "flow"


def test_what_it_is_told_has_its_effect():
    apply, params = apply_of()
    plain = apply(params, X, TIME, LABEL)
    for other in ((X, TIME + 0.05, LABEL), (X, TIME, (LABEL + 1) % 3)):
        assert np.abs(apply(params, *other) - plain).max() > 1e-3
    none, null = apply(params, X, TIME), apply(params, X, TIME, np.full(4, 3))
    np.testing.assert_allclose(none, null, atol=1e-6)


def test_dropout_is_one_examples_own_and_in_the_middle_half():
    apply, params = apply_of(dropout=0.5)
    keys = jax.random.split(jax.random.key(2), 4)
    whole = apply(params, X, TIME, LABEL, keys)
    part = apply(params, X[2:], TIME[2:], LABEL[2:], keys[2:])
    np.testing.assert_allclose(whole[2:], part, atol=1e-5)
    # Blocks 1 and 2 of 4 drop: nothing is left to drop where their gates are shut.
    block = params["blocks"]["modulation"]
    shut = {name: leaf.copy() for name, leaf in block.items()}
    for leaf in shut.values():
        leaf[1:3] = 0
    params = {**params, "blocks": {**params["blocks"], "modulation": shut}}
    free = {
        **params,
        "class_embedding": jax.tree.map(jnp.zeros_like, params["class_embedding"]),
    }
    np.testing.assert_allclose(
        apply(free, X, TIME, LABEL, keys), apply(free, X, TIME, LABEL), atol=1e-6
    )


def test_a_program_does_not_grow_with_depth():
    sizes = []
    for depth in (4, 8):
        network = networks.jit(**{**SMALL, "depth": depth})
        params = random_params(network, SHAPE)
        sizes.append(lines(network.apply, params, X, TIME, LABEL))
    assert sizes[0] == sizes[1]


def test_remat_changes_no_gradient():
    found = []
    for remat in (False, True):
        network = networks.jit(**SMALL, remat=remat)
        params = random_params(network, SHAPE)
        loss = lambda p, n=network: jnp.sum(n.apply(p, X, TIME, LABEL) ** 2)
        found.append(jax.jit(jax.grad(loss))(params))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), *found
    )


def test_bfloat16_is_near_and_images_may_be_wide():
    (precise, params), (rough, _) = apply_of(), apply_of(dtype="bfloat16")
    one, two = (f(params, X, TIME, LABEL) for f in (precise, rough))
    assert two.dtype == jnp.float32
    assert 0 < np.abs(one - two).max() / np.abs(one).max() < 0.1
    wide = precise(params, X[:, :4], TIME, LABEL)
    assert wide.shape == (4, 4, 8, 3)


def test_without_classes_there_are_no_tokens_of_them():
    network = networks.jit(**{**SMALL, "num_classes": 0, "label_dropout": 0.0})
    params = random_params(network, SHAPE)
    assert not {"class_embedding", "class_positions"} & {*params}
    assert network.apply(params, X, TIME).shape == X.shape


@pytest.mark.parametrize("settings, message", [
    ({"size": "XL"}, "size must be one of S, M, B, L, H, G, got 'XL'"),
    ({"num_heads": 5}, "must be a multiple of 4 x num_heads"),
    ({"class_tokens_from": 5}, "must lie within 0 ... depth 4"),
    ({"patch_size": 0}, "patch_size must be 1 or more"),
    ({"num_classes": -1}, "num_classes must be 0 or more"),
    ({"dtype": "float16"}, "float32 or bfloat16"),
    ({"dropout": 1.0}, "must lie in"),
])  # fmt: skip
def test_settings_of_which_nothing_can_be_made(settings, message):
    with pytest.raises(ValueError, match=message):
        networks.jit(**{**SMALL, **settings})


def test_images_that_patches_do_not_cover_are_refused():
    network = networks.jit(**{**SMALL, "patch_size": 3})
    with pytest.raises(ValueError, match="8x8 cannot be cut into patches of 3x3"):
        network.init(jax.random.key(0), SHAPE)
