"""What is said of a run: to `metrics.jsonl`, a terminal, and trackers."""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ddpm_jax.errors import one_line
from ddpm_jax.files import atomic_write
from ddpm_jax.training.trackers import TRACKERS
from ddpm_jax.training.trackers.base import Tracker


class Journal:
    """Writes metrics into a run's folder and to the terminal, and tells trackers.

    What fails in a tracker, once it has begun, is said once, and nothing more is done.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        first_step: int,
        num_steps: int,
        trackers: Iterable[str] = (),
    ):
        """Continues the records of a run.

        Args:
          workdir: the run's folder.
          first_step: the steps taken so far; what was recorded beyond them, before a
            run was killed, is taken out.
          num_steps: the steps to take in all, for the progress bar.
          trackers: names of `TRACKERS`.

        Raises:
          OSError: if a tracker cannot begin, and what to do.
        """
        self._path = Path(workdir) / "metrics.jsonl"
        _forget_after(self._path, first_step)
        self._trackers = {
            name: _begun(name, Path(workdir), first_step) for name in trackers
        }
        self._said = set()
        self._bar = tqdm(
            initial=first_step,
            total=num_steps,
            unit="step",
            disable=None,
            smoothing=0.1,
        )

    def advance(self, steps: int = 1) -> None:
        """Moves the progress bar."""
        self._bar.update(steps)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Records scalars, one JSON object a line.

        Those of a group, as "loss_by_t/q0", are for charts: the terminal shows others.
        """
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self._tell("metrics", step, values)
        shown = [f"{k} {value:.4g}" for k, value in values.items() if "/" not in k]
        self.line(f"step {step:>7}  {'  '.join(shown)}")

    def settings(self, values: Mapping[str, Any]) -> None:
        """Tells the config, by which trackers tell runs from each other.

        Args:
          values: of the config, by their whole names, as "optimizer.learning_rate".
        """
        self._tell("settings", values)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Tells a picture, uint8 [height, width, channels]."""
        self._tell("picture", step, name, picture)

    def line(self, text: str) -> None:
        """Writes a line to the terminal, above the progress bar."""
        line(text)

    def flush(self) -> None:
        """Writes to the folder's files what was recorded, once that is all."""
        self._tell("flush")

    def close(self, failed: bool = False) -> None:
        """Finishes the records.

        Args:
          failed: whether an error ends the run.
        """
        self._bar.close()
        self._tell("close", failed)

    def _tell(self, what, *given):
        """Calls a method of each tracker, whatever it does in another."""
        for name, tracker in self._trackers.items():
            try:
                getattr(tracker, what)(*given)
            except Exception as error:  # their packages have some of their own
                said = f"{type(error).__name__}: {one_line(error)}"[:300]
                text = f"{name}: {what} failed ({said}); all else goes on"
                if text not in self._said:
                    self._said.add(text)
                    self.line(text)


def line(text: str) -> None:
    """Writes a line to the terminal, above any progress bar."""
    with contextlib.suppress(BrokenPipeError):  # a run outlives its terminal
        tqdm.write(text)


def _begun(name: str, workdir: Path, first_step: int) -> Tracker:
    """A tracker; what keeps it from beginning is the same to whoever reads it."""
    try:
        return TRACKERS[name](workdir, first_step)
    except ImportError as error:
        if error.name != name:  # it is there, and is broken
            raise
        raise OSError(
            f"train.trackers: {one_line(error)}: pip install 'ddpm_jax[{name}]'"
        ) from error
    except Exception as error:  # their packages have some of their own
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        raise OSError(f"train.trackers: {name}: {kind}{one_line(error)}") from error


def _forget_after(path: Path, step: int) -> None:
    """Takes out the lines of later steps, which will be written again."""
    if not path.exists():
        return
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _step_of(line) <= step]
    if kept != lines:
        with atomic_write(path) as partial:
            partial.write_text("".join(kept))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # damaged: it cannot be kept
