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

from ddpm_jax.evaluation import moments
from ddpm_jax.evaluation.extractors import Outputs
from ddpm_jax.evaluation.moments import Gaussian
from ddpm_jax.files import read_arrays, whole


class Statistics(NamedTuple):
    """Features of a set of images, as scores need them.

    Attributes:
      protocol: what of and by which network; empty where a file does not say.
      num: how many images; None where a file does not say.
      gaussian: of the features, float64.
      spatial: of the spatial features, where the network has them.
      features: float32 [kept, dim] of the images `kept`, or None.
      logits: float32 [num, classes] of all, where the network classifies, or None.
      kept: int [kept], the positions of those images.
    """

    protocol: dict[str, Any]
    num: int | None
    gaussian: Gaussian
    spatial: Gaussian | None = None
    features: np.ndarray | None = None
    logits: np.ndarray | None = None
    kept: np.ndarray | None = None


def collect(
    batches: Iterable[Outputs], num: int, protocol: dict[str, Any], num_kept: int
) -> Statistics:
    """Collects features as they stream by.

    Args:
      batches: outputs of a feature network, of `num` images in all.
      num: how many.
      protocol: what they are of.
      num_kept: of how many images, evenly spread, to keep the features themselves.

    Raises:
      ValueError: if features are not finite, or of fewer than two images.
    """
    num_kept = min(num, num_kept)
    kept = np.arange(num_kept) * num // max(num_kept, 1)
    gathered, spatial, features, logits = None, None, [], []
    start = 0
    for outputs in batches:
        if gathered is None:
            gathered = moments.empty(outputs.features.shape[1])
            if outputs.spatial is not None:
                spatial = moments.empty(outputs.spatial.shape[1])
        gathered = moments.update(gathered, outputs.features)
        if spatial is not None:
            spatial = moments.update(spatial, outputs.spatial)
        stop = start + len(outputs.features)
        here = kept[(kept >= start) & (kept < stop)] - start
        features.append(np.asarray(outputs.features[here], np.float32))
        if outputs.logits is not None:
            logits.append(np.asarray(outputs.logits, np.float32))
        start = stop
    return Statistics(
        protocol,
        num,
        moments.gaussian(gathered),
        moments.gaussian(spatial) if spatial is not None else None,
        np.concatenate(features) if num_kept else None,
        np.concatenate(logits) if logits else None,
        kept if num_kept else None,
    )


def save(path: Path, statistics: Statistics) -> None:
    """Writes statistics, whole or not at all; logits are left out."""
    arrays = {
        "mu": statistics.gaussian.mean,
        "sigma": statistics.gaussian.covariance,
        "num": np.int64(statistics.num),
        "protocol": np.array(json.dumps(statistics.protocol)),
    }
    if statistics.spatial is not None:
        arrays |= {
            "mu_s": statistics.spatial.mean,
            "sigma_s": statistics.spatial.covariance,
        }
    if statistics.features is not None:
        arrays |= {"features": statistics.features, "kept": statistics.kept}
    with whole(path) as partial:
        np.savez(partial, **arrays, sha256=np.array(_digest(arrays)))


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
    gaussians = {}
    for suffix in ("", "_s"):
        mean, covariance = (arrays.get(f"{name}{suffix}") for name in ("mu", "sigma"))
        gaussians[suffix] = None
        if mean is not None and covariance is not None:
            if covariance.shape != (len(mean), len(mean)):
                raise OSError(f"{path}: mu{suffix} and sigma{suffix} do not fit")
            gaussians[suffix] = Gaussian(
                mean.astype(np.float64), covariance.astype(np.float64)
            )
    if gaussians[""] is None:
        raise OSError(
            f"{path} holds {', '.join(sorted(arrays))}, but not mu and sigma: make a "
            f"reference of images with python -m ddpm_jax.reference --images {path}"
        )
    ours = digest is not None
    return Statistics(
        json.loads(str(arrays["protocol"])) if ours else {},
        int(arrays["num"]) if ours else None,
        gaussians[""],
        gaussians["_s"],
        features=arrays.get("features") if ours else None,
        kept=arrays.get("kept") if ours else None,
    )


def _digest(arrays):
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
