"""JiT, "Just image Transformers" (Li & He 2025): patches in, a clean image out.

A transformer as DiT's (Peebles & Xie 2023), with RMS normalisation, rotary positions,
normalised queries and keys, and SwiGLU. Patches go through a narrow layer first; the
class is told twice, by what scales the blocks and as tokens before the patches. Blocks
are one scan, so a program's size does not grow with their number.
"""

import functools
import inspect
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from ddpm_jax.networks import layers, tokens
from ddpm_jax.networks.base import Network, apply_module, check_classes, class_remarks
from ddpm_jax.networks.dropout import drop_labels, dropout, seeds


class Size(NamedTuple):
    """A row of the table of sizes.

    Attributes:
      depth: blocks.
      channels: features of a token.
      num_heads: of attention.
      bottleneck: features of the narrow layer that patches go through first.
      class_tokens_from: the block before which tokens of the class join.
    """

    depth: int
    channels: int
    num_heads: int
    bottleneck: int
    class_tokens_from: int


# B, L, H and G are the paper's (Table 9); S and M are smaller ones of this project.
SIZES = {
    "S": Size(12, 384, 6, 48, 4),
    "M": Size(12, 512, 8, 48, 4),
    "B": Size(12, 768, 12, 128, 4),
    "L": Size(24, 1024, 16, 128, 8),
    "H": Size(32, 1280, 16, 256, 10),
    "G": Size(40, 1664, 16, 256, 10),
}
NORMAL = nn.initializers.normal(0.02)
FREQUENCIES = 256  # features of the embedding of time, before its layers


