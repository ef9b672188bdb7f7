"""The parts of a U-Net: time embedding, residual block, self-attention, resampling.

Ho et al. (2020), Appendix B, with the variations of Nichol & Dhariwal (2021) and
Dhariwal & Nichol (2021). Arrays are [batch, height, width, channels].
"""

import zlib
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


def fan_avg(scale: float = 1.0) -> nn.initializers.Initializer:
    """The initialisation of Ho et al. (2020), where a "zero" scale is 1e-10."""
    return nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


def conv(features: int, size: int, dtype, scale: float = 1.0, name: str | None = None):
    """A size x size convolution that keeps height and width."""
    return nn.Conv(
        features, (size, size), dtype=dtype, kernel_init=fan_avg(scale), name=name
    )


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


def dropout(module: nn.Module, x: jax.Array, rate: float, keys: jax.Array | None):
    """Dropout with one key per example, so that masks do not depend on the batch.

    Args:
      module: the module it is part of; its path tells layers apart.
      x: [batch, ...].
      rate: the fraction to drop.
      keys: [batch], or None for no dropout.
    """
    if keys is None or rate == 0:
        return x
    layer = zlib.crc32("/".join(module.path).encode())

    def mask(key):
        return jax.random.bernoulli(
            jax.random.fold_in(key, layer), 1 - rate, x[0].shape
        )

    return jnp.where(jax.vmap(mask)(keys), x / (1 - rate), 0)


class ResBlock(nn.Module):
    """norm, SiLU, conv; + time; norm, SiLU, dropout, conv to zero; + shortcut.

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
    def __call__(self, x, time, dropout_keys=None):
        resample = self.resample or (lambda h: h)
        h = nn.silu(group_norm(self, "norm1")(x))
        h = conv(self.features, 3, self.dtype, name="conv1")(resample(h))
        width = 2 * self.features if self.scale_shift else self.features
        time = dense(width, self.dtype, name="time_proj")(nn.silu(time))[:, None, None]
        norm2 = group_norm(self, "norm2")
        if self.scale_shift:
            scale, shift = jnp.split(time, 2, axis=-1)
            h = norm2(h) * (1 + scale) + shift
        else:
            h = norm2(h + time)
        h = dropout(self, nn.silu(h), self.dropout, dropout_keys)
        h = conv(self.features, 3, self.dtype, scale=0.0, name="conv2")(h)
        x = resample(x)
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
        h = group_norm(self, "norm")(x)
        tokens = (batch, height * width, self.num_heads, channels // self.num_heads)
        q, k, v = (
            dense(channels, self.dtype, name=name)(h).reshape(tokens) for name in "qkv"
        )
        precise = jnp.promote_types(q.dtype, jnp.float32)
        products = jnp.einsum("bqhc,bkhc->bhqk", q, k, preferred_element_type=precise)
        weights = jax.nn.softmax(products / np.sqrt(q.shape[-1])).astype(v.dtype)
        h = jnp.einsum("bhqk,bkhc->bqhc", weights, v).reshape(x.shape)
        return x + dense(channels, self.dtype, scale=0.0, name="proj_out")(h)


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
        return nn.Conv(
            x.shape[-1],
            (3, 3),
            strides=2,
            padding=((before, 1), (before, 1)),
            dtype=self.dtype,
            kernel_init=fan_avg(),
            name="conv",
        )(x)


class Upsample(nn.Module):
    """Doubles height and width by repetition and a 3x3 convolution."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        return conv(x.shape[-1], 3, self.dtype, name="conv")(upsample(x))


def upsample(x: jax.Array) -> jax.Array:
    """Doubles height and width by repetition."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


def downsample(x: jax.Array) -> jax.Array:
    """Halves height and width by averaging."""
    return nn.avg_pool(x, (2, 2), strides=(2, 2))


def group_norm(module: nn.Module, name: str | None = None) -> nn.GroupNorm:
    """Group normalisation with the groups and the precision of `module`."""
    return nn.GroupNorm(
        module.num_groups,
        epsilon=module.norm_eps,
        dtype=module.dtype,
        use_fast_variance=False,  # E[x²] - E[x]² loses digits where the mean is large
        name=name,
    )
