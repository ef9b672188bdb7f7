"""The way in: opens a published checkpoint, whatever wrote it."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_jax.errors import reason
from ddpm_jax.interop import diffusers, ermongroup, openai, unet2d
from ddpm_jax.interop.layout import Layout, Tensors, make_entries, read_params
from ddpm_jax.interop.tensors import read_tensors

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ["*.json", "*.safetensors", "*.bin"]


class Pretrained(NamedTuple):
    """A published model.

    Attributes:
      config: the sections of a config that describe it: image_shape, schedule, network,
        loss, denoiser, sampler, timesteps.
      read: (params, which may be abstract) -> its parameters, in that shape; OSError
        where they are of another network.
    """

    config: dict[str, Any]
    read: Callable[[Any], Any]


def open_pretrained(
    path: str | os.PathLike,
    settings: openai.Settings | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> Pretrained:
    """Opens a folder of diffusers, a checkpoint file, or a name on the hub.

    Args:
      path: the folder or file; or, if there is none, a name such as
        "google/ddpm-cifar10-32", which is downloaded.
      settings: what a file of OpenAI's code does not say; known for published files.
      image_shape: (height, width, channels), for a folder that does not say.

    Raises:
      OSError: if it cannot be read, or is of a model that our U-Net cannot be.
    """
    source = Path(path)
    if not str(path) or not source.exists():
        source = _download(str(path))
    if source.is_dir():
        _refuse_settings(source, settings)
        config = diffusers.import_config(source, image_shape)
        file = diffusers.weights_file(source)
        tensors = diffusers.with_new_names(read_tensors(file))
        return _pretrained(file, config, unet2d.make_layout(config["network"]), tensors)
    tensors = read_tensors(source)
    try:
        config, layout = _open_file(source, tensors, settings)
    except OSError as error:
        raise OSError(f"{source}: {error}") from error
    return _pretrained(source, config, layout, tensors)


def _pretrained(file: Path, config, layout: Layout, tensors: Tensors) -> Pretrained:
    def read(like):
        try:
            return read_params(tensors, make_entries(layout, like), like)
        except (OSError, ValueError) as error:
            raise OSError(f"{file} does not fit the model; {error}") from error

    return Pretrained(config, read)


def _open_file(file, tensors, settings):
    """The config and the layout of a checkpoint, whose kind its names tell."""
    if "temb.dense.0.weight" in tensors:
        _refuse_settings(file, settings)
        config = ermongroup.import_config(tensors)
        return config, ermongroup.make_layout(config["network"])
    if "input_blocks.0.0.weight" in tensors:
        settings = settings or openai.PUBLISHED.get(file.stem)
        if settings is None:
            raise OSError(
                "not one of OpenAI's published files, and such a file does not say its "
                "image size, heads and schedule: give settings, as in --openai "
                "image_size=64,num_heads=4,schedule=cosine,num_steps=4000"
            )
        config = openai.import_config(tensors, settings)
        return config, openai.make_layout(config["network"], settings)
    if "time_embedding.linear_1.weight" in tensors:
        raise OSError(
            "a file of diffusers, which needs its config.json: give the folder"
        )
    raise OSError("not the weights of a U-Net of diffusers, OpenAI or ermongroup/ddim")


def _refuse_settings(source, settings):
    if settings is not None:
        raise OSError(f"{source}: settings (--openai) are for files of OpenAI's code")


def _download(name):
    if not HUB_NAME.fullmatch(name):
        raise OSError(f"no file or folder {name}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise OSError(
            f"no folder {name}; to download it, pip install huggingface_hub (needs a "
            "network), or give the folder of a copy"
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # no network, no such name, no rights, a full disk
        raise OSError(
            f"no folder {name}, and it cannot be downloaded ({reason(error)}); give "
            "the folder of a copy"
        ) from error
