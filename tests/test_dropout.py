"""Masks of dropout are as coins: fair, and independent of everything around them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.networks import dropout

SHAPE = (16, 16, 32)
NUM = 64
SIZE = NUM * np.prod(SHAPE)
KEYS = jax.random.split(jax.random.key(0), NUM)


def masks(layer="block", rate=0.1, keys=KEYS):
    return np.asarray(dropout.mask(dropout.seeds(keys), layer, SHAPE, rate))


def assert_independent(a, b, rate):
    """Two masks agree to be dropped as often as chance has it, within 5 sigma."""
    both = np.mean(~a & ~b)
    sigma = rate / np.sqrt(a.size)
    assert abs(both - rate**2) < 5 * sigma


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_the_rate(rate):
    kept = masks(rate=rate)
    sigma = np.sqrt(rate * (1 - rate) / SIZE)
    assert abs(np.mean(~kept) - rate) < 5 * sigma
    # And of each example, channel and pixel: as many far away as chance has it.
    for axes in [(1, 2, 3), (0, 1, 2), (0, 3)]:
        dropped = np.mean(~kept, axis=axes)
        num = SIZE / dropped.size
        spread = np.var(dropped) / (rate * (1 - rate) / num)
        assert abs(spread - 1) < 6 * np.sqrt(2 / dropped.size)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_neighbours_examples_and_layers_are_independent(rate):
    kept = masks(rate=rate)
    for axis in (1, 2, 3):  # rows, columns, channels; also farther ones
        for step in (1, 2, 3, 8):
            later = np.roll(kept, step, axis)
            assert_independent(kept, later, rate)
    assert_independent(kept[1:], kept[:-1], rate)
    assert_independent(kept, masks("another", rate), rate)
    more = jax.vmap(jax.random.fold_in, (0, None))(KEYS, 1)
    assert_independent(kept, masks(rate=rate, keys=more), rate)


def test_seeds_that_differ_in_a_bit_are_independent():
    """As those of counters may: every bit of a seed changes about half of all."""
    first = jnp.array([[0, 0]], jnp.uint32)
    base = dropout.mask(first, "block", SHAPE, 0.5)
    for half in (0, 1):
        for bit in range(32):
            other = first.at[0, half].set(np.uint32(1 << bit))
            changed = np.mean(base != dropout.mask(other, "block", SHAPE, 0.5))
            assert abs(changed - 0.5) < 5 * 0.5 / np.sqrt(base.size)


def test_each_bit_of_the_hash_is_fair():
    position = jnp.arange(2**18, dtype=jnp.uint32)
    words = np.asarray(dropout._hash(position, jnp.uint32(7)))
    bits = (words[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(len(words))
    signs = 1.0 - 2 * bits
    pairs = signs.T @ signs / len(words) - np.eye(32)
    assert np.abs(pairs).max() < 5 / np.sqrt(len(words))


def test_a_mask_is_its_examples_own():
    seeds = dropout.seeds(KEYS)
    alone = dropout.mask(seeds[5:6], "block", SHAPE, 0.5)
    np.testing.assert_array_equal(alone[0], masks(rate=0.5)[5])
    assert not np.array_equal(alone[0], dropout.mask(seeds, "b", SHAPE, 0.5)[5])


def test_the_mean_stays():
    x = jnp.ones((NUM, *SHAPE))
    out = dropout.dropout(x, 0.3, dropout.seeds(KEYS), "block")
    np.testing.assert_allclose(np.unique(out), [0, np.float32(1 / 0.7)])
    np.testing.assert_allclose(out.mean(), 1, atol=5 * 0.7 / np.sqrt(SIZE))
    for untouched in ((x, 0.3, None), (x, 0.0, dropout.seeds(KEYS))):
        assert dropout.dropout(*untouched, "block") is x
