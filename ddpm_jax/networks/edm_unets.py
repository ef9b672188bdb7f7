"""DDPM++ and NCSN++ of Song et al. (2021b), as Karras et al. (2022) train them.

U-Nets as in `unets`, but with every residual sum divided by √2, BigGAN's halving and
doubling within blocks, and the noise level's embedding added behind the first
convolution (Table 7 and Appendix F of Karras et al.). NCSN++ also sees a smaller image
at each level, filters before it halves, and has random frequencies for the level.

They are told ln(σ) / 4, and given images of unit variance (`conventions.edm`).
"""

import inspect
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ddpm_jax.networks import layers
from ddpm_jax.networks.base import Network, apply_module, check_classes, class_remarks
from ddpm_jax.networks.dropout import dropout, seeds
from ddpm_jax.networks.normalization import GroupNorm

EPS = 1e-6
HALF = 2**-0.5  # keeps the variance of a sum of two
FREQUENCIES = 16.0  # standard deviation of the random ones


class Block(nn.Module):
    """norm, SiLU, conv; + noise level; norm, SiLU, dropout, conv to zero; + shortcut.

    Attributes:
      features: output channels.
      dropout: rate, before the second convolution.
      dtype: of the computation.
      attends: whether self-attention follows, of one head.
      resample: applied to both branches first, or None.
    """

    features: int
    dropout: float
    dtype: DTypeLike
    attends: bool = False
    resample: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(self, parts, level, seeds=None):
        resample = self.resample or (lambda x: x)
        x = jnp.concatenate(parts, axis=-1)
        h = resample(_norm(x.shape[-1], nn.silu, "norm1")(*parts))
        offset = layers.dense(self.features, level.dtype, name="level_proj")(level)
        h = layers.Conv3x3(self.features, self.dtype, name="conv1")(h, offset)
        h = _norm(self.features, nn.silu, "norm2")(h)
        h = dropout(h, self.dropout, seeds, "/".join(self.path))
        h = layers.Conv3x3(self.features, self.dtype, scale=0.0, name="conv2")(h)
        if self.resample is not None or x.shape[-1] != self.features:
            shortcut = layers.dense(self.features, self.dtype, name="shortcut")
            x = shortcut(resample(x))
        x = (x + h) * HALF
        if not self.attends:
            return x
        h = _norm(self.features, None, "norm3")(x)
        tokens = (x.shape[0], x.shape[1] * x.shape[2], 1, self.features)
        q, k, v = (
            layers.dense(self.features, self.dtype, 0.2, name=name)(h).reshape(tokens)
            for name in "qkv"
        )
        h = layers.attention(q, k, v).reshape(x.shape)
        h = layers.dense(self.features, self.dtype, 0.0, name="proj_out")(h)
        return (x + h) * HALF


