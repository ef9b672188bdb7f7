"""Augmentation that does not leak (Karras et al. 2022, Appendix F.2).

Training images are mirrored, enlarged, turned, stretched and moved at random, and the
network is told how, in nine numbers that are all 0 where nothing was done. Samples are
drawn with zeros, and so without any of it:

    0, 1   mirrored left to right, top to bottom
    2      z, enlarged by 2^(0.2 z)
    3, 4   cos θ - 1, sin θ, turned by θ
    5, 6   z cos r, z sin r, stretched by 2^(0.2 z) along r and by 2^(-0.2 z) across
    7, 8   moved by eighths of the width and of the height

The first is a fair coin; of the others each has the same probability. All come from a
key of the example's own, so what an image becomes does not depend on its batch.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

NUM_LABELS = 9
SIZES = 0.2  # standard deviation of log2 of the size, and of the stretch
MOVES = 0.125  # of the place, in widths and heights


def augment(
    images: Float[Array, "batch height width channels"],
    keys: Array,
    probability: float = 0.12,
) -> tuple[Float[Array, "batch height width channels"], Float[Array, "batch 9"]]:
    """Augments images; what lies beyond their borders is their reflection.

    Args:
      images: clean images.
      keys: one for each, [batch].
      probability: of each augmentation but the first.

    Returns:
      The images, and what was done to each.
    """
    with jax.default_matmul_precision("highest"):  # places must not be rounded
        return jax.vmap(lambda x, key: _augment(x, key, probability))(images, keys)


def _augment(image, key, probability):
    height, width, _ = image.shape
    coins, normals, angles = jax.random.split(key, 3)
    done = jax.random.uniform(coins, (7,)) < probability
    mirrored, upset = jax.random.bernoulli(jax.random.fold_in(coins, 1), 0.5, (2,))
    upset &= done[0]
    size, stretch, right, down = jax.random.normal(normals, (4,))
    size, stretch = jnp.where(done[1], size, 0), jnp.where(done[2], stretch, 0)
    right, down = jnp.where(done[3], right, 0), jnp.where(done[3], down, 0)
    turn, along = jax.random.uniform(angles, (2,), minval=-np.pi, maxval=np.pi)
    turn, along = jnp.where(done[4], turn, 0), jnp.where(done[2], along, 0)
    image = jnp.where(mirrored, image[:, ::-1], image)
    image = jnp.where(upset, image[::-1], image)
    # Where a pixel of the result is seen in the image: the inverse of what is done.
    back = _scaled(2 ** (-SIZES * size), 2 ** (-SIZES * size)) @ _turned(turn)
    across = _scaled(2 ** (-SIZES * stretch), 2 ** (SIZES * stretch))
    back = back @ _turned(-along) @ across @ _turned(along)
    moved = MOVES * jnp.array([width * right, height * down])
    labels = [
        mirrored,
        upset,
        size,
        jnp.cos(turn) - 1,
        jnp.sin(turn),
        stretch * jnp.cos(along),
        stretch * jnp.sin(along),
        right,
        down,
    ]
    return resample(image, back, -back @ moved), jnp.stack(labels).astype(image.dtype)


def resample(
    image: Float[Array, "height width channels"],
    matrix: Float[Array, "2 2"],
    offset: Float[Array, "2"],
) -> Float[Array, "height width channels"]:
    """Looks an image up at other places, by cubic interpolation (Keys 1981).

    Args:
      image: the image.
      matrix: from a pixel's place (right, down of the middle) to where it is looked up.
      offset: added to it, in pixels.
    """
    height, width, _ = image.shape
    middle = (np.array([width, height]) - 1) / 2
    right, down = np.meshgrid(np.arange(width), np.arange(height))
    places = np.stack([right, down], -1) - middle
    turned = jnp.einsum("hwi,ji->hwj", jnp.asarray(places, image.dtype), matrix)
    found = turned + (offset + middle)[None, None]
    first = jnp.floor(found)
    rest = found - first
    columns, rows = (
        first[..., i, None].astype(jnp.int32) + _TAPS[None, None] for i in (0, 1)
    )
    columns, rows = _reflected(columns, width), _reflected(rows, height)
    seen = image[rows[..., :, None], columns[..., None, :]]  # [h, w, 4, 4, channels]
    across, along = _cubic(rest[..., 0]), _cubic(rest[..., 1])
    return jnp.einsum("hwrcd,hwr,hwc->hwd", seen, along, across)


_TAPS = np.arange(-1, 3)


def _cubic(x):
    """Weights of the pixels at -1, 0, 1 and 2, for a place x in [0, 1)."""
    return jnp.stack(
        [
            ((2 - x) * x - 1) * x / 2,
            ((3 * x - 5) * x * x + 2) / 2,
            ((4 - 3 * x) * x + 1) * x / 2,
            (x - 1) * x * x / 2,
        ],
        axis=-1,
    )


def _reflected(index, size):
    """The place within 0 ... size - 1 of which a place beyond is the reflection."""
    period = max(2 * (size - 1), 1)
    index = jnp.abs(index) % period
    return jnp.minimum(index, period - index) if size > 1 else 0 * index


def _scaled(x, y):
    return jnp.array([[x, 0.0], [0.0, y]])


def _turned(angle):
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    return jnp.array([[cos, -sin], [sin, cos]])
