"""U-ViT (Bao et al. 2023): a transformer of pixels with the long skips of a U-Net.

Everything is a token: time, class and each patch. The first half of the blocks hands
what it made to the second half, last to first; a 3x3 convolution joins the patches.
Each half is one scan, so a program's size does not grow with the number of blocks.
"""

import inspect

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from ddpm_jax.networks import layers, tokens
from ddpm_jax.networks.base import Network, apply_module, check_classes, class_remarks
from ddpm_jax.networks.dropout import drop_labels

EPS = 1e-5
NORMAL = nn.initializers.normal(0.02)
FAN_IN = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Block(nn.Module):
    """(x and a skip, to x); + attention of norm; + two layers of norm.

    Attributes:
      num_heads: of attention.
      dtype: of the computation.
    """

    num_heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x, skip=None):
        width = x.shape[-1]
        heads = (*x.shape[:2], self.num_heads, width // self.num_heads)
        if skip is not None:
            x = _dense(width, self.dtype, "skip")(jnp.concatenate([x, skip], axis=-1))
        h = _norm(self.dtype, "norm_1")(x)
        qkv = _dense(3 * width, self.dtype, "qkv", use_bias=False)(h)
        q, k, v = (part.reshape(heads) for part in jnp.split(qkv, 3, axis=-1))
        h = layers.attention(q, k, v).reshape(x.shape)
        x += _dense(width, self.dtype, "proj")(h)
        h = _dense(4 * width, self.dtype, "mlp_in")(_norm(self.dtype, "norm_2")(x))
        h = nn.gelu(h, approximate=False)
        return x + _dense(width, self.dtype, "mlp_out")(h)


class UViT(nn.Module):
    """The network; the defaults are U-ViT-S/2, as it was trained on CIFAR-10.

    Attributes:
      patch_size: pixels along a side of a patch.
      depth: blocks beside the one in the middle, half of them before it.
      channels: features of a token.
      num_heads: of attention.
      time_layers: whether time goes through two layers before it is a token.
      num_classes: number of classes, 0 for an unconditional network.
      label_dropout: fraction of labels replaced by the null class while training; the
        null class has the number `num_classes`.
      dtype: "float32", or "bfloat16" for activations and what multiplies them.
      remat: whether a gradient computes each block again instead of keeping what is in
        it.
    """

    patch_size: int = 2
    depth: int = 12
    channels: int = 512
    num_heads: int = 8
    time_layers: bool = False
    num_classes: int = 0
    label_dropout: float = 0.0
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(self, x, index, label=None, dropout_keys=None):
        precise, (height, width, image_channels) = x.dtype, x.shape[1:]
        dtype = precise if self.dtype == "float32" else jnp.dtype(self.dtype)
        h = nn.Dense(self.channels, dtype=dtype, kernel_init=FAN_IN, name="patch_in")(
            tokens.patches(x, self.patch_size)
        )
        told = self.embed(index, label, dropout_keys, dtype)
        h = jnp.concatenate([*told, h], axis=1)
        places = self.param("positions", NORMAL, h.shape[1:])
        h += places[None].astype(dtype)

        block = Block(self.num_heads, dtype, parent=None)
        half, one = self.depth // 2, h[:1]
        down = self.param("down", tokens.stack(block, half, one))
        middle = self.param("middle", tokens.stack(block, 1, one))
        up = self.param("up", tokens.stack(block, half, one, one))

        h, kept = tokens.run_blocks(block, down, h, (), (), self.remat)
        h, _ = tokens.run_blocks(block, middle, h, (), (), self.remat)
        h, _ = tokens.run_blocks(block, up, h, (), (kept[::-1],), self.remat)

        h = _norm(precise, "norm_out")(h.astype(precise))[:, len(told) :]
        h = _dense(self.patch_size**2 * image_channels, precise, "patch_out")(h)
        h = tokens.image(h, self.patch_size, height, width)
        return nn.Conv(
            image_channels, (3, 3), dtype=precise, kernel_init=FAN_IN, name="conv_out"
        )(h)

    def embed(self, index, label, dropout_keys, dtype):
        """The tokens before the patches, each [batch, 1, channels]."""
        h = layers.sinusoid(index, self.channels, shift=0, cos_first=True)
        h = h.astype(dtype)
        if self.time_layers:
            h = nn.silu(_dense(4 * self.channels, dtype, "time_0")(h))
            h = _dense(self.channels, dtype, "time_1")(h)
        if not self.num_classes:
            return [h[:, None]]
        if label is None:
            label = jnp.full(index.shape, self.num_classes)
        label = drop_labels(label, self.num_classes, self.label_dropout, dropout_keys)
        named = nn.Embed(
            self.num_classes + (self.label_dropout > 0),
            self.channels,
            dtype=dtype,
            embedding_init=nn.initializers.normal(1.0),
            name="class_embedding",
        )(label)
        return [named[:, None], h[:, None]]


def uvit(**settings) -> Network:
    """Makes U-ViT as a `Network`; the settings are the attributes of `UViT`.

    Raises:
      ValueError: for settings of which no network can be made; from `init` where
        patches do not cover the images; from `apply` where labels are missing, or there
        should be none.
    """
    module = UViT(**settings)
    _check(module)

    def init(key, image_shape):
        tokens.check_patches(image_shape, module.patch_size)
        return module.init(key, jnp.zeros((1, *image_shape)), jnp.zeros(1))["params"]

    def apply(params, x, index, cond=None, dropout_keys=None):
        check_classes(cond, x, module.num_classes, module.label_dropout > 0)
        return apply_module(module, params, x, index, cond, dropout_keys)

    return Network(init, apply, lambda image_shape: class_remarks(module))


uvit.__signature__ = inspect.signature(uvit).replace(
    parameters=[
        parameter
        for name, parameter in inspect.signature(UViT).parameters.items()
        if name not in ("parent", "name")
    ]
)


def _dense(features, dtype, name, **settings):
    return nn.Dense(features, dtype=dtype, kernel_init=NORMAL, name=name, **settings)


def _norm(dtype, name):
    return nn.LayerNorm(epsilon=EPS, dtype=dtype, name=name)


def _check(module):
    """Refuses settings of which no network can be made."""
    for name in ("patch_size", "channels", "num_heads"):
        if getattr(module, name) < 1:
            raise ValueError(f"{name} must be 1 or more, got {getattr(module, name)}")
    if module.depth < 2 or module.depth % 2:
        raise ValueError(f"depth must be even, and 2 or more, got {module.depth}")
    if module.channels % 2 or module.channels % module.num_heads:
        raise ValueError(
            f"channels {module.channels} must be even and a multiple of num_heads "
            f"{module.num_heads}"
        )
    if module.num_classes < 0:
        raise ValueError(f"num_classes must be 0 or more, got {module.num_classes}")
    if module.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype must be float32 or bfloat16, got {module.dtype!r}")
    if not 0 <= module.label_dropout < 1:
        raise ValueError("label_dropout must lie in [0, 1)")
