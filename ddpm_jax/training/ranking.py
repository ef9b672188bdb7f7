"""Scores of checkpoints, and which are kept for them."""

import json
from pathlib import Path

from orbax.checkpoint.checkpoint_managers import preservation_policy

# Where Orbax looks for the scores of a checkpoint, within it.
SCORES = ("metrics", "metrics")


def drop_damaged(folder: str) -> None:
    """Orbax could not open the folder; a checkpoint without its scores is whole."""
    for path in Path(folder).glob("/".join(("*", *SCORES))):
        try:
            json.loads(path.read_text())["rank"]
        except (ValueError, KeyError, TypeError):
            path.unlink()


def rank(scores: dict[str, float]) -> float:
    """Returns by what checkpoints are compared: the larger, the better."""
    return scores["rank"]


def policy(keep: int):
    """The latest, and the best of those with scores."""
    kept = preservation_policy
    best = kept.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False)
    return kept.AnyPreservationPolicy([kept.LatestN(keep), best])
