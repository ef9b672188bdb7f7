"""Files of named tensors, read into NumPy. PyTorch is known here and nowhere else."""

import argparse
import json
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ddpm_jax.errors import reason
from ddpm_jax.files import atomic_write, of_machine, stand_in
from ddpm_jax.interop.layout import few
from ddpm_jax.interop.pickles import read_modules

PICKLES = (".bin", ".pt", ".pth", ".ckpt")  # of tensors
MODULES = ".pkl"  # a pickle of whole modules, as of NVIDIA's EDM
INDEX = ".index."  # in the name of what lists the files of a model in parts
TEXT = {*range(32, 127), *b"\t\n\r"}
HALF = (np.float16, ml_dtypes.bfloat16)
# What torch.load says where a pickle asks for more than tensors and plain containers.
ASKS_FOR = re.compile(r"(?<=GLOBAL )\S+|TorchScript")


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a file of named tensors; half precision becomes float32.

    Args:
      path: a `.safetensors` file, one that PyTorch wrote, or the index of several. What
        lies deeper in a pickle has the names of what holds it before its own, as in
        "state_dict.conv.weight", or the number in a list, as in "4.conv.weight".
        "_orig_mod." in the names of compiled models is dropped.

    Raises:
      OSError: if it cannot be read or holds no tensors, or if PyTorch is needed and not
        installed.
    """
    path = Path(path)
    if not path.is_file():
        raise OSError(f"no file {path}")
    kinds = (".safetensors", *PICKLES, MODULES)
    if path.suffix not in kinds and INDEX not in path.name:
        raise OSError(
            f"{path}: not a file of weights, whose names end in {', '.join(kinds)}"
        )
    instead = stand_in(path)
    if instead:
        raise OSError(f"{path} {instead}")
    tensors = _read(path)
    if not tensors:
        raise OSError(f"{path} holds no tensors")
    return {name.replace("_orig_mod.", ""): value for name, value in tensors.items()}


def save(
    tensors: Mapping[str, np.ndarray],
    path: Path,
    header: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes a new `.safetensors` file, whole or not at all.

    Args:
      tensors: by name.
      path: of the file.
      header: what else it says of itself.

    Raises:
      OSError: if it cannot be written.
    """
    try:
        with atomic_write(path) as partial:
            write(tensors, partial, header)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {path} ({error})") from error


def write(tensors: Mapping, path: Path, header: Mapping = MappingProxyType({})) -> None:
    """Writes a new `.safetensors` file, for those to read who may read new files here.

    Its arguments are those of `save`.

    Raises:
      OSError, SafetensorError: if it cannot be written; a part of it may be left.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt", **header})
    path.chmod(mode)  # the package lets nobody else read


def _read(path):
    if INDEX in path.name:
        return _read_parts(path)
    with path.open("rb") as file:
        head = file.read(64)
    if all(byte in TEXT for byte in head):
        raise _unreadable(path, f"it is text, {head.decode()!r}")
    if head[:1] == pickle.PROTO and path.suffix == MODULES:
        return _read_modules(path)
    # By what it is: files are renamed.
    if head[8:9] == b"{" or path.suffix not in PICKLES and head[:2] != b"PK":
        return _read_safetensors(path)
    return _read_pickle(path)


def _read_parts(path):
    """The tensors of all files that an index names."""
    try:
        names = sorted({*json.loads(path.read_text())["weight_map"].values()})
        files = [path.with_name(name) for name in names]
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise _unreadable(path, reason(error)) from error
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise OSError(
            f"{path}: of its {len(files)} files there is no {few(missing)}: copy or "
            "download it again"
        )
    return {name: value for file in files for name, value in read_tensors(file).items()}


def _read_safetensors(path):
    try:
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (AttributeError, TypeError) as error:  # where NumPy has no such type
        raise OSError(
            f"{path} holds numbers of fewer bits than are read here ({reason(error)}): "
            "save it as float32"
        ) from error
    except (OSError, SafetensorError, ValueError) as error:
        raise _unreadable(path, reason(error)) from error
    return {name: _widened(value) for name, value in tensors.items()}


def _read_modules(path):
    try:
        tensors = read_modules(path)
    except Exception as error:  # pickles fail in every way
        if of_machine(error):
            raise
        raise _unreadable(path, reason(error)) from error
    return {name: _widened(value) for name, value in tensors.items()}


def _read_pickle(path):
    try:
        import torch
    except ImportError as error:
        raise OSError(
            f"reading {path} needs PyTorch: pip install torch, or convert it to "
            "safetensors where it is installed"
        ) from error
    try:
        inert = torch.serialization.safe_globals([argparse.Namespace])
        # Opened here, for PyTorch would judge a name by its suffix.
        with inert, path.open("rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # pickles fail in every way
        if of_machine(error):
            raise
        asked = ASKS_FOR.search(str(error))
        if asked:
            raise _not_run(path, asked[0]) from error
        raise _unreadable(path, reason(error)) from error
    half, tensors = (torch.float16, torch.bfloat16), {}
    for name, value in _named(content):
        if isinstance(value, torch.Tensor):
            try:
                whole = value.float() if value.dtype in half else value
                tensors[name] = whole.detach().numpy()
            except (
                TypeError,
                RuntimeError,
            ) as error:  # where NumPy has nothing like it
                kind = f"{value.dtype}, {value.layout}"
                raise OSError(
                    f"{path}: {name} is a tensor of {kind}, which is not read here: "
                    "save it as torch.float32, torch.strided"
                ) from error
    if not tensors:
        keys = few(map(str, content), 8) if isinstance(content, Mapping) else ""
        raise OSError(
            f"{path} holds no tensors; there is {keys or type(content).__name__}"
        )
    return tensors


def _named(content, name=""):
    """What lies in nested containers, with the names of all that hold it."""
    if isinstance(content, (Mapping, list, tuple)):
        items = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in items:
            yield from _named(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, content


def _not_run(path, what):
    weights = path.with_name("weights.pt")
    return OSError(
        f"{path} holds a Python object, {what}, and is not loaded, for that can run "
        "anything: where you trust it, save its weights alone, in Python torch.save("
        f'torch.load("{path}", weights_only=False)["model"], "{weights}"), with the '
        'key that they have in the place of ["model"], or .state_dict() for a whole '
        "module; and give that file"
    )


def _widened(array):
    return array.astype(np.float32) if array.dtype in HALF else array


def _unreadable(path, why):
    return OSError(f"cannot read {path}, it may be damaged ({why})")
