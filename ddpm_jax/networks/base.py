"""What the rest of the package knows of a network: two pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float


class Network(NamedTuple):
    """A network, as two pure functions; parameters are its only state.

    Attributes:
      init: (key, image_shape) -> params, for images of shape (height, width, channels).
      apply: (params, x_t, index, cond=None, dropout_keys=None) -> output, for x_t of
        [batch, height, width, channels], the index [batch] that counts one noising step
        as 0, class labels cond [batch] (or None), and one key per example where
        training (None: no dropout). Output as x_t, or with twice its channels where the
        network learns its variance.
      remarks: image_shape -> what of its settings has no effect on such images, in a
        line each.
    """

    init: Callable[[Array, tuple[int, int, int]], Any]
    apply: Callable[..., Float[Array, "batch height width out"]]
    remarks: Callable[[tuple[int, int, int]], list[str]] = lambda image_shape: []


def check_labels(labels, num_classes: int) -> None:
    """Refuses labels that are no classes, which a lookup would wrap or clamp.

    What is traced is not known yet, and passes.

    Raises:
      ValueError: naming the range, and what was found.
    """
    if isinstance(labels, jax.core.Tracer):
        return
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be whole numbers, got {labels.dtype}")
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"labels must lie in 0 ... {num_classes - 1}, got {labels.min()} ... "
            f"{labels.max()}"
        )
