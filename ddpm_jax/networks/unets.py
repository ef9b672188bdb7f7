"""The U-Net of Ho et al. (2020), Appendix B, and its later options.

    conv_in → down_0 … down_L → mid → up_L … up_0 → norm, SiLU, conv_out

Level i has channels · channel_mults[i] features at 1 / 2^i of the image's size. On the
way down every output is kept; on the way up each block reads the last one kept, behind
its own input. A level has one block more on the way up than on the way down.
"""

import functools
import inspect
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.networks import layers
from ddpm_jax.networks.base import Network, apply_module, check_classes, class_remarks
from ddpm_jax.networks.dropout import drop_labels, seeds


class UNet(nn.Module):
    """A U-Net; the defaults are the CIFAR-10 model of Ho et al. (2020).

    Attributes:
      channels: features at the highest resolution.
      channel_mults: what multiplies them at each level; the number of levels.
      num_res_blocks: residual blocks per level on the way down.
      attention_resolutions: sizes (of the shorter side) with attention after each
        block. The lowest level always has attention in the middle.
      num_heads: attention heads.
      head_channels: channels per attention head, instead of `num_heads`.
      dropout: rate within residual blocks while training.
      scale_shift: whether the time scales and shifts (Nichol & Dhariwal 2021).
      residual_resample: whether residual blocks halve and double, as in BigGAN, instead
        of convolutions.
      num_classes: number of classes, 0 for an unconditional network.
      label_dropout: fraction of labels replaced by the null class while training, for
        classifier-free guidance; the null class has the number `num_classes`.
      learned_variance: whether the output has twice the channels of the images.
      num_groups: groups of the group normalisations.
      norm_eps: what they add to variances (OpenAI: 1e-5).
      symmetric_padding: whether downsampling pads all four sides (OpenAI) or only two.
      cos_first: whether times are embedded as [cos, sin] (OpenAI).
      frequency_shift: 1, or 0 for OpenAI's slightly higher frequencies.
      index_scale: what times are multiplied with first (OpenAI's rescale_timesteps:
        1000 / T).
      dtype: "float32", or "bfloat16" for activations and what multiplies them.
        Parameters, statistics, the softmax, times, the last normalisation and the last
        convolution are float32 in both.
      remat: whether training computes residual blocks and attention again in the
        backward pass, instead of keeping what is inside them: about half of the
        memory for a fifth more computation. Parameters and results are the same.

    Raises:
      ValueError: where features, groups and heads do not divide.
    """

    channels: int = 128
    channel_mults: Sequence[int] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: Sequence[int] = (16,)
    num_heads: int = 1
    head_channels: int | None = None
    dropout: float = 0.0
    scale_shift: bool = False
    residual_resample: bool = False
    num_classes: int = 0
    label_dropout: float = 0.0
    learned_variance: bool = False
    num_groups: int = 32
    norm_eps: float = 1e-6
    symmetric_padding: bool = False
    cos_first: bool = False
    frequency_shift: int = 1
    index_scale: float = 1.0
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.channels < 2 or self.channels % 2:
            raise ValueError(f"channels must be even, got {self.channels}")
        if not self.channel_mults or min(self.channel_mults) < 1:
            raise ValueError(f"channel_mults must be 1 or more: {self.channel_mults}")
        if self.attention_resolutions and min(self.attention_resolutions) < 1:
            raise ValueError(
                f"attention_resolutions must be 1 or more: {self.attention_resolutions}"
            )
        for name in ("num_res_blocks", "num_groups", "num_heads", "head_channels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if self.num_classes < 0:
            raise ValueError(f"num_classes must be 0 or more, got {self.num_classes}")
        if self.frequency_shift not in (0, 1):
            raise ValueError(f"frequency_shift is 0 or 1, got {self.frequency_shift}")
        if not (self.norm_eps > 0 and self.index_scale > 0):
            raise ValueError("norm_eps and index_scale must be positive")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f"dtype must be 'float32' or 'bfloat16', got {self.dtype!r}"
            )
        for name in ("dropout", "label_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1)")
        divisors = {"num_groups": self.num_groups, "num_heads": self.num_heads}
        if self.head_channels is not None:
            divisors["head_channels"] = self.head_channels
        for mult in self.channel_mults:
            for name, divisor in divisors.items():
                if self.channels * mult % divisor:
                    raise ValueError(
                        f"{self.channels * mult} features (channels {self.channels} x "
                        f"{mult}) cannot be divided by {name} {divisor}"
                    )

    @nn.compact
    def __call__(self, x, index, label=None, dropout_keys=None):
        precise = x.dtype
        dtype = precise if self.dtype == "float32" else jnp.dtype(self.dtype)
        time = self.embed(index, label, dropout_keys, precise)
        masks = None if dropout_keys is None else seeds(dropout_keys)
        last = len(self.channel_mults) - 1
        out_channels = (2 if self.learned_variance else 1) * x.shape[-1]
        part = nn.remat if self.remat else lambda layer: layer

        def res_block(parts, features, name, resample=None):
            block = part(layers.ResBlock)(
                features,
                self.dropout,
                self.scale_shift,
                self.num_groups,
                self.norm_eps,
                dtype,
                resample,
                name=name,
            )
            return block(parts, time, masks)

        def attention(h, name):
            heads = self.num_heads
            if self.head_channels is not None:
                heads = h.shape[-1] // self.head_channels
            return part(layers.Attention)(
                heads, self.num_groups, self.norm_eps, dtype, name=name
            )(h)

        def level_block(parts, level, name):
            features = self.channels * self.channel_mults[level]
            h = res_block(parts, features, f"{name}_block")
            if min(h.shape[1:3]) in self.attention_resolutions:
                h = attention(h, f"{name}_attn")
            return h

        h = layers.Conv3x3(self.channels, dtype, name="conv_in")(x)
        kept = [h]
        for level in range(last + 1):
            for j in range(self.num_res_blocks):
                h = level_block([h], level, f"down_{level}_{j}")
                kept.append(h)
            if level != last:
                name = f"down_{level}_downsample"
                if self.residual_resample:
                    h = res_block([h], h.shape[-1], name, layers.downsample)
                else:
                    pad = self.symmetric_padding
                    h = layers.Downsample(pad, dtype, name=name)(h)
                kept.append(h)

        h = res_block([h], h.shape[-1], "mid_0_block")
        h = attention(h, "mid_attn")
        h = res_block([h], h.shape[-1], "mid_1_block")

        for level in reversed(range(last + 1)):
            for j in range(self.num_res_blocks + 1):
                h = level_block([h, kept.pop()], level, f"up_{level}_{j}")
            if level != 0:
                name = f"up_{level}_upsample"
                if self.residual_resample:
                    h = res_block([h], h.shape[-1], name, layers.upsample)
                else:
                    h = layers.Upsample(dtype, name=name)(h)

        norm = layers.GroupNorm(
            self.num_groups, self.norm_eps, nn.silu, name="norm_out"
        )
        h = norm(h.astype(precise))
        return layers.Conv3x3(out_channels, precise, scale=0.0, name="conv_out")(h)

    def embed(self, index, label, dropout_keys, dtype):
        """Time and class, [batch, 4 · channels]; dropping labels while training."""
        width = 4 * self.channels
        time = layers.sinusoid(
            index * self.index_scale,
            self.channels,
            self.frequency_shift,
            self.cos_first,
        )
        time = nn.silu(layers.dense(width, dtype, name="time_0")(time))
        time = layers.dense(width, dtype, name="time_1")(time)
        if self.num_classes == 0:
            return time
        null = self.num_classes
        if label is None:
            label = jnp.full(index.shape, null)
        label = drop_labels(label, null, self.label_dropout, dropout_keys)
        rows = self.num_classes + (1 if self.label_dropout > 0 else 0)
        return time + nn.Embed(
            rows,
            width,
            dtype=dtype,
            embedding_init=nn.initializers.normal(1.0),
            name="class_embedding",
        )(label)


