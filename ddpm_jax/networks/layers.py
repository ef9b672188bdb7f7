"""The parts of a U-Net: time embedding, residual block, self-attention, resampling.

Ho et al. (2020), Appendix B, with the variations of Nichol & Dhariwal (2021) and
Dhariwal & Nichol (2021). Arrays are [batch, height, width, channels].
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ddpm_jax.networks.convolutions import (
    DIMENSIONS,
    Conv3x3,
    conv_3x3,
    doubled_conv_3x3,
    fan_avg,
)
from ddpm_jax.networks.dropout import dropout
from ddpm_jax.networks.normalization import GroupNorm


def dense(features: int, dtype, scale: float = 1.0, name: str | None = None):
    """A linear layer over channels."""
    return nn.Dense(features, dtype=dtype, kernel_init=fan_avg(scale), name=name)


def sinusoid(
    index: jax.Array, features: int, shift: int = 1, cos_first: bool = False
) -> jax.Array:
    """Embeds times as [sin, cos] of geometric frequencies (Vaswani et al. 2017).

    Args:
      index: times as networks count them, [batch].
      features: even width of the embedding; frequency i is 1e4^(-i / (half - shift)).
      shift: 1 for frequencies from 1 down to 1e-4 itself, 0 to stop one before it.
      cos_first: whether it is [cos, sin] instead.

    Returns:
      float32 [batch, features].
    """
    half = features // 2
    exponents = jnp.arange(half) / max(half - shift, 1)
    frequencies = jnp.exp(-jnp.log(1e4) * exponents)
    angles = index.astype(frequencies.dtype)[:, None] * frequencies[None, :]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([cos, sin] if cos_first else [sin, cos], axis=-1)


class ResBlock(nn.Module):
    """norm, SiLU, conv; + time; norm, SiLU, dropout, conv to zero; + shortcut.

    It is called with the parts of its input, whose channels lie one behind the other.

    Attributes:
      features: output channels.
      dropout: rate, before the second convolution.
      scale_shift: whether the time scales and shifts the second norm (Dhariwal &
        Nichol 2021, Eq. 2, adaptive group normalisation) instead of being added.
      num_groups: groups of the normalisations.
      norm_eps: what the normalisations add to variances.
      dtype: of the computation.
      resample: applied to both branches, `upsample` or `downsample`, or None.
    """

    features: int
    dropout: float
    scale_shift: bool
    num_groups: int
    norm_eps: float
    dtype: DTypeLike
    resample: Callable[[jax.Array], jax.Array] | None = None

    @nn.compact
    def __call__(self, parts, time, seeds=None):
        def norm(name):
            return GroupNorm(self.num_groups, self.norm_eps, nn.silu, name=name)

        h = norm("norm1")(*parts)
        convolve = doubled_conv_3x3 if self.resample is upsample else conv_3x3
        if self.resample is downsample:
            h = downsample(h)
        width = 2 * self.features if self.scale_shift else self.features
        time = dense(width, time.dtype, name="time_proj")(nn.silu(time))
        offset = scale = shift = 0.0
        if self.scale_shift:
            scale, shift = jnp.split(time, 2, axis=-1)
        else:
            offset = time
        conv1 = Conv3x3(self.features, self.dtype, convolve=convolve, name="conv1")
        h = norm("norm2")(conv1(h, offset), scale=scale, shift=shift)
        h = dropout(h, self.dropout, seeds, "/".join(self.path))
        h = Conv3x3(self.features, self.dtype, scale=0.0, name="conv2")(h)
        x = jnp.concatenate(parts, axis=-1)
        if self.resample is not None:
            x = self.resample(x)
        if x.shape[-1] != self.features:
            x = dense(self.features, self.dtype, name="shortcut")(x)
        return x + h


class Attention(nn.Module):
    """Self-attention over all pixels, with a residual connection.

    Attributes:
      num_heads: heads that share the channels.
      num_groups: groups of the normalisation.
      norm_eps: what the normalisation adds to variances.
      dtype: of the computation (the softmax is at least float32).
    """

    num_heads: int
    num_groups: int
    norm_eps: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        batch, height, width, channels = x.shape
        h = GroupNorm(self.num_groups, self.norm_eps, name="norm")(x)
        tokens = (batch, height * width, self.num_heads, channels // self.num_heads)
        q, k, v = (
            dense(channels, self.dtype, name=name)(h).reshape(tokens) for name in "qkv"
        )
        attend = attention
        # A weight for each pair of pixels and head: where these are more than q, k, v
        # and the result, the gradient computes them again instead of keeping them.
        if self.num_heads * height * width > 4 * channels:
            attend = jax.checkpoint(attend)
        h = attend(q, k, v).reshape(x.shape)
        return x + dense(channels, self.dtype, scale=0.0, name="proj_out")(h)


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q kᵀ / sqrt(dim)) v (Vaswani et al. 2017, Eq. 1), for each head.

    Args:
      q: [batch, pixels, heads, dim].
      k: as q.
      v: as q.

    Returns:
      As v. The softmax is at least float32, and as precise as q (that of
      `jax.nn.dot_product_attention` is float32 for float64, too).
    """
    precise = jnp.promote_types(q.dtype, jnp.float32)
    products = jnp.einsum("bqhc,bkhc->bhqk", q, k, preferred_element_type=precise)
    weights = jax.nn.softmax(products / np.sqrt(q.shape[-1])).astype(v.dtype)
    return jnp.einsum("bhqk,bkhc->bqhc", weights, v)


class Downsample(nn.Module):
    """Halves height and width by a 3x3 convolution of stride 2.

    Attributes:
      symmetric_padding: whether to pad all four sides, as OpenAI's models; otherwise
        only below and to the right, as TensorFlow's "SAME" does for even sizes and Ho
        et al. (2020) with it. Published weights depend on it.
      dtype: of the computation.
    """

    symmetric_padding: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        before = 1 if self.symmetric_padding else 0

        def convolve(x, kernel):
            return jax.lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(2, 2),
                padding=((before, 1), (before, 1)),
                dimension_numbers=DIMENSIONS,
            )

        return Conv3x3(x.shape[-1], self.dtype, convolve=convolve, name="conv")(x)


class Upsample(nn.Module):
    """Doubles height and width by repetition and a 3x3 convolution."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        return Conv3x3(x.shape[-1], self.dtype, convolve=doubled_conv_3x3, name="conv")(
            x
        )


def upsample(x: jax.Array) -> jax.Array:
    """Doubles height and width by repetition."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def downsample(x: jax.Array) -> jax.Array:
    """Halves height and width by averaging."""
    return nn.avg_pool(x, (2, 2), strides=(2, 2))
