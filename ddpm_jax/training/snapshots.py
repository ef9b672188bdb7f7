"""Averages by power functions as they were now and then: others are made of them.

A run keeps them in `snapshots/`, one .npz for an average and a step, for good.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from ddpm_jax.distributed import multihost
from ddpm_jax.files import atomic_write, read_arrays
from ddpm_jax.training import ema
from ddpm_jax.training.loop import Callback

_NAME = re.compile(r"(\d{8})_(\w+)_([0-9.e-]+)\.npz")


class Snapshot(NamedTuple):
    """An average that was stored.

    Attributes:
      step: after which.
      sigma_rel: its width.
      path: its file.
    """

    step: int
    sigma_rel: float
    path: Path


def callback(
    folder: str | os.PathLike, every: int, averages: Mapping[str, ema.Average]
) -> Callback:
    """Makes what stores the averages by power functions in a folder.

    Args:
      folder: where to.
      every: steps from one to the next, 0 for never.
      averages: all of a training, by name.
    """
    widths = {name: each.sigma_rel for name, each in averages.items() if each.sigma_rel}

    def call(step, state):
        def write():
            for name, width in widths.items():
                save(Path(folder), step, name, width, state.averages[name])

        multihost.on_primary(write)

    return Callback("snapshot", every, call)


def save(folder: Path, step: int, name: str, sigma_rel: float, params) -> None:
    """Stores an average, whole or not at all.

    Raises:
      OSError: if it cannot be written.
    """
    host = jax.device_get(params)
    arrays = {_key(path): leaf for path, leaf in jax.tree.leaves_with_path(host)}
    with atomic_write(folder / f"{step:08}_{name}_{sigma_rel}.npz") as partial:
        np.savez(partial, **arrays)


def listed(folder: Path) -> list[Snapshot]:
    """Returns those in a folder, in the order of their steps."""
    found = [
        Snapshot(int(match[1]), float(match[3]), path)
        for path in folder.glob("*.npz")
        if (match := _NAME.fullmatch(path.name))
    ]
    return sorted(found)


def find_step(folder: Path, step: int | str | None = None) -> int:
    """Returns the step after which an average is to be reconstructed.

    Args:
      folder: of snapshots.
      step: a step up to the last snapshot's; None for that.

    Raises:
      FileNotFoundError: if there is no snapshot, or none that late.
    """
    steps = [each.step for each in listed(folder)]
    if not steps:
        raise FileNotFoundError(
            f"no snapshots in {folder}: training stores them of averages of the kind "
            "'power' every train.snapshot_every steps"
        )
    if step is None:
        return max(steps)
    if step == "best" or not min(steps) <= step <= max(steps):
        raise FileNotFoundError(
            f"an average cannot be reconstructed at step {step}: the snapshots in "
            f"{folder} are of steps {min(steps)} ... {max(steps)}"
        )
    return step


def reconstruct(folder: Path, like, sigma_rel: float, step: int):
    """Returns the average by a power function of any width, as if it had been kept.

    Args:
      folder: of snapshots.
      like: parameters of the same shapes, which may be abstract.
      sigma_rel: its width, see `ema.power`.
      step: after which, see `find_step`.

    Raises:
      ValueError: for a width outside (0, 0.289), and if a snapshot is damaged or of
        another network.
    """
    used = [each for each in listed(folder) if each.step <= step]
    given = [(each.step, each.sigma_rel) for each in used]
    weights = ema.coefficients(given, step, sigma_rel)
    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float64), like)
    for weight, each in zip(weights, used, strict=True):  # one at a time in memory
        params = _read(each.path, like)
        total = jax.tree.map(lambda a, b, w=weight: a + w * b, total, params)
    return jax.tree.map(lambda a, b: a.astype(b.dtype), total, like)


def _read(path, like):
    arrays = read_arrays(path)
    wanted = {_key(key): leaf for key, leaf in jax.tree.leaves_with_path(like)}
    shapes = {name: leaf.shape for name, leaf in wanted.items()}
    if {name: array.shape for name, array in arrays.items()} != shapes:
        raise ValueError(f"{path} is of another network")
    return jax.tree.unflatten(jax.tree.structure(like), map(arrays.get, wanted))


def _key(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")
