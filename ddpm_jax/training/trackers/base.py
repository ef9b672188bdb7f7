"""The interface of trackers, and by what services know a run again."""

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ddpm_jax.files import atomic_write

# Of services that sort runs into projects, unless the environment says which.
PROJECT = "ddpm_jax"


class Tracker(Protocol):
    """Shows a run while it trains; on process 0 alone.

    A run that was killed goes on from a checkpoint, so steps may be told twice.
    """

    def __init__(self, workdir: Path, first_step: int):
        """Begins, or goes on with what was begun of this run.

        Args:
          workdir: the run's folder.
          first_step: the steps taken so far.

        Raises:
          ImportError: if its package is not installed.
          Exception: of any kind, saying what to do.
        """

    def settings(self, values: Mapping[str, Any]) -> None:
        """Takes the config, by whole names, as "optimizer.learning_rate"."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Takes scalars of a step."""

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Takes a picture, uint8 [height, width, channels]."""

    def flush(self) -> None:
        """Writes to the run's folder what it holds back, once all is told."""

    def close(self, failed: bool) -> None:
        """Ends, within a minute or so; `failed` where an error ends the run."""


def identity(workdir: Path) -> str:
    """Returns by what a run is known again, made once and kept in its folder.

    A folder's name is not enough: others may bear it, on this machine and elsewhere.
    """
    path = workdir / "run_id"
    if not path.is_file():
        with atomic_write(path) as partial:
            partial.write_text(secrets.token_hex(5) + "\n")
    return path.read_text().strip()
