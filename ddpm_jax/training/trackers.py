"""Records of a run: `metrics.jsonl`, TensorBoard event files, pictures, a terminal."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ddpm_jax.files import atomic_write


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    """Lets what is imported within do without these packages, if it can."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules |= dict.fromkeys(hidden)
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


# For its graphs and for buckets, neither of which is used, it would import these, and
# PyTorch takes seconds.
with _without("torch", "boto3", "google.cloud.storage"):
    import tensorboardX
    import tensorboardX.summary


class Tracker:
    """Writes metrics and pictures into a run's folder and to the terminal."""

    def __init__(self, workdir: str | os.PathLike, first_step: int, num_steps: int):
        """Continues the records of a run.

        Args:
          workdir: the run's folder.
          first_step: the steps taken so far; what was recorded beyond them, before a
            run was killed, is taken out.
          num_steps: the steps to take in all, for the progress bar.
        """
        self._path = Path(workdir) / "metrics.jsonl"
        _forget_after(self._path, first_step)
        self._board = tensorboardX.SummaryWriter(
            str(workdir), purge_step=first_step + 1 if first_step else None
        )
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
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        shown = [f"{k} {value:.4g}" for k, value in values.items() if "/" not in k]
        self.line(f"step {step:>7}  {'  '.join(shown)}")

    def settings(self, values: Mapping[str, Any]) -> None:
        """Records a config, by which TensorBoard tells runs from each other.

        Args:
          values: of the config, by their whole names, as "optimizer.learning_rate".
        """
        plain = bool, int, float, str
        shown = {k: v if isinstance(v, plain) else str(v) for k, v in values.items()}
        for summary in tensorboardX.summary.hparams(shown, {"loss": 0.0}):
            self._board.file_writer.add_summary(summary)
        lines = (f"| {name} | {value} |" for name, value in values.items())
        self._board.add_text("config", "\n".join(["| | |", "|---|---|", *lines]))

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Records a picture, uint8 [height, width, channels], in the event file."""
        self._board.add_image(name, picture, step, dataformats="HWC")

    def line(self, text: str) -> None:
        """Writes a line to the terminal, above the progress bar."""
        line(text)

    def flush(self) -> None:
        """Writes to the files what was recorded."""
        self._board.flush()

    def close(self) -> None:
        """Finishes the records."""
        self._bar.close()
        self._board.close()


def line(text: str) -> None:
    """Writes a line to the terminal, above any progress bar."""
    with contextlib.suppress(BrokenPipeError):  # a run outlives its terminal
        tqdm.write(text)


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
