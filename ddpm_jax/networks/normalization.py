"""Group normalisation (Wu & He 2018), with what stands behind it in a U-Net, as one.

    y = activation(scale · (x - mean) / sqrt(var + eps) + shift)

over the pixels and the channels of each group. The derivative is written out, so that x
is gone through once for its statistics, once for y, and once each for the sums and the
gradient of the backward pass, with only x kept between the two:

    g = dy · activation'(…),   x̂ = (x - mean) / sqrt(var + eps)
    dshift = Σ g,   dscale = Σ g x̂                             sums over the pixels
    dx = (scale · g - M[scale · dshift] - x̂ · M[scale · dscale]) / sqrt(var + eps)

with M the mean over what is normalised together. Statistics are at least float32.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def identity(x: Array) -> Array:
    """No activation."""
    return x


@functools.partial(jax.jit, static_argnums=(3, 4, 5), inline=True)
@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def group_norm(
    parts: tuple[Float[Array, "batch height width _"], ...],
    scale: Float[Array, "batch channels"],
    shift: Float[Array, "batch channels"],
    num_groups: int,
    eps: float,
    activation: Callable[[Array], Array] = identity,
) -> Float[Array, "batch height width channels"]:
    """Normalises groups of channels, scales, shifts, and applies an activation.

    Args:
      parts: activations, whose channels lie one behind the other. Their statistics are
        summed apart: where an array was normalised before, it is not read again.
      scale: of each example's channels.
      shift: of each example's channels.
      num_groups: groups, neighbouring channels each; it divides the channels.
      eps: what is added to variances.
      activation: a function of each element.

    Returns:
      One array of all channels, in the type of the parts.
    """
    return _forward(parts, scale, shift, num_groups, eps, activation)[0]


def _forward(parts, scale, shift, num_groups, eps, activation):
    mean, rstd = jax.lax.platform_dependent(
        *parts,
        tpu=functools.partial(_one_pass, num_groups=num_groups, eps=eps),
        default=functools.partial(_two_passes, num_groups=num_groups, eps=eps),
    )
    slope = scale * rstd
    offset = shift - mean * slope
    x = _joined(parts)
    out = activation(x.astype(mean.dtype) * _over(slope) + _over(offset))
    return out.astype(x.dtype), (parts, mean, rstd, scale, shift)


def _backward(num_groups, eps, activation, kept, dy):
    parts, mean, rstd, scale, shift = kept
    slope = scale * rstd
    offset = shift - mean * slope

    def g_of(x, dy, slope, offset):
        normalised = x * _over(slope) + _over(offset)
        _, pull = jax.vjp(activation, normalised)
        return pull(dy.astype(normalised.dtype))[0]

    # The sums over all channels at once, which a TPU adds up while a convolution makes
    # dy; the gradients by parts, each for where it goes.
    x = _precise(_joined(parts))
    g = jax.lax.platform_dependent(
        g_of(x, dy, slope, offset),
        cuda=functools.partial(_rounded, dtype=dy.dtype),
        default=identity,
    )
    dshift = jnp.sum(g, (1, 2))
    dscale = jnp.sum(g * (x - _over(mean)) * _over(rstd), (1, 2))
    num_pixels = dy.shape[1] * dy.shape[2]
    mean_g, mean_gx = (
        _group_mean(scale * d, num_groups) / num_pixels for d in (dshift, dscale)
    )
    # dx = slope · g + a x + b, of channels that are cut into parts together.
    a = -jnp.square(rstd) * mean_gx
    b = -rstd * mean_g - mean * a

    def gradient(x, g, of_channels):
        slope, a, b = map(_over, of_channels)
        return (g * slope + _precise(x) * a + b).astype(x.dtype)

    borders = np.cumsum([part.shape[-1] for part in parts])[:-1]
    cut = [jnp.split(x, borders, axis=-1) for x in (g, jnp.stack([slope, a, b]))]
    return tuple(map(gradient, parts, *cut)), dscale, dshift


group_norm.__wrapped__.defvjp(_forward, _backward)


def _two_passes(*parts, num_groups, eps):
    """Mean and 1 / sqrt(var + eps), [batch, channels] each, as they are defined."""
    x = _precise(_joined(parts))
    mean = _group_mean(jnp.mean(x, (1, 2)), num_groups)
    squares = jnp.mean(jnp.square(x - _over(mean)), (1, 2))
    return mean, jax.lax.rsqrt(_group_mean(squares, num_groups) + eps)


def _one_pass(*parts, num_groups, eps):
    """The same by E[x²] - E[x]², which a TPU sums while a convolution makes x.

    The variance has a relative error of about 1e-7 · (1 + mean² / var), far below that
    of matrix products there.
    """

    def mean_of(function):
        of_channels = [jnp.mean(function(_precise(x)), (1, 2)) for x in parts]
        return _group_mean(_joined(of_channels), num_groups)

    mean = mean_of(identity)
    variance = jnp.maximum(mean_of(jnp.square) - jnp.square(mean), 0)
    return mean, jax.lax.rsqrt(variance + eps)


def _rounded(g, dtype):
    """What a GPU writes for the second pass, in half the bytes where x has half."""
    return _precise(jax.lax.optimization_barrier(g.astype(dtype)))


def _precise(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _joined(parts):
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def _group_mean(x, num_groups):
    """Means over each group of channels, at each of them, [batch, channels]."""
    # As products: channels are the lanes of a TPU, which cannot be regrouped cheaply.
    size = x.shape[-1] // num_groups
    members = np.repeat(np.eye(num_groups), size, axis=0).astype(x.dtype)
    exact = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
    return exact(exact(x, members) / size, members.T)


def _over(x):
    """[batch, channels] -> [batch, 1, 1, channels]."""
    return x[:, None, None, :]


class GroupNorm(nn.Module):
    """Group normalisation with a learned scale and shift, and an activation.

    Attributes:
      num_groups: groups.
      eps: what is added to variances.
      activation: what follows.
    """

    num_groups: int
    eps: float
    activation: Callable[[Array], Array] = identity

    @nn.compact
    def __call__(self, *parts, scale=0.0, shift=0.0):
        """Normalises; `scale` and `shift` of each example come on top, [batch, C].

        That is h (1 + scale) + shift, adaptive group normalisation (Dhariwal & Nichol
        2021, Eq. 2), before the activation.
        """
        batch, channels = parts[0].shape[0], sum(part.shape[-1] for part in parts)
        shape = (channels,)
        learned_scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        learned_shift = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        learned_scale, learned_shift = (
            jnp.broadcast_to(p, (batch, channels))
            for p in (learned_scale, learned_shift)
        )
        return group_norm(
            parts,
            learned_scale * (1 + scale),
            learned_shift * (1 + scale) + shift,
            self.num_groups,
            self.eps,
            self.activation,
        )
