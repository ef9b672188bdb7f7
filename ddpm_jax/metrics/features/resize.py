"""How images become the input of the Inception network, by published convention.

Numbers are comparable only within one convention. Upsampled noise of 32 x 32 differs
between the first two by more than half of the range of pixels.

  tf            TensorFlow 1 bilinear without half-pixel centres: the code of Heusel et
                al. (2017), of OpenAI's evaluations, and torch-fidelity
  pytorch_fid   bilinear with half-pixel centres, no antialiasing
  clean         bicubic with antialiasing (Parmar et al. 2022)

Each is a function of 8-bit images [batch, height, width, 3] to float32
[batch, 299, 299, 3] in [-1, 1]. `clean` runs on the host and gives NumPy, the others
can be traced.
"""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

SIZE = 299


def tf(images: jax.Array) -> jax.Array:
    """Bilinear, output pixel i at i * in / out; then (x - 128) / 128.

    What is computed outside of a jitted function agrees to the bit with TensorFlow 1;
    within one, a product and a sum may be fused, which rounds once instead of twice.
    """

    def positions(size):
        return np.arange(SIZE, dtype=np.float32) * np.float32(size / SIZE)

    return (_bilinear(_as_float(images), positions) - 128) / 128


def pytorch_fid(images: jax.Array) -> jax.Array:
    """Bilinear of x / 255, output pixel i at (i + 1/2) in / out - 1/2; then 2 x - 1."""

    def positions(size):
        centres = np.arange(SIZE, dtype=np.float32) + np.float32(0.5)
        return np.maximum(centres * np.float32(size / SIZE) - np.float32(0.5), 0)

    return 2 * _bilinear(_as_float(images) / 255, positions) - 1


def clean(images: np.ndarray) -> np.ndarray:
    """Bicubic of Pillow on floats, clipped to 0 ... 255; then (x - 128) / 128."""
    pixels = np.asarray(_checked(images), np.float32)
    resized = np.empty((len(pixels), SIZE, SIZE, 3), np.float32)
    for index in np.ndindex(len(pixels), 3):
        image, channel = index
        # Pillow keeps the fractions of images of one float channel only.
        resized[image, :, :, channel] = Image.fromarray(
            np.ascontiguousarray(pixels[image, :, :, channel])
        ).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return (np.clip(resized, 0, 255) - 128) / 128


CONVENTIONS = {"tf": tf, "pytorch_fid": pytorch_fid, "clean": clean}


def _checked(images):
    """The images, if they are what is resized.

    Raises:
      ValueError: if they are not [batch, height, width, 3] of uint8.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            "Inception takes uint8 images [batch, height, width, 3], not "
            f"{images.dtype} {list(images.shape)}"
        )
    return images


def _as_float(images):
    return jnp.asarray(_checked(images), jnp.float32)


def _bilinear(images, positions):
    """Interpolates at `positions(size)`, which are not negative, along each side."""
    for axis in (2, 1):  # columns first, as published; that decides the last bit
        size = images.shape[axis]
        at = positions(size)
        low = at.astype(np.int32)
        high = np.minimum(low + 1, size - 1)
        shape = [SIZE if axis == each else 1 for each in range(4)]
        fraction = (at - low.astype(np.float32)).reshape(shape)
        left, right = (jnp.take(images, side, axis) for side in (low, high))
        images = left + (right - left) * fraction
    return images
