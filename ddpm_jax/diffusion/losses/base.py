"""What losses share: times and noise, a call of the network, means over examples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion import densities
from ddpm_jax.diffusion.denoisers import call_network
from ddpm_jax.diffusion.process import diffuse

UNIFORM = densities.uniform()

# (params, batch, key) -> (loss, metrics), see this package.
LossFn = Callable[[Any, dict, jax.Array], tuple[jax.Array, dict]]


def draw_and_call(
    apply, schedule, params, batch, key, density=UNIFORM, stratified=False
):
    """Draws a time and noise for each image, and calls the network on what they make.

    Args:
      apply: the network.
      schedule: the noise schedule.
      params: of the network.
      batch: "image", "id" and "label" (see this package).
      key: of the step.
      density: of the times.
      stratified: whether times are spread evenly over the batch.

    Returns:
      x_0, x_t, t [batch], eps, and what `call_network` returns.
    """
    x_0 = batch["image"]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["id"])

    def draw(key, x):
        key_t, key_eps, key_dropout = jax.random.split(key, 3)
        eps = jax.random.normal(key_eps, x.shape, x.dtype)
        return density.draw(schedule, key_t), eps, key_dropout

    t, eps, dropout_keys = jax.vmap(draw)(keys, x_0)
    if stratified:
        t = density.quantile(schedule, densities.spread(key, batch["id"]))
    x_t = diffuse(schedule, x_0, t, eps)
    told = {key: batch[key] for key in ("augmentation",) if key in batch}
    label = batch.get("label")
    called = call_network(apply, params, x_t, t, label, dropout_keys, **told)
    return x_0, x_t, t, eps, *called


def mean_of_examples(schedule, t, each) -> tuple[jax.Array, dict]:
    """The loss of a batch, and as metrics that of each quarter of the times.

    Args:
      schedule: the noise schedule.
      t: of the examples, [batch].
      each: their losses, [batch].

    Returns:
      (loss, {"loss": loss, "loss_by_t/q0": (its share, of so much of the batch), ...}),
      the least noise first.
    """
    loss = jnp.mean(each)
    quarter = (4 * t - 1) // schedule.num_steps
    metrics = {"loss": loss}
    for i in range(4):
        within = quarter == i
        share = jnp.mean(jnp.where(within, each, 0))
        metrics[f"loss_by_t/q{i}"] = share, jnp.mean(within, dtype=each.dtype)
    return loss, metrics


def mean_of_image(x: jax.Array) -> jax.Array:
    """[batch, ...] -> [batch]."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))
