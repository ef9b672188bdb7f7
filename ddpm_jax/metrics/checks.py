"""What every score asks of features: finite numbers, [num, dim]."""

import numpy as np


def check(*sets: np.ndarray, least: int = 1) -> tuple[np.ndarray, ...]:
    """Refuses what cannot be scored.

    Args:
      *sets: arrays of features.
      least: how many examples each must have.

    Returns:
      The sets as NumPy arrays, in the dtype they came in.

    Raises:
      ValueError: unless they are finite, [num, dim] with one dim, and have enough rows.
    """
    arrays = tuple(np.asarray(features) for features in sets)
    for features in arrays:
        if features.ndim != 2 or not features.shape[1]:
            raise ValueError(f"features must be [num, dim], got shape {features.shape}")
        if len(features) < least:
            raise ValueError(f"needs at least {least} examples, got {len(features)}")
        # A sum is finite only if all terms are, and takes no array of booleans.
        with np.errstate(invalid="ignore"):
            total = np.sum(features, dtype=np.float64)
        if not np.isfinite(total):
            raise ValueError("features are not all finite")
    widths = sorted({features.shape[1] for features in arrays})
    if len(widths) > 1:
        raise ValueError(f"features must be of one width, got {widths}")
    return arrays
