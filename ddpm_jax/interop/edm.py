"""Weights of EDM's DDPM++ and NCSN++ (Karras et al. 2022): read and written.

NVIDIA's are for research that is not commercial (CC BY-NC-SA 4.0).
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.interop.layout import (
    Layout,
    Tensors,
    multiples,
    shape_of,
    write_tensors,
)
from ddpm_jax.interop.tensors import save

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
FILTER = "resample_filter"  # which is not trained
FILTERS = {"ddpmpp": [1, 1], "ncsnpp": [1, 3, 3, 1]}
FILTERED = re.compile(r"(\d+x\d+_(up|down)\.(conv0|skip)|_aux_residual)\.weight$")
TRAINED = {"name": "edm", "sigma_data": 0.5}  # as whatever reads such a file assumes
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


def is_theirs(config: dict[str, Any]) -> bool:
    """Returns whether the network of a config is one of EDM's."""
    return config["network"]["name"] in FILTERS


def export(config: dict[str, Any], params: Any, path: Path) -> None:
    """Writes the weights as a file that EDM's preconditioned networks load.

    Args:
      config: the config of the model.
      params: its parameters.
      path: the new `.safetensors` file.

    Raises:
      OSError: if it cannot be written, or would mean something else to who reads it.
    """
    network, (height, width, _) = config["network"], config["image_shape"]
    if not is_theirs(config):
        raise OSError(
            f"only {' and '.join(FILTERS)} can be written for EDM, not "
            f"{network['name']!r}"
        )
    convention = network.get("convention") or TRAINED
    if isinstance(convention, str):
        convention = {"name": convention}
    if {**TRAINED, **convention} != TRAINED or config["loss"]["predicts"] != "x_0":
        raise OSError(
            "EDM's networks are of network.convention edm with sigma_data 0.5 and of "
            "loss.predicts x_0, and such a file cannot say otherwise"
        )
    if height != width:
        raise OSError(f"EDM's networks are of square images, not {height}x{width}")
    taps = np.outer(FILTERS[network["name"]], FILTERS[network["name"]])
    taps = (taps / taps.sum())[None, None].astype(np.float32)
    tensors = write_tensors(params, make_layout(network, height))
    for name in [name for name in tensors if FILTERED.search(name)]:
        tensors[name.removesuffix("weight") + FILTER] = taps
    save({f"model.{name}": tensor for name, tensor in tensors.items()}, path)


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
