"""The parts of a transformer: patches, positions, attention and what follows it.

Arrays are [batch, tokens, features]; patches are counted row by row.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def patches(x: Array, size: int) -> Array:
    """[batch, height, width, channels] -> [batch, tokens, size · size · channels]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, size * size * channels)


def image(tokens: Array, size: int, height: int, width: int) -> Array:
    """The image of which patches are made of such tokens."""
    x = tokens.reshape(tokens.shape[0], height // size, width // size, size, size, -1)
    return x.swapaxes(2, 3).reshape(tokens.shape[0], height, width, -1)


def check_patches(image_shape: tuple[int, int, int], size: int) -> None:
    """Refuses images that patches do not cover.

    Raises:
      ValueError: naming both.
    """
    height, width, _ = image_shape
    if height % size or width % size:
        raise ValueError(
            f"an image of {height}x{width} cannot be cut into patches of "
            f"{size}x{size}: choose another patch_size or image_size"
        )


def sin_cos_positions(rows: int, columns: int, features: int) -> np.ndarray:
    """Fixed positions: half of the features tell the column, half the row.

    Each half is [sin, cos] of geometric frequencies, 1e4^(-4i / features).

    Returns:
      float64 [rows · columns, features].
    """
    row, column = _angles(rows, columns, features)
    parts = [part(angles) for angles in (column, row) for part in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1)


def rotations(rows: int, columns: int, features: int, before: int = 0) -> np.ndarray:
    """Rotary positions in two dimensions (Su et al. 2021), as a complex number a pair.

    Half of the pairs of features turn with the row, half with the column, by geometric
    frequencies; tokens before the patches do not turn.

    Returns:
      complex128 [before + rows · columns, features / 2].
    """
    angles = np.concatenate(_angles(rows, columns, features), axis=1)
    return np.exp(1j * np.pad(angles, ((before, 0), (0, 0))))


def _angles(rows, columns, features):
    """Of row and column, [rows · columns, features / 4] each."""
    frequencies = 1e4 ** -(np.arange(features // 4) / (features // 4))
    places = np.divmod(np.arange(rows * columns), columns)
    return [place[:, None] * frequencies for place in places]


def rotate(x: Array, turns: np.ndarray) -> Array:
    """Turns pairs of neighbouring features of x [batch, tokens, heads, features]."""
    size = x.shape[-1]
    # (a, b) -> (-b, a) as a product, exact in any precision: features are the lanes of
    # a TPU, and taking every second of them costs more than all the rest of a block.
    quarter_turn = np.kron(np.eye(size // 2), [[0, 1], [-1, 0]]).astype(x.dtype)
    precise = jnp.promote_types(x.dtype, jnp.float32)
    turned = jnp.einsum(
        "bthc,cd->bthd",
        x,
        quarter_turn,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=precise,
    )
    cos, sin = (
        jnp.asarray(np.repeat(part, 2, axis=-1), precise)[None, :, None]
        for part in (turns.real, turns.imag)
    )
    return (x * cos + turned * sin).astype(x.dtype)


class RMSNorm(nn.Module):
    """Divides by the root mean square over features (Zhang & Sennrich 2019).

    Attributes:
      epsilon: what is added to the mean square.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        precise = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        square = jnp.mean(jnp.square(precise), axis=-1, keepdims=True)
        h = precise * jax.lax.rsqrt(square + self.epsilon)
        return (h * jnp.expand_dims(scale, range(x.ndim - 1))).astype(x.dtype)


def run_blocks(
    block: nn.Module, stacked, x: Array, told: tuple, scanned: tuple, remat: bool
) -> tuple[Array, Any]:
    """Calls blocks of equal shape one after another, as one scan over their parameters.

    What a gradient keeps of a block are the results of its linear layers: all else is
    little work, and takes most of the memory and of the time to write it.

    Args:
      block: a Flax module without a parent, called as block(x, *told, *each).
      stacked: its parameters, those of all blocks along a first axis.
      x: what goes in.
      told: what all blocks are told.
      scanned: what each is told, along a first axis.
      remat: whether a gradient keeps nothing of a block but what goes in.

    Returns:
      What comes out of the last, and what comes out of each, along a first axis.
    """

    def step(x, each):
        params, own = each
        x = block.apply({"params": params}, x, *told, *own)
        return x, x

    kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    step = jax.checkpoint(step, prevent_cse=False, policy=None if remat else kept)
    return jax.lax.scan(step, x, (stacked, scanned))


def stack(block: nn.Module, number: int, *example) -> Callable:
    """Returns an initialiser of the parameters of a number of blocks, stacked."""

    def init(key):
        keys = jax.random.split(key, number)
        return jax.vmap(lambda key: block.init(key, *example)["params"])(keys)

    return init
