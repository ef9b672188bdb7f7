"""Weights of NVIDIA's EDM (Karras et al. 2022): their DDPM++ and NCSN++.

They are for research that is not commercial (CC BY-NC-SA 4.0), and published as pickles
of whole programs, which are not run here: what is read is a file of their tensors.
"""

import re
from typing import Any

import numpy as np

from ddpm_jax.interop.layout import Layout, Tensors, multiples, shape_of

PARTS = {
    "norm1": "norm0",
    "conv1": "conv0",
    "level_proj": "affine",
    "norm2": "norm1",
    "conv2": "conv1",
    "shortcut": "skip",
    "norm3": "norm2",
    "proj_out": "proj",
    **dict.fromkeys("qkv", "qkv"),
}
POINTWISE = dict.fromkeys(("shortcut", "proj_out", *"qkv"), 2)
MODULES = {
    "level_0": "map_layer0",
    "level_1": "map_layer1",
    "class_proj": "map_label",
    "augmentation_proj": "map_augment",
}
NAMES = {"frequencies": "map_noise.freqs"}
ADM = "out_conv.weight"  # of their ImageNet models, which are other networks
FILTER = "resample_filter"  # which is [1, 1] or [1, 3, 3, 1], and not trained
NOTE = (
    "if these are NVIDIA's weights, they are licensed CC BY-NC-SA 4.0: not for "
    "commercial use, and what is made of them under the same licence"
)


def without_filters(tensors: Tensors) -> Tensors:
    """Returns the tensors that are parameters."""
    return {k: v for k, v in tensors.items() if not k.endswith(f".{FILTER}")}


def import_config(tensors: Tensors) -> dict[str, Any]:
    """Returns the config of a checkpoint, read off its names and shapes.

    What these do not say is as the authors sample: 18 steps of Heun from sigma 80 down
    to 0.002, with rho 7. Dropout, which matters in training only, is left at 0.

    Raises:
      OSError: if it is another kind of model.
    """
    if ADM in tensors:
        raise OSError(
            "EDM's models of ImageNet are not supported, only DDPM++ and NCSN++"
        )
    found = [re.match(r"enc\.(\d+)x\d+_block(\d+)\.conv0\.weight", n) for n in tensors]
    places = [(int(match[1]), int(match[2])) for match in found if match]
    if not places:
        raise OSError("missing: enc.32x32_block0.conv0.weight")
    sizes = sorted({size for size, _ in places}, reverse=True)
    channels, image_channels = shape_of(
        tensors, f"enc.{sizes[0]}x{sizes[0]}_conv.weight"
    )[:2]
    block = "enc.{0}x{0}_block0."
    widths = [shape_of(tensors, block.format(s) + "conv0.weight")[0] for s in sizes]
    network = dict(
        name="ncsnpp" if NAMES["frequencies"] in tensors else "ddpmpp",
        channels=channels,
        channel_mults=multiples(widths, channels),
        num_res_blocks=1 + max(j for size, j in places if size == sizes[0]),
        attention_resolutions=[
            size for size in sizes if block.format(size) + "qkv.weight" in tensors
        ],
        dropout=0.0,
    )
    for key, name in (("num_classes", "map_label"), ("augmentation", "map_augment")):
        if f"{name}.weight" in tensors:
            network[key] = tensors[f"{name}.weight"].shape[1]
    return dict(
        image_shape=(sizes[0], sizes[0], image_channels),
        schedule=dict(name="log_snr_linear", num_steps=10_000),
        network=network,
        loss=dict(name="simple", predicts="x_0", density="edm", weighting="edm"),
        denoiser=dict(clip=False),
        sampler=dict(name="heun"),
        timesteps=dict(name="karras", num_steps=18),
    )


def make_layout(network: dict[str, Any], size: int) -> Layout:
    """Returns how such a file names the parameters of a network.

    Args:
      network: the section of the config.
      size: of the images, which is in the names.
    """
    mults, blocks = network["channel_mults"], network["num_res_blocks"]
    modules = dict(MODULES)

    def place(way, depth, name):
        side = size >> depth
        return f"{way}.{side}x{side}_{name}"

    modules["conv_in"] = place("enc", 0, "conv")
    modules["norm_out"] = place("dec", 0, "aux_norm")
    modules["conv_out"] = place("dec", 0, "aux_conv")
    for i in (0, 1):
        modules[f"mid_{i}"] = place("dec", len(mults) - 1, f"in{i}")
    for depth in range(len(mults)):
        modules[f"down_{depth}_halve"] = place("enc", depth, "down")
        modules[f"down_{depth}_image"] = place("enc", depth, "aux_residual")
        modules[f"up_{depth}_double"] = place("dec", depth, "up")
        for j in range(blocks + 1):
            modules[f"down_{depth}_{j}"] = place("enc", depth, f"block{j}")
            modules[f"up_{depth}_{j}"] = place("dec", depth, f"block{j}")
    return Layout(modules, PARTS, POINTWISE, _fused_rows, NAMES)


def _fused_rows(part: str, width: int) -> np.ndarray | None:
    """Queries, keys and values take turns as rows, with a single head."""
    return np.arange("qkv".index(part), 3 * width, 3) if part in {*"qkv"} else None
