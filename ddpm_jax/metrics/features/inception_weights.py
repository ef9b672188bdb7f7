"""The file of the Inception network's published weights, verified before it is read.

The file is a pickle, which only PyTorch reads. `convert_weights`, run once where it is
installed, writes a `.safetensors` file, which is read without.
"""

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
import requests
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from ddpm_jax import places
from ddpm_jax.files import atomic_write
from ddpm_jax.interop.tensors import read_tensors
from ddpm_jax.metrics.features import inception

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
# Seconds to connect, and between one piece and the next.
_PATIENCE = (5, 30)


def load_weights(path: str | os.PathLike | None = None) -> dict[str, np.ndarray]:
    """Reads the published weights, or their conversion if that lies next to them.

    Args:
      path: the published `.pth`, or a `.safetensors` of `convert_weights`; one of the
        same name with that ending is preferred, for it does not need PyTorch. None for
        those in `places.cache_dir()`, which the first time are converted from the file
        that is there or in the cache of PyTorch, or else is downloaded.

    Returns:
      Tensors in float32 by their published names, without num_batches_tracked.

    Raises:
      OSError: if there is no such file, it is another one, or damaged; if it cannot be
        downloaded or kept; or if PyTorch is needed and not installed.
    """
    path = _cached() if path is None else Path(path)
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
    with _writing(out) as partial:
        save_file(tensors, partial, metadata={SOURCE: SHA256})


def _cached():
    """The converted weights in the cache, which are made first if there are none."""
    names = [url.rpartition("/")[-1] for url in URLS]
    published = places.cache_dir() / names[0]
    converted = published.with_suffix(SUFFIX)
    if converted.is_file():
        return converted
    torch_home = os.environ.get("TORCH_HOME", places.cache_dir().parent / "torch")
    hub = Path(torch_home, "hub", "checkpoints").expanduser()
    copies = [folder / name for folder in (published.parent, hub) for name in names]
    there = (path for path in copies if path.is_file() and _sha256(path) == SHA256)
    try:
        convert_weights(next(there, None) or _download(published), converted)
    except OSError as error:
        if isinstance(error.__cause__, ImportError):
            raise OSError(f"{error}; once is enough, for {converted} stays") from error
        raise
    return converted


def _download(path):
    """Writes the published file, from the first of `URLS` that serves it."""
    failures = []
    for url in URLS:
        try:
            with _writing(path) as partial:
                _fetch(url, partial)
            return path
        except requests.RequestException as error:
            is_answer = isinstance(error, requests.HTTPError)
            failures.append(f"{url} ({error if is_answer else type(error).__name__})")
    raise OSError(
        "cannot download the weights of the Inception network from "
        f"{' or '.join(failures)}: download the file elsewhere and give its path as "
        "--inception FILE, or score with --metrics fd, the Frechet distance of the "
        "feature network trained in place, which needs no download"
    )


def _fetch(url, path):
    """Writes what the URL serves; RequestException unless it is the published file."""
    digest = hashlib.sha256()
    with (
        requests.get(url, stream=True, timeout=_PATIENCE) as response,
        path.open("wb") as file,
        tqdm(total=NUM_BYTES, unit="B", unit_scale=True, disable=None) as bar,
    ):
        if not response.ok:
            raise requests.HTTPError(f"status {response.status_code}")
        for piece in response.iter_content(1 << 20):
            file.write(piece)
            digest.update(piece)
            bar.update(len(piece))
            if file.tell() > NUM_BYTES:
                break
    if digest.hexdigest() != SHA256:
        raise requests.HTTPError("it serves another file")


@contextlib.contextmanager
def _writing(path):
    """Yields a name to write to, which becomes `path` unless something fails."""
    try:
        with atomic_write(path) as partial:
            yield partial
    except requests.RequestException:  # is an OSError, but not of writing
        raise
    except (OSError, SafetensorError) as error:
        raise OSError(f"cannot write {path} ({error})") from error


def _read_published(path):
    if not path.is_file():
        raise OSError(
            f"no file {path}: download {' or '.join(URLS)}, and give its path"
        )
    _verify(path)
    return _tensors(path)


def _verify(path):
    """Refuses a file that is not the published one, before anything unpickles it."""
    found = _sha256(path)
    if found != SHA256:
        size = path.stat().st_size
        raise OSError(
            f"{path} is not the published file, or was cut off: it has {size} bytes "
            f"and SHA-256 {found}, not {NUM_BYTES} bytes and {SHA256}"
        )


def _sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