class Block(nn.Module):
    """Attention and SwiGLU, scaled, shifted and gated by time and class (adaLN-Zero).

    Attributes:
      num_heads: of attention.
      dropout: rate of what leaves attention, and of the hidden layer.
      dtype: of the computation.
    """

    num_heads: int
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x, told, turns, masks=None, number=0, drops=False):
        width = x.shape[-1]
        heads = (*x.shape[:2], self.num_heads, width // self.num_heads)

        def dense(features, name):
            return layers.dense(features, self.dtype, name=name)

        def drop(x, layer):
            own = None if masks is None else masks + number
            return jnp.where(drops, dropout(x, self.dropout, own, layer), x)

        shift, scale, gate, shift_2, scale_2, gate_2 = modulation(
            told, 6, width, self.dtype
        )
        h = tokens.RMSNorm(name="norm_1")(x) * (1 + scale) + shift
        q, k, v = jnp.split(dense(3 * width, "qkv")(h), 3, axis=-1)
        q = tokens.rotate(tokens.RMSNorm(name="norm_q")(q.reshape(heads)), turns)
        k = tokens.rotate(tokens.RMSNorm(name="norm_k")(k.reshape(heads)), turns)
        h = layers.attention(q, k, v.reshape(heads)).reshape(x.shape)
        x += gate * drop(dense(width, "proj")(h), "proj")
        h = tokens.RMSNorm(name="norm_2")(x) * (1 + scale_2) + shift_2
        a, b = jnp.split(dense(2 * (8 * width // 3), "mlp_in")(h), 2, axis=-1)
        return x + gate_2 * dense(width, "mlp_out")(drop(nn.silu(a) * b, "mlp"))


def modulation(told, number, width, dtype):
    """What scales, shifts and gates, from what is told; nothing, to begin with."""
    zeros = nn.initializers.zeros
    made = nn.Dense(number * width, dtype=dtype, kernel_init=zeros, name="modulation")
    return jnp.split(made(nn.silu(told))[:, None], number, axis=-1)


class JiT(nn.Module):
    """The network; its output is as its input, and in the paper x_0.

    Attributes:
      patch_size: pixels along a side of a patch.
      depth: blocks.
      channels: features of a token.
      num_heads: of attention.
      bottleneck: features of the narrow layer that patches go through first.
      class_tokens: how many tokens of the class stand before the patches.
      class_tokens_from: the block before which they join.
      dropout: rate within the middle half of the blocks while training.
      num_classes: number of classes, 0 for an unconditional network.
      label_dropout: fraction of labels replaced by the null class while training; the
        null class has the number `num_classes`.
      dtype: "float32", or "bfloat16" for activations and what multiplies them.
      remat: whether a gradient computes each block again instead of keeping what is in
        it.
    """

    patch_size: int
    depth: int
    channels: int
    num_heads: int
    bottleneck: int
    class_tokens_from: int
    class_tokens: int = 32
    dropout: float = 0.0
    num_classes: int = 0
    label_dropout: float = 0.0
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(self, x, time, label=None, dropout_keys=None):
        precise, (height, width, image_channels) = x.dtype, x.shape[1:]
        dtype = precise if self.dtype == "float32" else jnp.dtype(self.dtype)
        grid = height // self.patch_size, width // self.patch_size
        masks = None if dropout_keys is None else seeds(dropout_keys)
        told, named = self.embed(time, label, dropout_keys, precise)
        told = told.astype(dtype)

        h = nn.Dense(
            self.bottleneck,
            use_bias=False,
            dtype=dtype,
            kernel_init=layers.fan_avg(),
            name="patch_in",
        )(tokens.patches(x, self.patch_size))
        h = layers.dense(self.channels, dtype, name="patch_out")(h)
        h += jnp.asarray(tokens.sin_cos_positions(*grid, self.channels), dtype)[None]

        block = Block(self.num_heads, self.dropout, dtype, parent=None)
        turns = functools.partial(
            tokens.rotations, *grid, self.channels // self.num_heads
        )
        example = h[:1], told[:1], turns()
        stacked = self.param("blocks", tokens.stack(block, self.depth, *example))
        number = np.arange(self.depth)
        quarter = self.depth // 4
        drops = (quarter <= number) & (number < 3 * quarter)
        each = number.astype(np.uint32), drops

        def run(h, turns, first, last):
            part, own = jax.tree.map(lambda x: x[first:last], (stacked, each))
            told_all = told, turns, masks
            return tokens.run_blocks(block, part, h, told_all, own, self.remat)[0]

        if named is None or not self.class_tokens:
            h = run(h, turns(), 0, self.depth)
        else:
            h = run(h, turns(), 0, self.class_tokens_from)
            shape = self.class_tokens, self.channels
            own = self.param("class_positions", NORMAL, shape)
            named = (named[:, None] + own[None]).astype(h.dtype)
            h = jnp.concatenate([named, h], axis=1)
            turns = turns(self.class_tokens)
            h = run(h, turns, self.class_tokens_from, self.depth)
            h = h[:, self.class_tokens :]

        h, told = h.astype(precise), told.astype(precise)
        shift, scale = modulation(told, 2, self.channels, precise)
        h = tokens.RMSNorm(name="norm_out")(h) * (1 + scale) + shift
        h = nn.Dense(
            self.patch_size**2 * image_channels,
            dtype=precise,
            kernel_init=nn.initializers.zeros,
            name="patch",
        )(h)
        return tokens.image(h, self.patch_size, height, width)

    def embed(self, time, label, dropout_keys, dtype):
        """Time and class together, and class alone, each [batch, channels] or None."""
        h = layers.sinusoid(time, FREQUENCIES, shift=0, cos_first=True).astype(dtype)
        dense = functools.partial(nn.Dense, self.channels, dtype=dtype)
        h = nn.silu(dense(kernel_init=NORMAL, name="time_0")(h))
        h = dense(kernel_init=NORMAL, name="time_1")(h)
        if not self.num_classes:
            return h, None
        if label is None:
            label = jnp.full(time.shape, self.num_classes)
        label = drop_labels(label, self.num_classes, self.label_dropout, dropout_keys)
        rows = self.num_classes + (self.label_dropout > 0)
        named = nn.Embed(
            rows,
            self.channels,
            dtype=dtype,
            embedding_init=NORMAL,
            name="class_embedding",
        )(label)
        return h + named, named


def jit(
    size: str = "B",
    patch_size: int = 16,
    depth: int | None = None,
    channels: int | None = None,
    num_heads: int | None = None,
    bottleneck: int | None = None,
    class_tokens_from: int | None = None,
    **settings,
) -> Network:
    """Makes JiT as a `Network`.

    Args:
      size: a row of `SIZES`, for what is not given.
      patch_size: pixels along a side of a patch.
      depth: as of `JiT`, and so are the others.
      channels: features of a token.
      num_heads: of attention.
      bottleneck: features of the narrow layer.
      class_tokens_from: the block before which tokens of the class join.
      **settings: what else `JiT` has.

    Raises:
      ValueError: for settings of which no network can be made; from `init` where
        patches do not cover the images; from `apply` where labels are missing, or there
        should be none.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    given = Size(depth, channels, num_heads, bottleneck, class_tokens_from)
    chosen = (b if a is None else a for a, b in zip(given, SIZES[size], strict=True))
    module = JiT(patch_size, *chosen, **settings)
    _check(module)

    def init(key, image_shape):
        tokens.check_patches(image_shape, patch_size)
        return module.init(key, jnp.zeros((1, *image_shape)), jnp.zeros(1))["params"]

    def apply(params, x, time, cond=None, dropout_keys=None):
        check_classes(cond, x, module.num_classes, module.label_dropout > 0)
        return apply_module(module, params, x, time, cond, dropout_keys)

    def remarks(image_shape):
        return class_remarks(module)

    return Network(init, apply, remarks, convention="flow")


_own = dict(inspect.signature(jit).parameters)
_own.pop("settings")
_own |= {
    name: parameter
    for name, parameter in inspect.signature(JiT).parameters.items()
    if name not in (*_own, "parent", "name")
}
jit.__signature__ = inspect.Signature([*_own.values()])


def _check(module):
    """Refuses settings of which no network can be made."""
    for name in ("patch_size", "depth", "channels", "num_heads", "bottleneck"):
        if getattr(module, name) < 1:
            raise ValueError(f"{name} must be 1 or more, got {getattr(module, name)}")
    if module.channels % (4 * module.num_heads):
        raise ValueError(
            f"channels {module.channels} must be a multiple of 4 x num_heads "
            f"{module.num_heads}: positions turn pairs of features in two directions"
        )
    if not 0 <= module.class_tokens_from <= module.depth or module.class_tokens < 0:
        raise ValueError(
            f"class_tokens_from must lie within 0 ... depth {module.depth}, and "
            f"class_tokens be 0 or more; got {module.class_tokens_from} and "
            f"{module.class_tokens}"
        )
    if module.num_classes < 0:
        raise ValueError(f"num_classes must be 0 or more, got {module.num_classes}")
    if module.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype must be float32 or bfloat16, got {module.dtype!r}")
    if not (0 <= module.dropout < 1 and 0 <= module.label_dropout < 1):
        raise ValueError("dropout and label_dropout must lie in [0, 1)")
