"""Group normalisation: Flax's, with a gradient of its own; exact statistics."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.networks import normalization
from ddpm_jax.networks.normalization import GroupNorm, group_norm

GROUPS, EPS = 4, 1e-3
KEYS = jax.random.split(jax.random.key(0), 4)


def flax(x, scale, shift, activation=nn.silu):
    """The definition: normalise, scale and shift by example, apply the activation."""
    plain = nn.GroupNorm(
        GROUPS,
        epsilon=EPS,
        use_scale=False,
        use_bias=False,
        use_fast_variance=False,
        dtype=x.dtype,
    )
    h = plain.apply({}, x)
    return activation(h * scale[:, None, None] + shift[:, None, None])


def drawn(dtype, mean=0.5):
    x = mean + 2 * jax.random.normal(KEYS[0], (3, 5, 4, 8), dtype)
    scale, shift = jax.random.normal(KEYS[1], (2, 3, 8), dtype)
    return x, scale, shift


@pytest.mark.parametrize("activation", [nn.silu, normalization.identity, jnp.tanh])
def test_values_and_gradients_are_flax(x64, activation):
    given = drawn(jnp.float64)
    dy = jax.random.normal(KEYS[2], given[0].shape, jnp.float64)
    value, pull = jax.vjp(lambda *a: flax(*a, activation), *given)

    def of_parts(x, *rest):  # a border within a group
        return group_norm((x[..., :3], x[..., 3:]), *rest, GROUPS, EPS, activation)

    ours, our_pull = jax.vjp(of_parts, *given)
    np.testing.assert_allclose(ours, value, rtol=1e-10, atol=1e-10)
    for a, b in zip(our_pull(dy), pull(dy), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_the_module_is_flax_with_its_parameters():
    x, scale, shift = drawn(jnp.float32)
    theirs = nn.GroupNorm(GROUPS, epsilon=EPS, use_fast_variance=False)
    params = jax.tree.map(lambda p: p + 0.3, theirs.init(KEYS[3], x))
    ours = GroupNorm(GROUPS, EPS)
    assert jax.tree.map(jnp.shape, ours.init(KEYS[3], x)) == jax.tree.map(
        jnp.shape, params
    )
    expected = theirs.apply(params, x)
    np.testing.assert_allclose(ours.apply(params, x), expected, atol=1e-5)
    # Dhariwal & Nichol (2021), Eq. 2: of each example, on top.
    adapted = expected * (1 + scale[:, None, None]) + shift[:, None, None]
    np.testing.assert_allclose(
        ours.apply(params, x, scale=scale, shift=shift), adapted, atol=2e-5
    )


@pytest.mark.parametrize("name", ["_one_pass", "_two_passes"])
@pytest.mark.parametrize("ratio", [0, 15, 100])
def test_digits_that_a_large_mean_costs(name, ratio):
    """One pass: 1e-7 (1 + mean² / var) of the variance; two passes: none."""
    with jax.enable_x64(True):
        x = np.asarray(drawn(jnp.float64, 2.0 * ratio)[0])
    mean, rstd = getattr(normalization, name)(
        *jnp.split(jnp.float32(x), [3], axis=-1), num_groups=GROUPS, eps=EPS
    )
    grouped = np.float32(x).astype(np.float64).reshape(3, 20, GROUPS, 2)
    expected = 1 / np.sqrt(grouped.var((1, 3)) + EPS)
    error = np.abs(rstd[:, ::2] / expected - 1).max()
    lost = 1 + (ratio**2 if name == "_one_pass" else 0)
    assert error < 4e-7 * lost
    np.testing.assert_allclose(mean[:, 1::2], grouped.mean((1, 3)), rtol=2e-6)


def test_a_constant_group_stays_finite():
    x = jnp.full((2, 4, 4, 8), 1e4)
    for statistics in (normalization._one_pass, normalization._two_passes):
        mean, rstd = statistics(x, num_groups=GROUPS, eps=1e-6)
        assert np.isfinite(rstd).all() and np.abs(mean - 1e4).max() < 1e-1
    out = group_norm((x,), jnp.ones((2, 8)), jnp.zeros((2, 8)), GROUPS, 1e-6)
    np.testing.assert_allclose(out, 0, atol=1e-1)


def test_bfloat16_has_float32_statistics():
    x, scale, shift = drawn(jnp.float32, mean=20.0)
    x = x.astype(jnp.bfloat16)
    out = group_norm((x,), scale, shift, GROUPS, EPS)
    assert out.dtype == jnp.bfloat16
    exact = flax(x.astype(jnp.float32), scale, shift, lambda h: h)
    # Only the result is rounded, to 8 bits.
    np.testing.assert_allclose(out.astype(np.float32), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_a_gpu_keeps_between_two_passes(dtype):
    """Nothing is lost of float32; of bfloat16 no more than the type always loses."""
    g = jax.random.normal(KEYS[0], (3, 5, 4, 8))
    kept = jax.jit(normalization._rounded, static_argnums=1)(g, dtype)
    assert kept.dtype == jnp.float32
    np.testing.assert_array_equal(kept, g.astype(dtype).astype(jnp.float32))


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_what_is_asked_of_compilers(platform):
    """A GPU's keeps the gradient behind the activation in the type of x."""
    x, scale, shift = drawn(jnp.float32)

    def pulled(x, dy):
        _, pull = jax.vjp(lambda x: group_norm((x,), scale, shift, GROUPS, EPS), x)
        return pull(dy)

    x = x.astype(jnp.bfloat16)
    text = jax.jit(pulled).trace(x, x).lower(lowering_platforms=(platform,)).as_text()
    kept = [line for line in text.splitlines() if "optimization_barrier" in line]
    assert len(kept) == (platform == "cuda")
    assert all("bf16" in line for line in kept)
