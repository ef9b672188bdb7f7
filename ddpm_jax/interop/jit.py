"""Weights of "Just image Transformers" (Li & He 2025), as their code names them.

Its checkpoints hold the weights and two averages, of which the first, of decay 0.9999,
is the one that it samples with.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.interop.layout import (
    Layout,
    Tensors,
    reshaped,
    shape_of,
    write_tensors,
)
from ddpm_jax.interop.tensors import save
from ddpm_jax.networks.tokens import sin_cos_positions

PARTS = {
    "norm_1": "norm1",
    "norm_2": "norm2",
    "norm_q": "attn.q_norm",
    "norm_k": "attn.k_norm",
    "qkv": "attn.qkv",
    "proj": "attn.proj",
    "mlp_in": "mlp.w12",
    "mlp_out": "mlp.w3",
    "modulation": "adaLN_modulation.1",
}
MODULES = {
    "patch_in": "x_embedder.proj1",
    "patch_out": "x_embedder.proj2",
    "time_0": "t_embedder.mlp.0",
    "time_1": "t_embedder.mlp.2",
    "class_embedding": "y_embedder.embedding_table",
    "norm_out": "final_layer.norm_final",
    "modulation": "final_layer.adaLN_modulation.1",
    "patch": "final_layer.linear",
}
POINTWISE = {"patch_out": 2}
NAMES = {"class_positions": "in_context_posemb"}
STACKS = ("blocks",)
POSITIONS = "pos_embed"  # fixed ones, which are made here
PATCH = "x_embedder.proj1.weight"
FIXED = (POSITIONS,)  # no parameters
RESHAPED = {"patch_in.kernel": PATCH, **NAMES}  # what has other axes there


def import_config(tensors: Tensors) -> dict[str, Any]:
    """Returns the config of a checkpoint, read off its names and shapes.

    What these do not say is as its authors have it: tokens of the class join after a
    third of the blocks, and 50 steps of Heun's method in flow time, with their t_eps.
    Dropout, which matters in training only, is left at 0.

    Raises:
      OSError: if it is another kind of model.
    """
    bottleneck, image_channels, patch_size, _ = shape_of(tensors, PATCH)
    _, num_tokens, channels = shape_of(tensors, POSITIONS)
    side = round(num_tokens**0.5) * patch_size
    if side > 256:
        raise OSError(
            f"a model of {side}x{side} images, whose noise is scaled by {side // 256}: "
            "only those up to 256x256 can be imported"
        )
    numbers = [re.match(r"blocks\.(\d+)\.", name) for name in tensors]
    depth = 1 + max((int(found[1]) for found in numbers if found), default=-1)
    rows = shape_of(tensors, "y_embedder.embedding_table.weight")[0]
    class_tokens = NAMES["class_positions"]
    network = dict(
        name="jit",
        patch_size=patch_size,
        depth=depth,
        channels=channels,
        num_heads=channels // shape_of(tensors, "blocks.0.attn.q_norm.weight")[0],
        bottleneck=bottleneck,
        class_tokens=tensors[class_tokens].shape[1] if class_tokens in tensors else 0,
        class_tokens_from=depth // 3,
        num_classes=rows - 1,
        label_dropout=0.1,
    )
    weighting = dict(name="flow", largest=400.0)
    return dict(
        image_shape=(side, side, image_channels),
        schedule=dict(name="flow", num_steps=1000),
        network=network,
        loss=dict(name="simple", predicts="x_0", density="jit", weighting=weighting),
        denoiser=dict(clip=False),
        sampler=dict(name="heun_flow", t_eps=0.05),
        timesteps=dict(name="flow", num_steps=50),
    )


def is_theirs(config: dict[str, Any]) -> bool:
    """Returns whether the network of a config is JiT."""
    return config["network"]["name"] == "jit"


def export(config: dict[str, Any], params: Any, path: Path) -> None:
    """Writes the weights as a file that JiT's code loads.

    Args:
      config: the config of the model.
      params: its parameters.
      path: the new `.safetensors` file.

    Raises:
      OSError: if it cannot be written, or would mean something else to who reads it.
    """
    network, (height, width, _) = config["network"], config["image_shape"]
    if not is_theirs(config) or "class_positions" not in params:
        raise OSError("only a jit with tokens of classes can be written for JiT's code")
    if network.get("convention") not in (None, "flow", {"name": "flow"}):
        raise OSError("JiT's networks are of network.convention flow")
    if config["loss"]["predicts"] != "x_0" or height != width:
        raise OSError("JiT's networks predict x_0 of square images")
    size, channels = network.get("patch_size", 16), params["class_positions"].shape[1]
    depth = len(params["blocks"]["proj"]["bias"])
    layout = make_layout(depth, reshaped(params, RESHAPED, size))
    tensors = write_tensors(params, layout)
    places = sin_cos_positions(height // size, width // size, channels)
    tensors[POSITIONS] = places[None].astype(np.float32)
    save({f"net.{name}": tensor for name, tensor in tensors.items()}, path)


def make_layout(depth: int, shapes: dict[str, tuple[int, ...]]) -> Layout:
    """Returns how such a file names the parameters of a network.

    Args:
      depth: blocks.
      shapes: of its tensors, of which those with other axes than ours are taken.
    """
    modules = MODULES | {f"blocks_{i}": f"blocks.{i}" for i in range(depth)}
    others = {ours: shapes[name] for ours, name in RESHAPED.items() if name in shapes}
    layout = Layout(modules, PARTS, POINTWISE, names=NAMES, stacks=STACKS)
    return layout._replace(shapes=others)
