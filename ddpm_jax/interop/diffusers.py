"""Folders of diffusers, for models of images by UNet2DModel: read and written.

Neither direction needs diffusers or PyTorch, except that `.bin` files need PyTorch.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.files import stand_in
from ddpm_jax.interop import folders, tensors
from ddpm_jax.interop.folders import CONFIG, SCHEDULER
from ddpm_jax.interop.layout import write_tensors
from ddpm_jax.interop.names import make_layout
from ddpm_jax.interop.scheduler import export_scheduler, import_scheduler, passed_over
from ddpm_jax.interop.unet2d import export_network, import_network

VERSION = "0.42.1"  # of diffusers, whose format is written


def import_config(
    folder: str | os.PathLike, image_shape: tuple[int, int, int] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Returns the config of a pipeline's or a model's folder, and what to say of it.

    Without a scheduler's config in the folder or above it, a DDPMScheduler with the
    defaults of diffusers is assumed, and said.

    Args:
      folder: the folder.
      image_shape: (height, width, channels), for a model that does not say.

    Raises:
      OSError: if it is no such folder, or naming the key that our U-Net has nothing
        for.
    """
    folder = Path(folder)
    for place in (folder, folder.resolve().parent):  # it may be a pipeline's `unet/`
        _refuse_other_pipelines(place)
    model, notes = folders.model_folder(folder)
    image_shape, network = _reading(model / CONFIG, import_network, image_shape)
    learned_variance = network["learned_variance"]
    path = folders.scheduler_file(folder)
    if path is None:
        sections = import_scheduler(None, learned_variance)
        notes.append(
            f"no {SCHEDULER} in {folder} or above it: assumed are linear β, "
            f"{sections['schedule']['num_steps']} steps and a network that predicts "
            "eps; if it was trained otherwise, put the file there"
        )
    else:
        sections = _reading(path, import_scheduler, learned_variance)
        if not path.is_relative_to(folder):
            notes.append(f"its scheduler is {path}")
        notes += [f"{path}: {said}" for said in _reading(path, passed_over)]
    return dict(image_shape=image_shape, network=network) | sections, notes


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
    # Elsewhere first: a full disk must not leave half a folder.
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        for name, content in files.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            content = {**content, "_diffusers_version": VERSION}
            (part / name).write_text(json.dumps(content, indent=2) + "\n")
        tensors.write(
            write_tensors(params, make_layout(network)),
            part / "unet" / f"{folders.STEMS[0]}.safetensors",
        )
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {folder} ({error})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


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
        return function(_content(path), *args)
    except OSError as error:
        raise OSError(f"{path}: {error}") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise OSError(f"cannot read {path}, it may be damaged ({error})") from error


def _content(path):
    instead = stand_in(path)
    if instead:
        raise OSError(f"it {instead}")
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise OSError(f"it holds {repr(content)[:40]} in the place of keys and values")
    return content
