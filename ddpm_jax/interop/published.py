"""The way in: opens a published checkpoint, whatever wrote it."""

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ddpm_jax.interop import (
    diffusers,
    edm,
    ermongroup,
    folders,
    hub,
    jit,
    openai,
    own,
    uvit,
)
from ddpm_jax.interop.contents import (
    DIFFUSERS,
    EDM,
    ERMONGROUP,
    JIT,
    OPENAI,
    UVIT,
    only_model,
    what_else,
)
from ddpm_jax.interop.layout import Layout, Tensors, read_params
from ddpm_jax.interop.names import make_layout, with_new_names
from ddpm_jax.interop.tensors import read_tensors

PART = re.compile(r"-\d+-of-\d+$")  # of a model in several files


class Published(NamedTuple):
    """A published model.

    Attributes:
      config: the sections of a config that describe it: image_shape, schedule, network,
        loss, denoiser, sampler, timesteps.
      read: (params, which may be abstract) -> its parameters, in that shape; OSError
        where they are of another network.
      notes: what was chosen or assumed, in words.
    """

    config: dict[str, Any]
    read: Callable[[Any], Any]
    notes: list[str]


def open_published(
    path: str | os.PathLike,
    settings: openai.Settings | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> Published:
    """Opens a folder of diffusers or of ours, a checkpoint file, or a name on the hub.

    Args:
      path: the folder or file; or, if there is none, a name such as
        "google/ddpm-cifar10-32", which is downloaded.
      settings: what a file of OpenAI's code does not say; known for published files.
      image_shape: (height, width, channels), for a folder that does not say.

    Raises:
      OSError: if it cannot be read, or is of a model that no network here can be.
    """
    source = Path(path)
    if not str(path) or not source.exists():
        source = hub.download(str(path))
    if own.is_own(source / own.FILE):
        source /= own.FILE
    if source.is_dir():
        _refuse_settings(source, settings)
        config, notes = diffusers.import_config(source, image_shape)
        file, chosen = folders.weights_file(folders.model_folder(source)[0])
        tensors, found = only_model(file, read_tensors(file))
        return _of_diffusers(file, config, tensors, [*notes, *chosen, *found])
    if own.is_own(source):
        _refuse_settings(source, settings)
        config = own.read_config(source)
        return Published(config, functools.partial(own.read_params, source), [])
    if PART.search(source.stem):
        raise OSError(f"{source} is one of several parts: give the folder")
    tensors, notes = only_model(source, read_tensors(source))
    try:
        return _open_file(source, tensors, settings, image_shape, notes)
    except OSError as error:
        raise OSError(f"{source}: {error}") from error


def _of_diffusers(file, config, tensors, notes) -> Published:
    layout = make_layout(config["network"])
    return _pretrained(file, config, layout, with_new_names(tensors), notes)


def _pretrained(
    file: Path, config, layout: Layout, tensors: Tensors, notes: list[str]
) -> Published:
    def read(like):
        try:
            return read_params(tensors, layout, like)
        except (OSError, ValueError) as error:
            raise OSError(f"{file} does not fit the model; {error}") from error

    return Published(config, read, notes)


def _open_file(file, tensors, settings, image_shape, notes):
    """Opens a checkpoint, whose kind its names tell."""
    if ERMONGROUP in tensors:
        _refuse_settings(file, settings)
        config = ermongroup.import_config(tensors)
        layout = ermongroup.make_layout(config["network"])
        return _pretrained(file, config, layout, tensors, notes)
    if OPENAI in tensors:
        openai.refuse_others(file.stem, tensors)
        settings = settings or openai.PUBLISHED.get(file.stem)
        if settings is None:
            raise OSError(
                "not one of OpenAI's published files, and such a file does not say its "
                "image size, heads and schedule: give settings, as in --openai "
                "image_size=64,num_heads=4,schedule=cosine,num_steps=4000 (to train "
                "on, of ddpm_jax.convert, whose run can be begun from)"
            )
        config = openai.import_config(tensors, settings)
        layout = openai.make_layout(config["network"], settings)
        notes = [*notes, *openai.averaged_beside(file)]
        return _pretrained(file, config, layout, tensors, notes)
    if EDM in tensors:
        _refuse_settings(file, settings)
        tensors = edm.without_filters(tensors)
        config = edm.import_config(tensors)
        layout = edm.make_layout(config["network"], config["image_shape"][0])
        return _pretrained(file, config, layout, tensors, [*notes, edm.NOTE])
    for key, module in ((JIT, jit), (UVIT, uvit)):
        if key in tensors:
            _refuse_settings(file, settings)
            config = module.import_config(tensors)
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            layout = module.make_layout(config["network"]["depth"], shapes)
            parameters = {k: v for k, v in tensors.items() if k not in module.FIXED}
            return _pretrained(file, config, layout, parameters, notes)
    if DIFFUSERS not in tensors:
        raise OSError(what_else(tensors))
    _refuse_settings(file, settings)
    if not (file.parent / folders.CONFIG).is_file():
        raise OSError(
            "a file of diffusers, which needs its config.json: give the folder"
        )
    config, said = diffusers.import_config(file.parent, image_shape)
    return _of_diffusers(file, config, tensors, [*said, *notes])


def _refuse_settings(source, settings):
    if settings is not None:
        raise OSError(f"{source}: settings (--openai) are for files of OpenAI's code")
