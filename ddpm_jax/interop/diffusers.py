"""Folders of diffusers, for models of images by UNet2DModel: read and written.

A pipeline's folder holds `unet/` and `scheduler/`; older ones hold all files at once.
Neither direction needs diffusers or PyTorch, except that `.bin` files need PyTorch.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import save_file

from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.interop.layout import Tensors, make_entries, write_tensors
from ddpm_jax.interop.scheduler import export_scheduler, import_scheduler
from ddpm_jax.interop.unet2d import export_network, import_network, make_layout

VERSION = "0.42.1"  # of diffusers, whose format is written
WEIGHTS = "diffusion_pytorch_model"
KINDS = (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin")
# Attention had other names before diffusers 0.17.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def import_config(
    folder: str | os.PathLike, image_shape: tuple[int, int, int] | None = None
) -> dict[str, Any]:
    """Returns the config of a pipeline's or a model's folder.

    A folder without a scheduler's config is taken to have a DDPMScheduler with the
    defaults of diffusers.

    Args:
      folder: the folder.
      image_shape: (height, width, channels), for a model that does not say.

    Raises:
      OSError: if it is no such folder, or naming the key that our U-Net has nothing
        for.
    """
    folder = Path(folder)
    _refuse_other_pipelines(folder)
    path = _model_folder(folder) / "config.json"
    image_shape, network = _reading(path, import_network, image_shape)
    sections = dict(image_shape=image_shape, network=network)
    learned_variance = network["learned_variance"]
    beside = folder.resolve().parent / "scheduler"  # of a pipeline's `unet/` alone
    for path in (folder / "scheduler", folder, beside):
        path = path / "scheduler_config.json"
        if path.is_file():
            return sections | _reading(path, import_scheduler, learned_variance)
    return sections | import_scheduler(None, learned_variance)


def weights_file(folder: str | os.PathLike) -> Path:
    """Returns the file of a folder's weights.

    Raises:
      OSError: if there is none.
    """
    folder = _model_folder(Path(folder))
    for kind in KINDS:
        if (folder / f"{WEIGHTS}{kind}").is_file():
            return folder / f"{WEIGHTS}{kind}"
    raise OSError(
        f"no weights in {folder}: {WEIGHTS}.safetensors or .bin is looked for"
    )


def with_new_names(tensors: Tensors) -> Tensors:
    """Returns tensors with the names of attention that diffusers has today."""

    def renamed(name):
        *module, part, last = name.split(".")
        if module[-2:-1] == ["attentions"]:
            part = OLD_NAMES.get(part, part)
        return ".".join((*module, part, last))

    return {
        renamed(name) if name.count(".") > 1 else name: value
        for name, value in tensors.items()
    }


def export(
    config: dict[str, Any],
    schedule: Schedule,
    params: Any,
    folder: str | os.PathLike,
) -> None:
    """Writes a folder that DDPMPipeline, and other pipelines of diffusers, load.

    A null class becomes one more class there.

    Args:
      config: the config of the model.
      schedule: its noise schedule, for those that diffusers has no name for.
      params: its parameters.
      folder: where to; it is made.

    Raises:
      OSError: if there is something already, it cannot be written, or diffusers has
        nothing for a part of the model.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OSError(f"{folder} exists and is not empty; choose another folder")
    network = config["network"]
    rows = params.get("class_embedding", {}).get("embedding", ())
    files = {
        "model_index.json": dict(
            _class_name="DDPMPipeline",
            scheduler=["diffusers", "DDPMScheduler"],
            unet=["diffusers", "UNet2DModel"],
        ),
        "unet/config.json": export_network(config["image_shape"], network, len(rows)),
        "scheduler/scheduler_config.json": export_scheduler(config, schedule),
    }
    entries = make_entries(make_layout(network), params)
    # Elsewhere first: a full disk must not leave half a folder.
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        for name, content in files.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            content = {**content, "_diffusers_version": VERSION}
            (part / name).write_text(json.dumps(content, indent=2) + "\n")
        save_file(
            write_tensors(params, entries),
            part / "unet" / f"{WEIGHTS}.safetensors",
            metadata={"format": "pt"},
        )
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {folder} ({error})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _model_folder(folder):
    for place in (folder / "unet", folder):
        if (place / "config.json").is_file():
            return place
    raise OSError(f"no unet/config.json and no config.json in {folder}")


def _refuse_other_pipelines(folder):
    """Those with an encoder are models of something else than images."""
    path = folder / "model_index.json"
    if not path.is_file():
        return
    parts = _reading(path, lambda index: {k for k in index if not k.startswith("_")})
    if not parts <= {"unet", "scheduler"}:
        raise OSError(
            f"{path} is of a pipeline of {', '.join(sorted(parts))}; only those of a "
            "unet and a scheduler can be imported"
        )


def _reading(path, function, *args):
    """Calls a function with a JSON file's content; errors begin with the path."""
    try:
        return function(json.loads(path.read_text()), *args)
    except OSError as error:
        raise OSError(f"{path}: {error}") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise OSError(f"cannot read {path}, it may be damaged ({error})") from error
