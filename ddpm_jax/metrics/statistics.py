"""What is kept of the features of a set of images, and its file.

The file is an `.npz` in which other tools find `mu` and `sigma` as they know them; its
`protocol` says what they are of, and `sha256` that nothing of it changed. Files of
pytorch-fid, of Karras et al. (2022) and of guided-diffusion are read too: they hold no
more than means and covariances, and do not say how these were made.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.files import atomic_write, read_arrays
from ddpm_jax.metrics import frechet
from ddpm_jax.metrics.features.base import Outputs
from ddpm_jax.metrics.frechet import Gaussian

ROWS = 1024
MOST_DIM = 16384  # features: a covariance takes 2 GB then


class Statistics(NamedTuple):
    """Features of a set of images, as scores need them.

    Attributes:
      protocol: what of and by which network; empty where a file does not say.
      num: how many images; None where a file does not say.
      gaussian: of the features, float64; None where they have too many dimensions.
      spatial: of the spatial features, where the network has them.
      features: float32 [kept, dim] of the images `kept`, or None.
      logits: float32 [num, classes] of all, where the network classifies, or None.
      kept: int [kept], the positions of those images.
    """

    protocol: dict[str, Any]
    num: int | None
    gaussian: Gaussian | None
    spatial: Gaussian | None = None
    features: np.ndarray | None = None
    logits: np.ndarray | None = None
    kept: np.ndarray | None = None


def collect(
    batches: Iterable[Outputs],
    num: int,
    protocol: dict[str, Any],
    num_kept: int | None = None,
) -> Statistics:
    """Collects features as they stream by.

    Args:
      batches: outputs of a feature network, of `num` images in all.
      num: how many.
      protocol: what they are of.
      num_kept: of how many images, evenly spread, to keep the features; None for all
        features and logits.

    Raises:
      ValueError: if features are not finite, or of fewer than two images.
    """
    keep_logits = num_kept is None
    num_kept = num if num_kept is None else min(num, num_kept)
    kept = np.arange(num_kept) * num // max(num_kept, 1)
    pooled, spatial, features, logits = None, None, [], []
    start = 0
    for outputs in _joined(batches):
        pooled = _update(pooled, outputs.features)
        spatial = _update(spatial, outputs.spatial)
        stop = start + len(outputs.features)
        here = kept[(kept >= start) & (kept < stop)] - start
        features.append(np.asarray(outputs.features[here], np.float32))
        if keep_logits and outputs.logits is not None:
            logits.append(np.asarray(outputs.logits, np.float32))
        start = stop
    return Statistics(
        protocol,
        num,
        None if pooled is None else frechet.gaussian(pooled),
        None if spatial is None else frechet.gaussian(spatial),
        np.concatenate(features) if num_kept else None,
        np.concatenate(logits) if logits else None,
        kept if num_kept else None,
    )


def _joined(batches):
    """Some batches at a time, for products of few rows are slow."""
    pending = []
    for outputs in batches:
        pending.append(outputs)
        if sum(len(each.features) for each in pending) >= ROWS:
            yield _concatenated(pending)
            pending = []
    if pending:
        yield _concatenated(pending)


def _concatenated(parts):
    return Outputs(
        *(
            None if part[0] is None else np.concatenate(part)
            for part in zip(*parts, strict=True)
        )
    )


def _update(gathered, features):
    """Adds features to moments, if there are any whose covariance fits in memory."""
    if features is None or features.shape[1] > MOST_DIM:
        return None
    if gathered is None:
        gathered = frechet.empty(features.shape[1])
    return frechet.update(gathered, features)


def save(path: Path, statistics: Statistics) -> None:
    """Writes statistics, whole or not at all; logits are left out."""
    arrays = {
        "num": np.int64(statistics.num),
        "protocol": np.array(json.dumps(statistics.protocol)),
    }
    for suffix, gaussian in (("", statistics.gaussian), ("_s", statistics.spatial)):
        if gaussian is not None:
            arrays[f"mu{suffix}"], arrays[f"sigma{suffix}"] = gaussian
    if statistics.features is not None:
        arrays |= {"features": statistics.features, "kept": statistics.kept}
    with atomic_write(path) as partial:
        # First, for a zip whose end is damaged may seem to have no more entries.
        np.savez(partial, sha256=np.array(_digest(arrays)), **arrays)


def load(path: Path) -> Statistics:
    """Reads statistics, of `save` or of another tool.

    Raises:
      OSError: if the file is not there, damaged, or holds no statistics.
    """
    if not path.is_file():
        raise OSError(f"no reference {path}: python -m ddpm_jax.reference makes one")
    try:
        arrays = read_arrays(path)
    except ValueError as error:
        raise OSError(str(error)) from error
    digest = arrays.pop("sha256", None)
    if digest is not None and str(digest) != _digest(arrays):
        raise OSError(f"{path} is damaged: it is not what its own sha256 says")
    gaussians = {suffix: _gaussian(path, arrays, suffix) for suffix in ("", "_s")}
    ours = digest is not None
    if gaussians[""] is None and not ours:
        raise OSError(
            f"{path} holds {', '.join(sorted(arrays))}, but not mu and sigma: make a "
            f"reference of images with python -m ddpm_jax.reference --images {path}"
        )
    return Statistics(
        json.loads(str(arrays["protocol"])) if ours else {},
        int(arrays["num"]) if ours else None,
        gaussians[""],
        gaussians["_s"],
        features=arrays.get("features") if ours else None,
        kept=arrays.get("kept") if ours else None,
    )


def _gaussian(path, arrays, suffix):
    """The Gaussian of `mu` and `sigma` with that suffix, if they are there."""
    mean, covariance = (arrays.get(f"{name}{suffix}") for name in ("mu", "sigma"))
    if mean is None or covariance is None:
        return None
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise OSError(f"{path}: mu{suffix} and sigma{suffix} do not fit")
    try:
        found = Gaussian(mean.astype(np.float64), covariance.astype(np.float64))
    except ValueError as error:
        raise OSError(f"{path}: mu{suffix} or sigma{suffix} is no number") from error
    if not all(np.all(np.isfinite(part)) for part in found):
        raise OSError(f"{path}: mu{suffix} or sigma{suffix} is not finite")
    return found


def _digest(arrays):
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
