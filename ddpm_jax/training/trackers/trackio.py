"""Trackio: a database of this machine, or a Space of the hub, as it is told."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.training.trackers.base import PROJECT, identity


class Trackio:
    """See `base.Tracker`. Its `TRACKIO_*` variables are honoured.

    All runs are in one place of its own, as it compares them: `trackio show`. Steps
    taken again are there twice, at the same place of a chart.
    """

    def __init__(self, workdir: Path, first_step: int):
        import trackio

        self._trackio = trackio
        # It knows runs again by their names, and another folder may have this one.
        name = f"{workdir.name}-{identity(workdir)}"
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._run = trackio.init(project, name, resume="allow", embed=False)

    def settings(self, values: Mapping[str, Any]) -> None:
        self._run.config |= values  # which go with the first metrics

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        colored = np.broadcast_to(picture, (*picture.shape[:2], 3))
        self._run.log({name: self._trackio.Image(colored)}, step)

    def flush(self) -> None:
        pass  # a thread writes, twice a second

    def close(self, failed: bool) -> None:
        self._trackio.finish()
