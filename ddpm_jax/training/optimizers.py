"""Optimizers: gradient clipping, an optax optimizer, a learning-rate schedule."""

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ddpm_jax.naming import unknown

OPTIMIZERS = ("adam", "adamw", "adamax", "sgd")
DECAYS = ("constant", "cosine", "linear")


def make_optimizer(
    name: str = "adam",
    learning_rate: float = 2e-4,
    warmup_steps: int = 0,
    decay: str = "constant",
    decay_steps: int | None = None,
    clip_norm: float | None = 1.0,
    **settings,
) -> tuple[optax.GradientTransformation, Callable]:
    """Makes an optimizer and the learning rate it follows.

    Args:
      name: "adam", "adamw", "adamax" or "sgd", as optax calls them.
      learning_rate: its peak.
      warmup_steps: steps over which it rises from 0, linearly.
      decay: "constant", or to 0 after the warm-up along a "cosine" or "linear".
      decay_steps: the step at which it reaches 0.
      clip_norm: largest global norm of the (averaged) gradient, or None.
      **settings: further arguments of the optax optimizer, such as b1, b2, eps,
        weight_decay, momentum.

    Returns:
      (tx, learning_rate), the latter a function of the number of updates made.

    Raises:
      ValueError: for unknown names and for a decay without its number of steps.
      TypeError: for a setting that the optax optimizer does not have.
    """
    if name not in OPTIMIZERS:
        raise ValueError(unknown("optimizer", name, OPTIMIZERS))
    if learning_rate <= 0 or warmup_steps < 0:
        raise ValueError("learning_rate must be positive, warmup_steps not negative")
    if clip_norm is not None and clip_norm <= 0:
        raise ValueError(f"clip_norm must be positive or None, got {clip_norm}")
    rate = _learning_rate(learning_rate, warmup_steps, decay, decay_steps)
    make = getattr(optax, name)
    known = {
        *inspect.signature(make_optimizer).parameters,
        *inspect.signature(make).parameters,
    } - {"settings"}
    for setting in settings:
        if setting not in known:
            raise TypeError(unknown(f"setting of {name}", setting, known))
    clip = clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    return optax.chain(clip, make(rate, **settings)), rate


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scales gradients down to this global norm where theirs is larger.

    The transformation of optax with the same name, by the `global_norm` of this module.
    """

    def clip(grads, params):
        scale = jnp.minimum(1.0, max_norm / global_norm(grads))
        return jax.tree.map(lambda grad: grad * scale.astype(grad.dtype), grads)

    return optax.stateless(clip)


def global_norm(tree) -> Float[Array, ""]:
    """The square root of the sum of all squares of a tree of arrays.

    The squares of arrays of one shape are added up before they are summed: for most of
    a network's arrays, a TPU spends longer on the end of a sum than on reading them.
    """
    squares = {}
    for leaf in jax.tree.leaves(tree):
        squares.setdefault(leaf.shape, []).append(jnp.square(leaf))
    return jnp.sqrt(sum(jnp.sum(sum(alike)) for alike in squares.values()))


def _learning_rate(peak, warmup_steps, decay, decay_steps):
    if decay not in DECAYS:
        raise ValueError(unknown("decay", decay, DECAYS))
    if decay == "constant":
        after = optax.constant_schedule(peak)
    elif decay_steps is None or decay_steps <= warmup_steps:
        raise ValueError(f"decay {decay!r} needs decay_steps beyond the warm-up")
    elif decay == "cosine":
        after = optax.cosine_decay_schedule(peak, decay_steps - warmup_steps)
    else:
        after = optax.linear_schedule(peak, 0.0, decay_steps - warmup_steps)
    if warmup_steps == 0:
        return after
    warmup = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])
