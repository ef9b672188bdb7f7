"""TensorBoard: event files in the run's folder."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np


class TensorBoard:
    """See `base.Tracker`. What was recorded beyond the first step is not shown."""

    def __init__(self, workdir: Path, first_step: int):
        # For its graphs and for buckets, neither of which is used, it would import
        # these, and PyTorch takes seconds.
        with _without("torch", "boto3", "google.cloud.storage"):
            import tensorboardX
            import tensorboardX.summary
        purged = first_step + 1 if first_step else None
        self._board = tensorboardX.SummaryWriter(str(workdir), purge_step=purged)
        self._hparams = tensorboardX.summary.hparams

    def settings(self, values: Mapping[str, Any]) -> None:
        plain = bool, int, float, str
        shown = {k: v if isinstance(v, plain) else str(v) for k, v in values.items()}
        for summary in self._hparams(shown, {"loss": 0.0}):
            self._board.file_writer.add_summary(summary)
        lines = (f"| {name} | {value} |" for name, value in values.items())
        self._board.add_text("config", "\n".join(["| | |", "|---|---|", *lines]))

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        self._board.add_image(name, picture, step, dataformats="HWC")

    def flush(self) -> None:
        self._board.close()  # its own flush leaves out what is still in a queue

    def close(self, failed: bool) -> None:
        self._board.close()


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
