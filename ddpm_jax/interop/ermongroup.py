"""Checkpoints of github.com/ermongroup/ddim (Song et al. 2021).

They hold the models of Ho et al. (2020), converted, and those of Song et al. on CelebA.
"""

import re
from typing import Any

from ddpm_jax.interop.layout import Layout, Tensors, multiples, shape_of

PARTS = {"time_proj": "temb_proj", "shortcut": "nin_shortcut"}
POINTWISE = dict.fromkeys(("shortcut", "q", "k", "v", "proj_out"), 2)
MODULES = {
    "time_0": "temb.dense.0",
    "time_1": "temb.dense.1",
    "mid_0_block": "mid.block_1",
    "mid_attn": "mid.attn_1",
    "mid_1_block": "mid.block_2",
}
# Where all of these models have attention, so that the image's size can be told.
ATTENTION = 16


def import_config(tensors: Tensors) -> dict[str, Any]:
    """Returns the config of a checkpoint, read off its names and shapes.

    What these do not say is as in the authors' configs: β linear from 1e-4 to 0.02 in
    1000 steps, attention at 16x16, and the larger variance below 128 pixels. Dropout,
    which matters in training only, is left at 0.

    Raises:
      OSError: if it is another kind of model.
    """
    channels, image_channels = shape_of(tensors, "conv_in.weight")[:2]
    levels, num_res_blocks = _count(tensors)
    widths = [
        shape_of(tensors, f"down.{i}.block.0.conv1.weight")[0] for i in range(levels)
    ]
    attention = [i for i in range(levels) if f"down.{i}.attn.0.q.weight" in tensors]
    if len(attention) != 1:
        raise OSError(
            f"a model with attention at {len(attention)} levels: only those with "
            f"attention at one, {ATTENTION}x{ATTENTION}, say how large their images are"
        )
    side = ATTENTION << attention[0]
    variance = "fixed_large" if side < 128 else "fixed_small"
    return dict(
        image_shape=(side, side, image_channels),
        schedule=dict(name="linear", num_steps=1000, beta_start=1e-4, beta_end=2e-2),
        network=dict(
            name="unet",
            channels=channels,
            channel_mults=multiples(widths, channels),
            num_res_blocks=num_res_blocks,
            attention_resolutions=[ATTENTION],
        ),
        loss=dict(name="simple", predicts="eps"),
        denoiser=dict(clip=True),
        sampler=dict(name="ddpm", variance=variance),
        timesteps=dict(name="trailing", num_steps=1000),
    )


def make_layout(network: dict[str, Any]) -> Layout:
    """Returns how such a file names the parameters of a network."""
    modules = dict(MODULES)
    for i in range(len(network["channel_mults"])):
        modules[f"down_{i}_downsample"] = f"down.{i}.downsample"
        modules[f"up_{i}_upsample"] = f"up.{i}.upsample"
        for j in range(network["num_res_blocks"] + 1):
            for way in ("down", "up"):
                modules[f"{way}_{i}_{j}_block"] = f"{way}.{i}.block.{j}"
                modules[f"{way}_{i}_{j}_attn"] = f"{way}.{i}.attn.{j}"
    return Layout(modules, PARTS, POINTWISE)


def _count(tensors):
    """Levels, and residual blocks of the first."""
    found = [re.match(r"down\.(\d+)\.block\.(\d+)\.conv1\.weight", n) for n in tensors]
    places = [(int(match[1]), int(match[2])) for match in found if match]
    if not places:
        raise OSError("missing: down.0.block.0.conv1.weight")
    blocks = 1 + max(j for i, j in places if i == min(places)[0])
    return 1 + max(i for i, _ in places), blocks
