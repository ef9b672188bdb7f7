"""Keys of seeds: the one place where a number becomes randomness."""

import operator

import jax
import numpy as np


def random_key(seed: int) -> jax.Array:
    """Returns the key of a seed in 0 ... 2**64 - 1, another one for each.

    Always Threefry's: with another generator, as JAX_DEFAULT_PRNG_IMPL may ask for,
    what an example draws would depend on the batch that it is in. Below 2**32 it is
    that of `jax.random.key`, which drops the higher bits of others.

    Raises:
      ValueError: for another number.
    """
    seed = operator.index(seed)
    if not 0 <= seed < 2**64:
        raise ValueError(f"a seed must lie in 0 ... 2**64 - 1, got {seed}")
    words = np.array([seed >> 32, seed % 2**32], np.uint32)
    return jax.random.wrap_key_data(words, impl="threefry2x32")