def unet(**settings) -> Network:
    """Makes a U-Net as a `Network`; the settings are the attributes of `UNet`.

    Raises:
      ValueError: where features, groups and heads do not divide; from `init` where
        images cannot be halved as often as there are levels; from `apply` where labels
        are missing, there should be none, or they are not one class for each image.
    """
    hashable = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    module = UNet(**hashable)

    def init(key, image_shape):
        _check_image_shape(image_shape, len(module.channel_mults))
        return _init(module, key, tuple(image_shape))

    def apply(params, x_t, index, cond=None, dropout_keys=None):
        check_classes(cond, x_t, module.num_classes, module.label_dropout > 0)
        return apply_module(module, params, x_t, index, cond, dropout_keys)

    return Network(init, apply, lambda image_shape: _remarks(module, image_shape))


def _remarks(module, image_shape):
    found, side = [], min(image_shape[:2])
    sizes = [side >> level for level in range(len(module.channel_mults))]
    without = [size for size in module.attention_resolutions if size not in sizes]
    if without:
        found.append(
            f"network.attention_resolutions {_listed(without)}: no level has that "
            f"size, there are {_listed(sizes)}"
        )
    if module.head_channels is not None and module.num_heads != 1:
        found.append(
            f"network.num_heads {module.num_heads} has no effect: head_channels "
            f"{module.head_channels} says how many there are"
        )
    return found + class_remarks(module)


def _listed(numbers):
    return ", ".join(map(str, numbers))


# Of a module and a shape this is traced once, by whatever programs it is called.
@functools.partial(jax.jit, static_argnums=(0, 2), inline=True)
def _init(module, key, image_shape):
    x, index = jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)
    label = index if module.num_classes else None
    return module.init(key, x, index, label)["params"]


# The settings are UNet's fields, less what Flax adds to them.
unet.__signature__ = inspect.signature(unet).replace(
    parameters=[
        parameter
        for name, parameter in inspect.signature(UNet).parameters.items()
        if name not in ("parent", "name")
    ]
)


def _check_image_shape(image_shape, levels):
    height, width, _ = image_shape
    for side in (height, width):
        if side % 2 ** (levels - 1):
            raise ValueError(
                f"an image of {height}x{width} cannot be halved {levels - 1} times, as "
                f"{levels} channel_mults ask: {side} is no multiple of "
                f"{2 ** (levels - 1)}; choose another image_size or fewer channel_mults"
            )
