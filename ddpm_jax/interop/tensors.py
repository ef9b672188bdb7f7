"""Files of named tensors, read into NumPy. PyTorch is known here and nowhere else."""

import os
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from ddpm_jax.errors import reason
from ddpm_jax.files import of_machine

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
HALF = (np.float16, ml_dtypes.bfloat16)


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a file of named tensors; half precision becomes float32.

    Args:
      path: a `.safetensors` file, or one that PyTorch wrote: a state dict, or the list
        that the runner of Song et al. (2021) saves, of which the averaged weights are
        taken. "module." before names, as data parallel models have it, is dropped.

    Raises:
      OSError: if it cannot be read or holds no tensors, or if PyTorch is needed and not
        installed.
    """
    path = Path(path)
    if not path.is_file():
        raise OSError(f"no file {path}")
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif path.suffix in PICKLES:
        tensors = _read_pickle(path)
    else:
        known = ", ".join((".safetensors", *PICKLES))
        raise OSError(f"{path}: not a file of weights, whose names end in {known}")
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _read_safetensors(path):
    try:
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error
    if not tensors:
        raise OSError(f"{path} holds no tensors")
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
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickles fail in every way
        if of_machine(error):
            raise
        raise _unreadable(path, error) from error

    def is_state_dict(value):
        return (
            isinstance(value, dict)
            and len(value) > 0
            and all(isinstance(each, torch.Tensor) for each in value.values())
        )

    # The runner of Song et al. saves [model, optimizer, epoch, step, average].
    entries = content if isinstance(content, (list, tuple)) else [content]
    found = [entry for entry in entries if is_state_dict(entry)]
    if not found:
        raise OSError(f"{path} holds no state dict, a dictionary of tensors by name")
    half = (torch.float16, torch.bfloat16)
    return {
        name: (value.float() if value.dtype in half else value).detach().numpy()
        for name, value in found[-1].items()
    }


def _widened(array):
    return array.astype(np.float32) if array.dtype in HALF else array


def _unreadable(path, error):
    return OSError(f"cannot read {path}, it may be damaged ({reason(error)})")
