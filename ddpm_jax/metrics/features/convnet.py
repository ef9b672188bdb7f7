"""A small convolutional classifier, whose last activations describe an image.

    means, to 32 x 32 at most → conv → conv, block → conv, block → mean → head

The first two convolutions halve images of more than 16 and more than 8 pixels, the
third always does. There is no normalisation of activations but one of kernels, so each
example is treated by itself, and training on a CPU is quick.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Larger images are averaged to this many pixels on the shorter side, or fewer.
MAX_SIDE = 32
# Keeps the variance of standard normal inputs through SiLU (Brock et al. 2021).
SILU_GAIN = 1.7868
# float32 on every device: the default of accelerators has fewer bits.
PRECISION = jax.lax.Precision.HIGHEST


class Classifier(NamedTuple):
    """A classifier, as two pure functions; parameters are its only state.

    Attributes:
      init: (key, image_shape) -> params, for images of shape (height, width, channels).
      apply: (params, images [batch, height, width, channels] in [-1, 1]) -> (features
        [batch, dim], logits [batch, num_classes]), each row of its image alone.
    """

    init: Callable[[Array, tuple[int, int, int]], Any]
    apply: Callable[
        ..., tuple[Float[Array, "batch dim"], Float[Array, "batch classes"]]
    ]


class StandardConv(nn.Module):
    """A 3 x 3 convolution with standardised kernels (Qiao et al. 2019), and SiLU.

    The kernel of each output channel has mean 0, and a norm that is learned.

    Attributes:
      features: output channels.
      stride: 2 to halve height and width.
    """

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        gain = self.param("gain", nn.initializers.constant(SILU_GAIN), (self.features,))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel = kernel - jnp.mean(kernel, axis=(0, 1, 2), keepdims=True)
        squares = jnp.sum(jnp.square(kernel), axis=(0, 1, 2), keepdims=True)
        scale = gain.reshape(1, 1, 1, -1) * jax.lax.rsqrt(jnp.maximum(squares, 1e-4))
        x = jax.lax.conv_general_dilated(
            x,
            kernel * scale,
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=PRECISION,
        )
        return nn.silu(x + bias.reshape(1, 1, 1, -1))


class ConvNet(nn.Module):
    """The network; images may have any size.

    Attributes:
      num_classes: classes.
      dim: features, twice as many as the channels of the first convolution.
    """

    num_classes: int
    dim: int

    @nn.compact
    def __call__(self, images):
        side = min(images.shape[1:3])
        factor = -(-side // MAX_SIDE)
        if factor > 1:
            images = nn.avg_pool(images, (factor, factor), (factor, factor))
            side //= factor
        h = StandardConv(self.dim // 2, 2 if side > 16 else 1, name="conv_0")(images)
        h = StandardConv(self.dim, 2 if side > 8 else 1, name="conv_1")(h)
        h = h + StandardConv(self.dim, name="block_1")(h)
        h = StandardConv(self.dim, 2, name="conv_2")(h)
        h = h + StandardConv(self.dim, name="block_2")(h)
        features = jnp.mean(h, axis=(1, 2))
        head = nn.Dense(self.num_classes, precision=PRECISION, name="head")
        return features, head(features)


def classifier(num_classes: int, dim: int = 64) -> Classifier:
    """Makes a classifier.

    Args:
      num_classes: classes, the width of the logits.
      dim: width of the features, even.

    Raises:
      ValueError: for no classes, and for another width.
    """
    if num_classes < 1 or dim < 2 or dim % 2:
        raise ValueError(
            f"a classifier needs classes and an even dim, got {num_classes}, {dim}"
        )
    module = ConvNet(num_classes, dim)

    def init(key, image_shape):
        return module.init(key, jnp.zeros((1, *image_shape)))["params"]

    def apply(params, images):
        return module.apply({"params": params}, images)

    return Classifier(init, apply)
