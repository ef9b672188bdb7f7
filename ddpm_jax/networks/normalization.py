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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def group_norm(
    x: Float[Array, "batch height width channels"],
    scale: Float[Array, "batch channels"],
    shift: Float[Array, "batch channels"],
    num_groups: int,
    eps: float,
    activation: Callable[[Array], Array] = identity,
) -> Float[Array, "batch height width channels"]:
    """Normalises groups of channels, scales, shifts, and applies an activation.

    Args:
      x: activations.
      scale: of each example's channels.
      shift: of each example's channels.
      num_groups: groups, neighbouring channels each; it divides the channels.
      eps: what is added to variances.
      activation: a function of each element.

    Returns:
      As x, also in its type.
    """
    return _forward(x, scale, shift, num_groups, eps, activation)[0]


def _forward(x, scale, shift, num_groups, eps, activation):
    mean, rstd = jax.lax.platform_dependent(
        x,
        tpu=functools.partial(_one_pass, num_groups=num_groups, eps=eps),
        default=functools.partial(_two_passes, num_groups=num_groups, eps=eps),
    )
    slope = scale * rstd
    offset = shift - mean * slope
    out = activation(x.astype(mean.dtype) * _over(slope) + _over(offset))
    return out.astype(x.dtype), (x, mean, rstd, scale, shift)


def _backward(num_groups, eps, activation, kept, dy):
    x, mean, rstd, scale, shift = kept
    normalised = (x.astype(mean.dtype) - _over(mean)) * _over(rstd)
    _, pull = jax.vjp(activation, normalised * _over(scale) + _over(shift))
    (g,) = pull(dy.astype(mean.dtype))
    dshift, dscale = jnp.sum(g, (1, 2)), jnp.sum(g * normalised, (1, 2))
    num_pixels = x.shape[1] * x.shape[2]
    mean_g = _group_mean(scale * dshift, num_groups) / num_pixels
    mean_gx = _group_mean(scale * dscale, num_groups) / num_pixels
    dx = g * _over(scale) - _over(mean_g) - normalised * _over(mean_gx)
    return (dx * _over(rstd)).astype(x.dtype), dscale, dshift


group_norm.defvjp(_forward, _backward)


def _two_passes(x, num_groups, eps):
    """Mean and 1 / sqrt(var + eps), [batch, channels] each, as they are defined."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = _group_mean(jnp.mean(x, (1, 2)), num_groups)
    squares = jnp.mean(jnp.square(x - _over(mean)), (1, 2))
    return mean, jax.lax.rsqrt(_group_mean(squares, num_groups) + eps)


def _one_pass(x, num_groups, eps):
    """The same by E[x²] - E[x]², which a TPU sums while a convolution makes x.

    The variance has a relative error of about 1e-7 · (1 + mean² / var), far below that
    of matrix products there.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = _group_mean(jnp.mean(x, (1, 2)), num_groups)
    square = _group_mean(jnp.mean(jnp.square(x), (1, 2)), num_groups)
    variance = jnp.maximum(square - jnp.square(mean), 0)
    return mean, jax.lax.rsqrt(variance + eps)


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
    def __call__(self, x, scale=0.0, shift=0.0):
        """Normalises x; `scale` and `shift` of each example come on top, [batch, C].

        That is h (1 + scale) + shift, adaptive group normalisation (Dhariwal & Nichol
        2021, Eq. 2), before the activation.
        """
        batch, *_, channels = x.shape
        learned_scale = self.param("scale", nn.initializers.ones, (channels,))
        learned_shift = self.param("bias", nn.initializers.zeros, (channels,))
        learned_scale, learned_shift = (
            jnp.broadcast_to(p, (batch, channels))
            for p in (learned_scale, learned_shift)
        )
        return group_norm(
            x,
            learned_scale * (1 + scale),
            learned_shift * (1 + scale) + shift,
            self.num_groups,
            self.eps,
            self.activation,
        )