class EDMUNet(nn.Module):
    """The networks of Karras et al.; the defaults are their CIFAR-10 models.

    Attributes:
      channels: features at the highest resolution.
      channel_mults: what multiplies them at each level.
      num_res_blocks: residual blocks per level on the way down.
      attention_resolutions: sizes (of the shorter side) with attention after each block
        on the way down, and after the last on the way up.
      dropout: rate within residual blocks while training.
      num_classes: number of classes, 0 for an unconditional network.
      label_dropout: fraction of labels left out while training; the class that means
        none has the number `num_classes`.
      augmentation: numbers that tell how a training image was augmented, 0 for none.
      filtered: whether halving and doubling filter by [1, 3, 3, 1] (NCSN++).
      sees_image: whether each level sees the image at its size (NCSN++).
      fourier: whether the noise level's frequencies are random (NCSN++).
      dtype: "float32", or "bfloat16" for activations and what multiplies them.
    """

    channels: int = 128
    channel_mults: Sequence[int] = (2, 2, 2)
    num_res_blocks: int = 4
    attention_resolutions: Sequence[int] = (16,)
    dropout: float = 0.13
    num_classes: int = 0
    label_dropout: float = 0.0
    augmentation: int = 0
    filtered: bool = False
    sees_image: bool = False
    fourier: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x, level, label=None, dropout_keys=None, augmentation=None):
        precise, size = x.dtype, x.shape[1:3]
        dtype = precise if self.dtype == "float32" else jnp.dtype(self.dtype)
        level = self.embed(level, label, dropout_keys, augmentation, precise)
        masks = None if dropout_keys is None else seeds(dropout_keys)
        halve, double = layers.downsample, layers.upsample
        if self.filtered:
            halve, double = filtered_halving, filtered_doubling

        def block(parts, features, name, attends=False, resample=None):
            made = Block(features, self.dropout, dtype, attends, resample, name=name)
            return made(parts, level, masks)

        def attends(depth):
            return min(size) >> depth in self.attention_resolutions

        out_channels, image = x.shape[-1], x
        h = layers.Conv3x3(self.channels, dtype, name="conv_in")(x)
        kept = [h]
        for depth, mult in enumerate(self.channel_mults):
            if depth:
                h = block([h], h.shape[-1], f"down_{depth}_halve", resample=halve)
                if self.sees_image:
                    name = f"down_{depth}_image"
                    h = image = (h + self.smaller(image, h.shape[-1], name)) * HALF
                kept.append(h)
            for j in range(self.num_res_blocks):
                width = self.channels * mult
                h = block([h], width, f"down_{depth}_{j}", attends(depth))
                kept.append(h)
        h = block([h], h.shape[-1], "mid_0", attends=True)
        h = block([h], h.shape[-1], "mid_1")
        for depth, mult in reversed([*enumerate(self.channel_mults)]):
            if depth < len(self.channel_mults) - 1:
                h = block([h], h.shape[-1], f"up_{depth}_double", resample=double)
            for j in range(self.num_res_blocks + 1):
                last = j == self.num_res_blocks
                parts, width = [h, kept.pop()], self.channels * mult
                h = block(parts, width, f"up_{depth}_{j}", last and attends(depth))
        h = _norm(h.shape[-1], nn.silu, "norm_out")(h.astype(precise))
        return layers.Conv3x3(out_channels, precise, scale=0.0, name="conv_out")(h)

    def smaller(self, image, features, name):
        """The image at half its size: a convolution, then the filter of halving."""
        around = ((0, 0), (1, 1), (1, 1), (0, 0))
        h = layers.Conv3x3(features, image.dtype, name=name)(jnp.pad(image, around))
        return filtered_halving(h, padding=0)

    def embed(self, level, label, dropout_keys, augmentation, dtype):
        """Noise level, class and augmentation, [batch, 4 · channels]."""
        if self.fourier:
            width = 2 * self.channels
            normal = nn.initializers.normal(FREQUENCIES)
            frequencies = self.param("frequencies", normal, (self.channels,))
            frequencies = jax.lax.stop_gradient(frequencies)  # they are not trained
            angles = 2 * np.pi * level[:, None] * frequencies[None]
            h = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        else:
            width = self.channels
            h = layers.sinusoid(level, width)
        h = h.astype(dtype)
        if self.num_classes:
            if label is None:
                label = jnp.full(level.shape, self.num_classes)
            given = jax.nn.one_hot(label, self.num_classes, dtype=dtype)
            if dropout_keys is not None and self.label_dropout > 0:
                keep = jax.vmap(
                    lambda key: jax.random.bernoulli(key, 1 - self.label_dropout)
                )(dropout_keys)
                given *= keep[:, None]
            given *= self.num_classes**0.5
            h += layers.dense(width, dtype, name="class_proj")(given)
        if self.augmentation:
            if augmentation is None:
                augmentation = jnp.zeros((*level.shape, self.augmentation), dtype)
            h += nn.Dense(
                width,
                use_bias=False,
                dtype=dtype,
                kernel_init=layers.fan_avg(),
                name="augmentation_proj",
            )(augmentation)
        for name in ("level_0", "level_1"):
            h = nn.silu(layers.dense(4 * self.channels, dtype, name=name)(h))
        return h


