"""Results of the images treated so far: an evaluation goes on where it was stopped."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.files import atomic_write, read_arrays


class PartialResults:
    """Keeps the results of each part of a set of images in a file.

    It is the `cache` of `devices.in_batches`.
    """

    def __init__(self, folder: Path, protocol: dict[str, Any], kind: type):
        """Opens the place of some results.

        Args:
          folder: where such places are.
          protocol: what decides the results.
          kind: of the results of a part, a NamedTuple of arrays or None.
        """
        self._folder = folder / key_of(protocol)
        self._kind = kind

    def __call__(self, positions: np.ndarray, compute: Callable):
        """Returns compute(), or what it returned in a run before."""
        path = self._folder / f"{positions[0]:08}_{len(positions)}.npz"
        if path.is_file():
            try:
                return self._kind(**read_arrays(path))
            except ValueError:
                path.unlink()  # cut off: it is made again
        results = compute()
        present = {k: v for k, v in results._asdict().items() if v is not None}
        with atomic_write(path) as partial:
            np.savez(partial, **present)
        return results

    def clear(self) -> None:
        """Forgets them, when the scores are written."""
        if jax.process_index() == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # there may be others in it
                self._folder.parent.rmdir()


def key_of(protocol: dict[str, Any]) -> str:
    """Returns a name for a protocol, the same for equal ones."""
    text = json.dumps(protocol, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
