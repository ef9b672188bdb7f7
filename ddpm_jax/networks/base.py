"""What the rest of the package knows of a network: two pure functions."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
      augmentation: how many numbers `apply` takes as `augmentation`, [batch, numbers],
        that tell how training images were augmented; 0 where it takes none.
      convention: what it calls time and how its input is scaled, as
        `diffusion.conventions` names it, or with settings, as in {"name": "edm",
        "sigma_data": 0.5}. The above is "index".
      remarks: image_shape -> what of its settings has no effect on such images, in a
        line each.
    """

    init: Callable[[Array, tuple[int, int, int]], Any]
    apply: Callable[..., Float[Array, "batch height width out"]]
    remarks: Callable[[tuple[int, int, int]], list[str]] = lambda image_shape: []
    augmentation: int = 0
    convention: str | dict[str, Any] = "index"


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


def check_classes(cond, images, num_classes: int, has_null: bool) -> None:
    """Refuses labels that a network has nothing for.

    Args:
      cond: classes, [batch], or None.
      images: that they are of, [batch, ...].
      num_classes: that the network knows, 0 for none.
      has_null: whether it can be told of none of them.

    Raises:
      ValueError: where labels are missing, there should be none, or they are not one
        class for each image.
    """
    if num_classes == 0 and cond is not None:
        raise ValueError("this network has no classes, but labels were given")
    if num_classes > 0 and cond is None and not has_null:
        raise ValueError("this network has no null class: labels are needed")
    if cond is not None:
        if jnp.shape(cond) != images.shape[:1]:
            raise ValueError(
                f"labels must be one for each of {images.shape[0]} images, got "
                f"{jnp.shape(cond)}"
            )
        check_labels(cond, num_classes + has_null)


def class_remarks(module) -> list[str]:
    """Returns what of a module's settings has no effect without classes, in words."""
    if module.num_classes:
        return []
    idle = [
        field.name
        for field in dataclasses.fields(module)
        if field.name in ("label_dropout", "class_tokens")
        and getattr(module, field.name) != field.default
    ]
    return [f"network.{name} has no effect without num_classes" for name in idle]


@functools.partial(jax.jit, static_argnums=0, inline=True)
def apply_module(module, params, *given) -> Array:
    """Calls a Flax module that can be hashed: as `module.apply`, with its parameters.

    Of a module and shapes it is traced once, by whatever programs it is called.
    """
    return module.apply({"params": params}, *given)


def from_flax(module, num_classes: int = 0) -> Network:
    """Makes a network of a Flax module, such as one from another project.

    Its dropout draws each example's mask from that example's key, as ours does, so a
    loss does not depend on how a batch is cut.

    Args:
      module: called as module(x_t, index, cond, train), with x_t [batch, height, width,
        channels], the index [batch] that counts one noising step as 0, labels [batch]
        or None, and whether `nn.Dropout` drops (its rng is "dropout"). Its state is
        parameters alone: no batch statistics.
      num_classes: that it knows, 0 for none; then it is never given labels.
    """

    def init(key, image_shape):
        x, index = jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)
        label = index if num_classes else None
        return module.init(key, x, index, label, False)["params"]

    def apply(params, x_t, index, cond=None, dropout_keys=None):
        if dropout_keys is None:
            return module.apply({"params": params}, x_t, index, cond, False)

        def one(x, i, label, key):
            label = None if label is None else label[None]
            rngs = {"dropout": key}
            given = {"params": params}, x[None], i[None], label, True
            return module.apply(*given, rngs=rngs)[0]

        return jax.vmap(one)(x_t, index, cond, dropout_keys)

    return Network(init, apply)
