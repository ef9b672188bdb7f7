"""Weights of U-ViT (Bao et al. 2023) for pixels, as their code names them."""

import re
from pathlib import Path
from typing import Any

from ddpm_jax.interop.layout import (
    Layout,
    Tensors,
    reshaped,
    shape_of,
    write_tensors,
)
from ddpm_jax.interop.tensors import save

PARTS = {
    "norm_1": "norm1",
    "norm_2": "norm2",
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
    "skip": "skip_linear",
}
MODULES = {
    "patch_in": "patch_embed.proj",
    "time_0": "time_embed.0",
    "time_1": "time_embed.2",
    "class_embedding": "label_emb",
    "middle_0": "mid_block",
    "norm_out": "norm",
    "patch_out": "decoder_pred",
    "conv_out": "final_layer",
}
STACKS = ("down", "middle", "up")
NAMES = {"positions": "pos_embed"}
PATCH = "patch_embed.proj.weight"
FIXED = ()
RESHAPED = {"patch_in.kernel": PATCH, **NAMES}  # what has other axes there


def import_config(tensors: Tensors) -> dict[str, Any]:
    """Returns the config of a checkpoint, read off its names and shapes.

    What these do not say is as of the authors' models of pixels: heads of 64 features,
    ε predicted on a linear schedule, which in a thousand steps is their continuous one
    nearly, and DDPM. A class more than a data set has is the null class.

    Raises:
      OSError: if it is another kind of model.
    """
    channels, image_channels, patch_size, _ = shape_of(tensors, PATCH)
    rows = tensors["label_emb.weight"].shape[0] if "label_emb.weight" in tensors else 0
    num_patches = shape_of(tensors, NAMES["positions"])[1] - (2 if rows else 1)
    side = round(num_patches**0.5) * patch_size
    found = [re.match(r"in_blocks\.(\d+)\.", name) for name in tensors]
    network = dict(
        name="uvit",
        patch_size=patch_size,
        depth=2 * (1 + max(int(match[1]) for match in found if match)),
        channels=channels,
        num_heads=max(channels // 64, 1),
        time_layers="time_embed.0.weight" in tensors,
    )
    if rows:
        null = rows % 10 == 1  # 1001 classes of ImageNet
        network |= dict(num_classes=rows - null, label_dropout=0.1 * null)
    return dict(
        image_shape=(side, side, image_channels),
        schedule=dict(name="linear", num_steps=1000),
        network=network,
        loss=dict(name="simple", predicts="eps"),
        denoiser=dict(clip=True),
        sampler=dict(name="ddpm", variance="fixed_large"),
        timesteps=dict(name="trailing", num_steps=1000),
    )


def is_theirs(config: dict[str, Any]) -> bool:
    """Returns whether the network of a config is U-ViT."""
    return config["network"]["name"] == "uvit"


def export(config: dict[str, Any], params: Any, path: Path) -> None:
    """Writes the weights as a file that U-ViT's code loads.

    Args:
      config: the config of the model.
      params: its parameters.
      path: the new `.safetensors` file.

    Raises:
      OSError: if it cannot be written, or is of another network.
    """
    if not is_theirs(config):
        raise OSError("only a uvit can be written for U-ViT's code")
    shapes = reshaped(params, RESHAPED, config["network"].get("patch_size", 2))
    layout = make_layout(2 * len(params["up"]["proj"]["bias"]), shapes)
    save(write_tensors(params, layout), path)


def make_layout(depth: int, shapes: dict[str, tuple[int, ...]]) -> Layout:
    """Returns how such a file names the parameters of a network.

    Args:
      depth: blocks beside the one in the middle.
      shapes: of its tensors, of which those with other axes than ours are taken.
    """
    modules = dict(MODULES)
    for i in range(depth // 2):
        modules |= {f"down_{i}": f"in_blocks.{i}", f"up_{i}": f"out_blocks.{i}"}
    others = {ours: shapes[name] for ours, name in RESHAPED.items() if name in shapes}
    return Layout(modules, PARTS, {}, names=NAMES, stacks=STACKS, shapes=others)
