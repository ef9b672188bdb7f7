"""What the rest of the package knows of a network: two pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

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
    """

    init: Callable[[Array, tuple[int, int, int]], Any]
    apply: Callable[..., Float[Array, "batch height width out"]]
