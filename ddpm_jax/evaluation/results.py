"""The scores of a run so far, in its evaluation.json."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from ddpm_jax.distributed import multihost
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import report
from ddpm_jax.evaluation.report import Score
from ddpm_jax.files import file_lock
from ddpm_jax.places import refresh
from ddpm_jax.sampling.partial import PartialResults
from ddpm_jax.version import VERSION


class Results:
    """Scores in a file, which grows as they come.

    Attributes:
      path: of the file.
    """

    def __init__(self, path: Path):
        """Opens a file of scores, which need not be there yet.

        Raises:
          ConfigError: if it is there and holds anything else.
        """
        self.path = path
        try:
            self._scores = report.load(path) if path.is_file() else []
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def known(
        self, subject: str, names: Iterable[str], protocol: dict[str, Any]
    ) -> list[Score] | None:
        """Returns scores that need not be computed again, or None.

        Args:
          subject: what is scored.
          names: of the numbers, all of which must be known.
          protocol: what they must have been computed by.
        """
        wanted = report.plain(protocol)
        found = {
            score.metric: score
            for score in self._scores
            if score.subject == subject and wanted.items() <= score.protocol.items()
        }
        known = [found[name] for name in names if name in found]
        return known if multihost.all_agree(len(known) == len([*names])) else None

    def add(self, scores: Iterable[Score]) -> None:
        """Writes scores beside the others."""
        software = {
            "ddpm_jax": VERSION,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
        }
        signed = [
            score._replace(protocol={**score.protocol, "software": software})
            for score in scores
        ]
        self._scores = report.merge(self._scores, signed)
        if jax.process_index() == 0:
            with file_lock(self.path.parent):  # another evaluation may have written too
                refresh(self.path)
                others = report.load(self.path) if self.path.is_file() else []
                report.save(self.path, report.merge(others, self._scores))

    def partial(self, protocol: dict[str, Any], kind: type) -> PartialResults:
        """Opens the place of results that become scores."""
        return PartialResults(self.path.with_name(f".{self.path.stem}"), protocol, kind)
