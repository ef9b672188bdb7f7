"""Checkpoints: asynchronous, atomic, as host arrays, so any devices can read them.

Each holds the averaged parameters apart from the rest, so that sampling reads only
what it needs, and the checksums of all its files: what is read is what was saved. The
data's position is the step itself.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from ddpm_jax.files import atomic_write
from ddpm_jax.places import fetch, readable
from ddpm_jax.training import checksums, ema, ranking, structure
from ddpm_jax.training.checksums import DamagedError
from ddpm_jax.training.step import TrainState


# Orbax warns of what is meant here: a wait for the save before, arrays without devices.
# Its errors are raised too, and said here in a line.
def _not_of_orbax(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


_REASONS = (
    *("No space left on device", "Disk quota exceeded", "File too large"),
    *("Permission denied", "Read-only"),
)


class Checkpoints(contextlib.AbstractContextManager):
    """The checkpoints of a run, in one folder, read and written by this process alone.

    Attributes:
      folder: where they are.
    """

    def __init__(
        self, folder: str | os.PathLike, keep: int = 3, read_only: bool = False
    ):
        """Opens a folder of checkpoints, made if it is not there.

        Args:
          folder: where they are.
          keep: how many of the latest to keep, beside the best.
          read_only: whether to leave the folder, and a save under way in it, alone.
        """
        self.folder = os.path.abspath(folder)
        logging.getLogger("absl").addFilter(_not_of_orbax)
        if not read_only:
            os.makedirs(self.folder, exist_ok=True)
            ranking.drop_damaged(self.folder)
        me = jax.process_index()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ranking.policy(keep),
                best_fn=ranking.rank,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                step_format_fixed_length=8,
                # Orbax would wait for all processes to save and read together.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=me,
                    active_processes={me},
                    barrier_sync_key_prefix=f"process_{me}",
                ),
                create=False,  # what the option above asks for
                async_options=ocp.options.AsyncOptions(
                    post_finalization_callback=self._sign
                ),
            ),
        )

    def latest_step(self) -> int | None:
        """Returns the step of the latest complete checkpoint, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Returns the step of the best of the checkpoints with scores, or None."""
        scores = {step: self._manager.metrics(step) for step in self.steps()}
        ranks = {step: ranking.rank(found) for step, found in scores.items() if found}
        return max(ranks, key=ranks.get, default=None)

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def find(self, step: int | str | None = None) -> int:
        """Returns the step of a checkpoint.

        Args:
          step: which one: its step, "best", or None for the latest.

        Raises:
          FileNotFoundError: if there is no such checkpoint.
        """
        if step == "best":
            found, what = self.best_step(), "checkpoint with a score"
        elif step is None:
            found, what = self.latest_step(), "checkpoint"
        else:
            found = step if step in self.steps() else None
            what = f"checkpoint of step {step}"
        if found is None:
            raise FileNotFoundError(f"no {what} in {self.folder}; {self.listed()}")
        return found

    def save(self, state: TrainState) -> None:
        """Saves in the background; a step that is there already is left as it is.

        Raises:
          OSError: if this save, or the one before it, cannot be written.
        """
        step = int(state.step)
        if step == self.latest_step():
            return
        host = jax.device_get(state)
        self._check_space(sum(x.nbytes for x in jax.tree.leaves(host)))
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_without_averages(host)),
            **{
                _item(name): ocp.args.StandardSave(average)
                for name, average in host.averages.items()
            },
        )
        self.wait()
        self._saving = step
        self._writing(lambda: self._manager.save(step, args=items))

    def add_scores(self, step: int, scores: dict[str, float]) -> None:
        """Adds scores to the checkpoint of a step: that of the largest "rank" is kept.

        Raises:
          OSError: if they, or the checkpoint under way, cannot be written.
        """
        self.wait()
        with atomic_write(Path(self.folder, f"{step:08}", *ranking.SCORES)) as partial:
            partial.write_text(json.dumps(scores))
        self._manager.reload()

    def restore_latest(self, like: TrainState) -> tuple[TrainState | None, list[str]]:
        """Returns the latest state that is whole, and what to say of later ones.

        Later ones are damaged, and put into the folder "damaged" beside this one.

        Args:
          like: as for `restore`.

        Returns:
          (state, notes), (None, []) where there is no checkpoint yet.

        Raises:
          OSError: if there are checkpoints, and none of them is whole, or if one
            cannot be read now.
        """
        damaged = {}
        for step in reversed(self.steps()):
            try:
                state = self.restore(like, step)
            except DamagedError as error:
                damaged[step] = str(error)
                continue
            return state, [self._put_aside(*item) for item in damaged.items()]
        if damaged:
            raise OSError(
                f"there is no checkpoint to go on from: {'; '.join(damaged.values())}: "
                "restore one of them, or choose another --workdir"
            )
        return None, []

    def restore(self, like: TrainState, step: int | str | None = None) -> TrainState:
        """Returns a checkpoint's state as host arrays.

        Args:
          like: a state of the same shapes, which may be abstract.
          step: see `find`.

        Raises:
          FileNotFoundError: if there is no such checkpoint.
          DamagedError: if it is not what was saved.
          OSError: if it cannot be read, or holds another model.
        """
        items = {_item(name): average for name, average in like.averages.items()}
        restored = self._read(step, state=_without_averages(like), **items)
        state = {key: restored.state[key] for key in ("step", "params", "opt_state")}
        averages = {name: restored[_item(name)] for name in like.averages}
        return TrainState(**state, averages=averages)

    def restore_ema(self, like, step=None, name: str = ema.MAIN):
        """Returns averaged parameters, shaped as `like`; raises as `restore`."""
        return self._read(step, **{_item(name): like})[_item(name)]

    def wait(self) -> None:
        """Waits for the save under way.

        Raises:
          OSError: if it cannot be written.
        """
        self._writing(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits as `wait`, and frees what the manager holds."""
        self.wait()
        self._manager.close()
        logging.getLogger("absl").removeFilter(_not_of_orbax)

    def __exit__(self, *exception):
        self.close()

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(
                f"cannot save a checkpoint in {self.folder}: it needs "
                f"{needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; {self.listed()}"
            )

    def _writing(self, action: Callable) -> None:
        try:
            action()
        except Exception as error:  # Orbax raises ValueError too where a disk is full
            refused = isinstance(error, OSError) or _cause(error) in _REASONS
            if not refused:  # a defect, which is no fault of the disk
                raise
            raise OSError(
                f"cannot save a checkpoint in {self.folder} ({_cause(error)}); "
                f"{self.listed()}"
            ) from error

    def _read(self, step, **items):
        self.wait()
        step = self.find(step)
        for item in items:
            fetch(place := Path(self.folder, f"{step:08}", item))
            if not place.is_dir():
                raise FileNotFoundError(
                    f"the checkpoint of step {step} in {self.folder} has no "
                    f"{item.replace('_', ' ', 1)}: there is {self._averages(step)}"
                )
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), items)
        args = {name: ocp.args.StandardRestore(item) for name, item in zeros.items()}
        which = readable(f"the checkpoint of step {step} in {self.folder}")
        try:
            checksums.check(Path(self.folder, f"{step:08}"), items)
        except DamagedError as error:
            raise DamagedError(f"{which} is damaged ({error})") from error
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        except MemoryError:  # says nothing of the file
            raise
        except Exception as error:  # Orbax raises anything
            item, like = [*items.items()][-1]  # of parameters alone
            other = structure.other_modules(Path(self.folder, f"{step:08}", item), like)
            if other:
                raise OSError(f"{which} is of another network: {other}") from error
            raise OSError(f"cannot read {which} ({_cause(error)})") from error
        for name, item in zeros.items():
            structure.check_shapes(
                item, restored[name], f"step {step} in {self.folder}"
            )
        return restored

    def _sign(self) -> None:
        """Adds its checksums to a checkpoint, in the background; then it is named."""
        (unnamed,) = Path(self.folder).glob(f"{self._saving:08}.orbax-checkpoint-tmp*")
        checksums.write(unnamed)

    def _put_aside(self, step: int, why: str) -> str:
        name = f"{step:08}"
        aside = Path(self.folder).with_name("damaged") / name
        while aside.exists():  # that of an earlier time
            aside = aside.with_name(f"{aside.name}_again")
        aside.parent.mkdir(exist_ok=True)
        Path(self.folder, name).rename(aside)
        self._manager.reload()
        return f"{why}: it was moved to {aside}"

    def _averages(self, step: int) -> str:
        """The names of the averages in a checkpoint."""
        folders = sorted(Path(self.folder, f"{step:08}").glob(f"{ema.MAIN}*"))
        return ", ".join(path.name.removeprefix(f"{ema.MAIN}_") for path in folders)

    def listed(self) -> str:
        """Returns which checkpoints there are, in words."""
        steps = ", ".join(map(str, self.steps()))
        return f"there are those of steps {steps}" if steps else "there is none yet"


def _without_averages(state: TrainState) -> dict:
    """What is saved beside them; "ema_params" is what all checkpoints have there."""
    return {
        "step": state.step,
        "params": state.params,
        "ema_params": None,
        "opt_state": state.opt_state,
    }


def _item(average: str) -> str:
    """What an average is called in a checkpoint."""
    return average if average == ema.MAIN else f"{ema.MAIN}_{average}"


def _cause(error: Exception) -> str:
    """The reason within a message that Orbax makes long."""
    text = " ".join(str(error).split())
    for reason in _REASONS:
        if reason in text:
            return reason
    return text[:200] or type(error).__name__