def filtered_halving(x: jax.Array, padding: int = 1) -> jax.Array:
    """Halves height and width by the filter [1, 3, 3, 1] along both."""
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    return _depthwise(x, taps, ((padding, padding),) * 2, window_strides=(2, 2))


def filtered_doubling(x: jax.Array) -> jax.Array:
    """Doubles height and width by the filter [1, 3, 3, 1] along both."""
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16
    return _depthwise(
        x, taps, ((2, 2),) * 2, window_strides=(1, 1), lhs_dilation=(2, 2)
    )


def _depthwise(x, taps, padding, **strides):
    channels = x.shape[-1]
    kernel = jnp.broadcast_to(taps[:, :, None, None], (*taps.shape, 1, channels))
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
        **strides,
    )


def _norm(channels, activation, name):
    settings = {} if activation is None else {"activation": activation}
    return GroupNorm(min(32, channels // 4), EPS, name=name, **settings)


def ddpmpp(sigma_data: float = 0.5, **settings) -> Network:
    """Makes DDPM++; the settings are attributes of `EDMUNet`.

    Args:
      sigma_data: standard deviation of the images, of its preconditioning.
      **settings: attributes of `EDMUNet`, but for those of NCSN++.

    Raises:
      ValueError: for settings outside their range; from `init` where images cannot be
        halved as often as there are levels; from `apply` where labels are missing, or
        there should be none.
    """
    return _network(sigma_data, **settings)


def ncsnpp(sigma_data: float = 0.5, **settings) -> Network:
    """Makes NCSN++, with arguments and errors as `ddpmpp`."""
    return _network(
        sigma_data, filtered=True, sees_image=True, fourier=True, **settings
    )


# The settings are EDMUNet's fields, less what makes NCSN++ of it, and what Flax adds.
_SETTINGS = [
    parameter
    for name, parameter in inspect.signature(EDMUNet).parameters.items()
    if name not in ("filtered", "sees_image", "fourier", "parent", "name")
]
for _made in (ddpmpp, ncsnpp):
    _sigma = inspect.signature(_made).parameters["sigma_data"]
    _made.__signature__ = inspect.Signature([_sigma, *_SETTINGS])


def _network(sigma_data, **settings):
    hashable = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    module = EDMUNet(**hashable)
    _check(module)
    convention = {"name": "edm", "sigma_data": sigma_data}

    def init(key, image_shape):
        factor = 2 ** (len(module.channel_mults) - 1)
        if any(side % factor for side in image_shape[:2]):
            height, width, _ = image_shape
            raise ValueError(
                f"an image of {height}x{width} cannot be halved as often as "
                f"{len(module.channel_mults)} channel_mults ask"
            )
        x, level = jnp.zeros((1, *image_shape)), jnp.zeros(1)
        return module.init(key, x, level)["params"]

    def apply(params, x, level, cond=None, dropout_keys=None, augmentation=None):
        check_classes(cond, x, module.num_classes, module.label_dropout > 0)
        return apply_module(module, params, x, level, cond, dropout_keys, augmentation)

    numbers = module.augmentation

    def remarks(image_shape):
        return class_remarks(module)

    return Network(init, apply, remarks, numbers, convention)


def _check(module):
    """Refuses settings of which no network can be made."""
    if module.channels < 4 or module.channels % 4:
        raise ValueError(f"channels must be a multiple of 4, got {module.channels}")
    if not module.channel_mults or min(module.channel_mults) < 1:
        raise ValueError(f"channel_mults must be 1 or more: {module.channel_mults}")
    for mult in module.channel_mults:
        for width in (module.channels * mult, module.channels):
            if width % min(32, width // 4):
                raise ValueError(
                    f"{width} features cannot be normalised in groups of 4"
                )
    if module.num_res_blocks < 1 or min(module.num_classes, module.augmentation) < 0:
        raise ValueError("num_res_blocks must be 1 or more, no number negative")
    if module.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype must be float32 or bfloat16, got {module.dtype!r}")
    if not (0 <= module.dropout < 1 and 0 <= module.label_dropout < 1):
        raise ValueError("dropout and label_dropout must lie in [0, 1)")
