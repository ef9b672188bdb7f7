"""Checkpoints: asynchronous, atomic, as host arrays, so any devices can read them.

Each holds the averaged parameters apart from the rest, so that sampling reads only
what it needs. The data's position is the step itself.
"""

import os

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint.checkpoint_managers import preservation_policy

from ddpm_jax.training.state import TrainState

# Orbax warns of what is meant here: a wait for the save before, arrays without devices.
logging.set_verbosity(logging.ERROR)


class Checkpoints:
    """The checkpoints of a run, in one folder.

    Attributes:
      folder: where they are.
    """

    def __init__(self, folder: str | os.PathLike, keep: int = 3):
        """Opens a folder of checkpoints, made if it is not there.

        Args:
          folder: where they are.
          keep: how many of the latest to keep.
        """
        self.folder = os.path.abspath(folder)
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.LatestN(keep),
                cleanup_tmp_directories=True,
                step_format_fixed_length=8,
            ),
        )

    def latest_step(self) -> int | None:
        """Returns the step of the latest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Saves in the background; a step that is there already is left as it is."""
        step = int(state.step)
        if step == self.latest_step():
            return
        host = jax.device_get(state)
        rest = host._replace(ema_params=None)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(rest._asdict()),
                ema=ocp.args.StandardSave(host.ema_params),
            ),
        )

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """Returns a checkpoint's state as host arrays.

        Args:
          like: a state of the same shapes, which may be abstract.
          step: which one, by default the latest.
        """
        blank = _zeros(like)
        restored = self._manager.restore(
            self._existing(step),
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(
                    blank._replace(ema_params=None)._asdict()
                ),
                ema=ocp.args.StandardRestore(blank.ema_params),
            ),
        )
        return TrainState(**{**restored.state, "ema_params": restored.ema})

    def restore_params(self, like: TrainState, ema: bool = True, step=None):
        """Returns a checkpoint's averaged (or raw) parameters as host arrays."""
        if not ema:
            return self.restore(like, step).params
        target = ocp.args.StandardRestore(_zeros(like.ema_params))
        return self._manager.restore(
            self._existing(step), args=ocp.args.Composite(ema=target)
        ).ema

    def close(self) -> None:
        """Waits for the save under way."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _existing(self, step):
        steps = self._manager.all_steps()
        if step is None and steps:
            return max(steps)
        if step not in steps:
            what = "a checkpoint" if step is None else f"a checkpoint of step {step}"
            raise FileNotFoundError(f"{self.folder} does not hold {what}")
        return step


def _zeros(tree):
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)
