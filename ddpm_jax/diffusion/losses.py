"""Training losses.

    L_simple = E_{t ~ U{1..T}, eps} ‖ eps - eps_θ(alpha_t x_0 + sigma_t eps, t) ‖²

(Ho et al. 2020, Eq. 14), as a mean over pixels; likewise for x_0 and v. Every example
draws from its own key, so the loss does not depend on how a batch is cut.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.denoisers import call_network
from ddpm_jax.diffusion.process import diffuse, parameterization
from ddpm_jax.diffusion.schedules import Schedule


def make_loss(apply: Callable, schedule: Schedule, predicts: str = "eps") -> Callable:
    """Makes the simple loss of a network that predicts "eps", "x_0" or "v".

    Args:
      apply: (params, x_t, index [batch], cond, dropout_keys [batch]) -> output.
      schedule: the noise schedule.
      predicts: what the network predicts.

    Returns:
      loss_fn(params, batch, key) -> (loss, metrics). `batch` holds "image", float
      [batch, height, width, channels] in [-1, 1]; "id", uint32 [batch], which tells
      examples' random numbers apart; and "label", int [batch], where the network is
      conditional.

    Raises:
      ValueError: see `process.parameterization`.
    """
    target_of = parameterization(predicts, schedule).target

    def loss_fn(params, batch, key):
        x_0 = batch["image"]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["id"])

        def draw(key, x):
            key_t, key_eps, key_dropout = jax.random.split(key, 3)
            t = jax.random.randint(key_t, (), 1, schedule.num_steps + 1)
            return t, jax.random.normal(key_eps, x.shape, x.dtype), key_dropout

        t, eps, dropout_keys = jax.vmap(draw)(keys, x_0)
        x_t = diffuse(schedule, x_0, t, eps)
        output = call_network(apply, params, x_t, t, batch.get("label"), dropout_keys)
        loss = jnp.mean((output - target_of(schedule, x_0, t, eps)) ** 2)
        return loss, {"loss": loss}

    return loss_fn
