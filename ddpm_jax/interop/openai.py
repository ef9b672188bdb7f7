"""Checkpoints of OpenAI's improved-diffusion and guided-diffusion.

They are the models of Nichol & Dhariwal (2021) and Dhariwal & Nichol (2021). A file
holds neither its model's image size and heads nor its schedule, so the published files
are listed here.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.interop.layout import Layout, Tensors, few, multiples, shape_of

PARTS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
    "q": "qkv",
    "k": "qkv",
    "v": "qkv",
}
POINTWISE = {"shortcut": 2, **dict.fromkeys(("q", "k", "v", "proj_out"), 1)}
MODULES = {
    "conv_in": "input_blocks.0.0",
    "time_0": "time_embed.0",
    "time_1": "time_embed.2",
    "class_embedding": "label_emb",
    "mid_0_block": "middle_block.0",
    "mid_attn": "middle_block.1",
    "mid_1_block": "middle_block.2",
    "norm_out": "out.0",
    "conv_out": "out.2",
}
CLASSIFIER = "out.2.positional_embedding"
# The files of openai/consistency_models, which have the same names and shapes.
PRECONDITIONED = re.compile(r"(cd|ct|edm)_(imagenet64|bedroom256|cat256)(_\w+)?")


class Settings(NamedTuple):
    """What a file does not say of its model.

    Attributes:
      image_size: height and width of the images.
      num_heads: attention heads.
      head_channels: channels per attention head, instead of `num_heads`.
      schedule: "linear" or "cosine".
      num_steps: T, the number of noising steps.
      rescale: whether the network gets times as if there were 1000 (their
        rescale_timesteps).
      new_attention_order: whether queries, keys and values are thirds of their tensor,
        and not thirds of each head's part.
    """

    image_size: int
    num_heads: int = 1
    head_channels: int | None = None
    schedule: str = "linear"
    num_steps: int = 1000
    rescale: bool = False
    new_attention_order: bool = False


_IMPROVED = dict(num_heads=4, schedule="cosine", num_steps=4000)
_GUIDED_256 = Settings(256, head_channels=64)
# By the names of the files, without ".pt".
PUBLISHED = {
    "imagenet64_uncond_100M_1500K": Settings(64, **_IMPROVED, rescale=True),
    "imagenet64_uncond_vlb_100M_1500K": Settings(64, **_IMPROVED, rescale=True),
    "imagenet64_cond_270M_250K": Settings(64, **_IMPROVED),
    "cifar10_uncond_50M_500K": Settings(32, **_IMPROVED, rescale=True),
    "cifar10_uncond_vlb_50M_500K": Settings(32, **_IMPROVED, rescale=True),
    "lsun_uncond_100M_1200K_bs128": Settings(256),
    "lsun_uncond_100M_2400K_bs64": Settings(256),
    "64x64_diffusion": Settings(
        64, head_channels=64, schedule="cosine", new_attention_order=True
    ),
    "128x128_diffusion": Settings(128, num_heads=4),
    "256x256_diffusion": _GUIDED_256,
    "256x256_diffusion_uncond": _GUIDED_256,
    "lsun_bedroom": _GUIDED_256,
    "lsun_cat": _GUIDED_256,
    "lsun_horse": _GUIDED_256,
    "lsun_horse_nodropout": _GUIDED_256,
}


def refuse_others(name: str, tensors: Tensors) -> None:
    """Refuses what has the names of such a checkpoint, but is another model.

    Args:
      name: the file's, without its suffix.
      tensors: what it holds.

    Raises:
      OSError: that says what it is.
    """
    if PRECONDITIONED.fullmatch(name):
        raise OSError(
            "a consistency model or one of Karras et al. (2022), whose network is told "
            "noise levels and not times: only DDPM's can be imported"
        )
    _image_channels(tensors)


def averaged_beside(file: Path) -> list[str]:
    """Returns, in words, where the averages lie that training saved beside a file."""
    step = re.fullmatch(r"model(\d+)", file.stem)
    if not step:
        return []
    found = [p.name for p in sorted(file.parent.glob(f"ema_*_{step[1]}{file.suffix}"))]
    if not found:
        return []
    return [f"{file} holds raw weights; the averaged ones are in {few(found)}"]


def import_config(tensors: Tensors, settings: Settings) -> dict[str, Any]:
    """Returns the config of a checkpoint: its shapes and what they do not say.

    Dropout, which matters in training only, is left at 0.

    Raises:
      OSError: if it is a model of another kind, such as a classifier.
    """
    image_channels, learned_variance = _image_channels(tensors)
    steps = settings.num_steps
    schedule = dict(name=settings.schedule, num_steps=steps)
    if settings.schedule == "linear":  # their betas keep the noise at T the same
        schedule.update(beta_start=0.1 / steps, beta_end=20 / steps)
    side = settings.image_size
    variance = "learned_range" if learned_variance else "fixed_large"
    return dict(
        image_shape=(side, side, image_channels),
        schedule=schedule,
        network=_network(tensors, settings, learned_variance),
        loss=dict(name="hybrid" if learned_variance else "simple", predicts="eps"),
        denoiser=dict(clip=True),
        sampler=dict(name="ddpm", variance=variance),
        timesteps=dict(name="trailing", num_steps=steps),
    )


def make_layout(network: dict[str, Any], settings: Settings) -> Layout:
    """Returns how such a file names the parameters of a network."""
    modules = dict(MODULES)
    blocks, last = network["num_res_blocks"], len(network["channel_mults"]) - 1
    n = 1
    for i in range(last + 1):
        for j in range(blocks):
            modules[f"down_{i}_{j}_block"] = f"input_blocks.{n}.0"
            modules[f"down_{i}_{j}_attn"] = f"input_blocks.{n}.1"
            n += 1
        modules[f"down_{i}_downsample"] = f"input_blocks.{n}.0"
        modules[f"down_{i}_downsample.conv"] = f"input_blocks.{n}.0.op"
        n += 1
    n = 0
    sizes = [settings.image_size >> i for i in range(last + 1)]
    for i in reversed(range(last + 1)):
        for j in range(blocks + 1):
            modules[f"up_{i}_{j}_block"] = f"output_blocks.{n}.0"
            modules[f"up_{i}_{j}_attn"] = f"output_blocks.{n}.1"
            n += 1
        place = 2 if sizes[i] in network["attention_resolutions"] else 1
        modules[f"up_{i}_upsample"] = f"output_blocks.{n - 1}.{place}"

    def fused_rows(part, width):
        """The rows of one third; of each head's third in the older order."""
        if part not in ("q", "k", "v"):
            return None
        heads = settings.num_heads
        if settings.head_channels is not None:
            heads = max(1, width // settings.head_channels)
        if settings.new_attention_order:
            heads = 1
        rows = np.arange(3 * width).reshape(heads, 3, -1)
        return rows[:, "qkv".index(part)].reshape(-1)

    return Layout(modules, PARTS, POINTWISE, fused_rows)


def _image_channels(tensors):
    """Channels of the images, and whether there are as many for a variance."""
    if CLASSIFIER in tensors:
        raise OSError("a classifier of noisy images: only denoisers can be imported")
    inside = shape_of(tensors, "input_blocks.0.0.weight")[1]
    outside = shape_of(tensors, "out.2.weight")[0]
    if inside == 6 or outside not in (inside, 2 * inside):
        raise OSError(
            f"a model from {inside} to {outside} channels: those that enlarge images "
            "or are given others cannot be imported"
        )
    return inside, outside == 2 * inside


def _network(tensors, settings, learned_variance):
    channels = shape_of(tensors, "time_embed.0.weight")[1]
    first = shape_of(tensors, "input_blocks.0.0.weight")[0]
    if first != channels:
        raise OSError(
            f"a model whose first convolution has {first} features and not {channels}, "
            "as the 512x512 ones, is not supported"
        )
    levels, residual_resample = _levels(tensors)
    counts = {len(level) for level in levels}
    if len(counts) > 1:
        raise OSError("a model with other numbers of blocks at each level")
    side = settings.image_size
    block = f"output_blocks.{levels[0][0]}.0"
    features = shape_of(tensors, f"{block}.out_layers.3.weight")[0]
    widths = [
        shape_of(tensors, f"output_blocks.{level[0]}.0.out_layers.3.weight")[0]
        for level in levels
    ]
    return dict(
        name="unet",
        channels=channels,
        channel_mults=multiples(widths, channels),
        num_res_blocks=counts.pop() - 1,
        attention_resolutions=[
            side >> i
            for i, level in enumerate(levels)
            if f"output_blocks.{level[0]}.1.qkv.weight" in tensors
        ],
        num_heads=settings.num_heads,
        head_channels=settings.head_channels,
        scale_shift=shape_of(tensors, f"{block}.emb_layers.1.weight")[0] != features,
        residual_resample=residual_resample,
        num_classes=len(tensors.get("label_emb.weight", ())),
        learned_variance=learned_variance,
        norm_eps=1e-5,
        symmetric_padding=True,
        cos_first=True,
        frequency_shift=0,
        index_scale=1000 / settings.num_steps if settings.rescale else 1.0,
    )


def _levels(tensors):
    """The output blocks of each level, highest resolution first.

    Returns:
      their numbers, level by level; and whether residual blocks double the size.
    """
    shape_of(tensors, "output_blocks.0.0.in_layers.0.weight")
    levels, residual, n = [[]], False, 0
    while f"output_blocks.{n}.0.in_layers.0.weight" in tensors:
        levels[-1].append(n)
        after = [f"output_blocks.{n}.{k}" for k in (1, 2)]
        if any(f"{name}.in_layers.0.weight" in tensors for name in after):
            residual = True
            levels.append([])
        elif any(f"{name}.conv.weight" in tensors for name in after):
            levels.append([])
        n += 1
    return levels[::-1], residual
