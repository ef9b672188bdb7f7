"""The file of the Inception network's published weights, verified before it is read.

The file is a pickle, which only PyTorch reads. `convert_weights`, run once where it is
installed, writes a `.safetensors` file, which is read without.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ddpm_jax.evaluation import inception
from ddpm_jax.interop.tensors import read_tensors

# The same file twice, whose name begins its SHA-256.
URLS = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
)
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
NUM_BYTES = 95_628_359
SOURCE = "source_sha256"  # in the metadata of converted files
SUFFIX = ".safetensors"


def load_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the published weights, or their conversion if that lies next to them.

    Args:
      path: the published `.pth`, or a `.safetensors` of `convert_weights`; one of the
        same name with that ending is preferred, for it does not need PyTorch.

    Returns:
      Tensors in float32 by their published names, without num_batches_tracked.

    Raises:
      OSError: if there is no such file, it is another one, or damaged; or if PyTorch is
        needed and not installed.
    """
    path = Path(path)
    converted = path.with_suffix(SUFFIX)
    if converted.is_file():
        return _read_converted(converted)
    return _read_published(path)


def convert_weights(path: str | os.PathLike, out: str | os.PathLike) -> None:
    """Writes the published weights as `.safetensors`, with the hash they came from.

    Raises:
      OSError: as `load_weights`, or if `out` has another ending or cannot be written.
    """
    out = Path(out)
    if out.suffix != SUFFIX:
        raise OSError(f"{out}: the name of converted weights must end in {SUFFIX}")
    tensors = _read_published(Path(path))
    partial = out.with_name(f".{out.name}.partial")
    try:
        save_file(tensors, partial, metadata={SOURCE: SHA256})
        partial.replace(out)
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {out} ({error})") from error
    finally:
        partial.unlink(missing_ok=True)


def _read_published(path):
    if not path.is_file():
        raise OSError(
            f"no file {path}: download {' or '.join(URLS)}, and give its path"
        )
    _verify(path)
    return _tensors(path)


def _verify(path):
    """Refuses a file that is not the published one, before anything unpickles it."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        size = path.stat().st_size
        raise OSError(
            f"{path} is not the published file, or was cut off: it has {size} bytes "
            f"and SHA-256 {found}, not {NUM_BYTES} bytes and {SHA256}"
        )


def _read_converted(path):
    tensors = _tensors(path)
    with safe_open(path, framework="np") as file:
        source = (file.metadata() or {}).get(SOURCE)
    if source != SHA256:
        raise OSError(
            f"{path} is not a conversion of the published weights: its {SOURCE} is "
            f"{source}, not {SHA256}"
        )
    return tensors


def _tensors(path):
    tensors = {
        # safetensors writes memory as it lies, which must be in order.
        name: np.ascontiguousarray(value, np.float32)
        for name, value in read_tensors(path).items()
        if not name.endswith(".num_batches_tracked")
    }
    try:
        inception.check(tensors)
    except OSError as error:
        raise OSError(f"{path}: {error}") from error
    return tensors
