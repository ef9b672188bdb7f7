"""Weights & Biases: a run there for each run here, which goes on with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.errors import one_line
from ddpm_jax.training.trackers.base import PROJECT, identity

# For so long the end of a run waits for what was not sent yet.
_PATIENCE = 30.0
_OFFLINE = ("offline", "dryrun", "disabled")


class Wandb:
    """See `base.Tracker`. Its `WANDB_*` variables are honoured.

    It refuses steps that do not grow, and so counts for itself what it is told; charts
    go by a metric of ours, "step", and steps taken again lie where they did before.
    """

    def __init__(self, workdir: Path, first_step: int):
        import wandb

        given = wandb.setup().settings
        if given.mode not in _OFFLINE and not wandb.login(prompt=False, verify=False):
            raise OSError(
                "no account: wandb login, or set WANDB_API_KEY, or "
                "WANDB_MODE=offline to send the run later"
            )
        begin = dict(
            project=given.project or PROJECT,
            id=identity(workdir),
            resume="allow",
            dir=workdir,
            settings={"finish_timeout": given.finish_timeout or _PATIENCE},
        )
        try:
            self._run = wandb.init(**begin)
        except wandb.errors.CommError as error:
            if not first_step:
                raise
            wandb.teardown()  # or it takes the run for one that is under way
            wandb.termwarn(f"{one_line(error)}: going on offline, see wandb sync")
            self._run = wandb.init(**begin, mode="offline")
        if not self._run.resumed:  # else it may have been renamed
            self._run.name = given.run_name or workdir.name
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self._image = wandb.Image

    def settings(self, values: Mapping[str, Any]) -> None:
        self._run.config.update(_nested(values), allow_val_change=True)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        self._run.log({name: self._image(picture), "step": step})

    def flush(self) -> None:
        pass  # another process sends, all the while

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def _nested(values):
    """Sections as dictionaries, which its tables show by names with dots."""
    nested = {}
    for name, value in values.items():
        section, dot, key = name.partition(".")
        if dot:
            nested.setdefault(section, {})[key] = value
        else:
            nested[name] = value
    return nested
