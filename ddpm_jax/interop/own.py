"""A model of this project as one file: tensors by our names, and its config.

A parameter is named by where it is among the network's, as in "mid_attn.q.kernel", and
shaped as here. The config lies in the file's header, as JSON.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from safetensors import SafetensorError, safe_open

from ddpm_jax.interop.layout import few
from ddpm_jax.interop.tensors import read_tensors, save

HEADER = "ddpm_jax"
FILE = "model.safetensors"  # its name in a folder that is to be shared


def export(config: dict[str, Any], params: Any, path: Path) -> None:
    """Writes a model as a file that `ddpm_jax.load` reads.

    Args:
      config: the sections that describe it.
      params: the parameters of its network.
      path: the new `.safetensors` file.

    Raises:
      OSError: if it cannot be written, or the config names code, which no file of
        tensors holds.
    """
    if names := _code(config):
        raise OSError(f"{names[0]} is code, which such a file does not hold: keep it")
    tensors = named(jax.device_get(params))
    save(tensors, path, {HEADER: json.dumps(config)})


def named(params: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their names in such a file."""
    return {_name(where): leaf for where, leaf in jax.tree.leaves_with_path(params)}


def unnamed(leaves: Mapping[str, Any], like: Any) -> Any:
    """Returns leaves in a tree as another, which they were `named` of."""
    return jax.tree.map_with_path(lambda where, _: leaves[_name(where)], like)


def is_own(path: Path) -> bool:
    """Whether a file is such a one."""
    return HEADER in _header(path)


def read_config(path: Path) -> dict[str, Any]:
    """Reads the config of such a file.

    Raises:
      OSError: if it is damaged, or names code, which is not run for a file's sake.
    """
    try:
        config = json.loads(_header(path)[HEADER])
        image_shape = config["image_shape"]
        config["network"]["name"]
    except (ValueError, LookupError, TypeError) as error:
        raise OSError(f"{path}: its header is damaged ({error})") from error
    if names := _code(config):
        raise OSError(f"{path} asks for code, {names[0]}, which is not run")
    return {**config, "image_shape": tuple(image_shape)}


def read_params(path: Path, like: Any) -> Any:
    """Reads the parameters of such a file.

    Args:
      path: the file.
      like: a tree of their shapes and types, which may be abstract.

    Raises:
      OSError: if it cannot be read, or one is missing, left over or misshapen.
    """
    tensors, wanted = read_tensors(path), named(like)
    common = wanted.keys() & tensors.keys()
    for what, names in (
        ("no", wanted.keys() - tensors.keys()),
        ("also", tensors.keys() - wanted.keys()),
        (
            "another shape of",
            {n for n in common if tensors[n].shape != wanted[n].shape},
        ),
    ):
        if names:
            raise OSError(
                f"{path} does not fit its config: it holds {what} {few(sorted(names))}"
            )
    typed = {name: tensors[name].astype(leaf.dtype) for name, leaf in wanted.items()}
    return unnamed(typed, like)


def _name(where):
    return jax.tree_util.keystr(where, simple=True, separator=".")


def _header(path):
    try:
        with safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def _code(value, where="config"):
    """What in a config names a function of a file or package."""
    if isinstance(value, str):
        return [f"{where}={value}"] if ":" in value else []
    items = value.items() if isinstance(value, dict) else ()
    return [found for key, each in items for found in _code(each, f"{where}.{key}")]
