"""Training losses.

    L_simple = E ‖ eps - eps_θ(alpha_t x_0 + sigma_t eps, t) ‖²     (Ho et al., Eq. 14)
    L_vlb    = T E L(t→t-1), in bits per dimension                  (see `bound`)
    L_hybrid = L_simple + 0.001 L_vlb             (Nichol & Dhariwal 2021, Section 3.1)

over t ~ U{1..T} and eps, as means over pixels; likewise for x_0 and v. In the hybrid,
L_vlb teaches the variance alone: its gradient stops at the mean. Every example draws
from its own key, so a loss does not depend on how a batch is cut.

A loss is loss_fn(params, batch, key) -> (loss, metrics). `batch` holds "image", float
[batch, height, width, channels] in [-1, 1]; "id", uint32 [batch], which tells examples'
random numbers apart; and "label", int [batch], where the network is conditional. The
network is `apply`, (params, x_t, index [batch], cond, dropout_keys [batch]) -> output.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.bound import make_term
from ddpm_jax.diffusion.denoisers import call_network
from ddpm_jax.diffusion.process import diffuse, parameterization
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.timesteps import trailing

# (params, batch, key) -> (loss, metrics)
LossFn = Callable[[Any, dict, jax.Array], tuple[jax.Array, dict]]


def simple(apply: Callable, schedule: Schedule, predicts: str = "eps") -> LossFn:
    """The mean squared error of a network that predicts "eps", "x_0" or "v".

    Raises:
      ValueError: see `process.parameterization`; for a network of learned variance,
        which this would leave untrained.
    """
    target = parameterization(predicts, schedule).target

    def loss_fn(params, batch, key):
        x_0, x_t, t, eps, output, fraction = _call(apply, schedule, params, batch, key)
        if fraction is not None:
            raise ValueError(
                "the loss 'simple' does not train a learned variance: choose 'hybrid', "
                "'vlb', or a network without it"
            )
        loss = jnp.mean((output - target(schedule, x_0, t, eps)) ** 2)
        return loss, {"loss": loss}

    return loss_fn


def hybrid(
    apply: Callable,
    schedule: Schedule,
    predicts: str = "eps",
    vlb_weight: float = 1e-3,
) -> LossFn:
    """The simple loss for the mean, the bound for a learned variance.

    The metrics are "loss" and its parts, "mse" and "vlb".

    Raises:
      ValueError: see `process.parameterization`; for a network without learned
        variance, and a weight that is not positive.
    """
    if not 0 < vlb_weight < float("inf"):
        raise ValueError(f"vlb_weight must be positive, got {vlb_weight}")
    target, read = parameterization(predicts, schedule)
    term = _vlb_term(schedule, "learned_range")

    def loss_fn(params, batch, key):
        x_0, x_t, t, eps, output, fraction = _call(apply, schedule, params, batch, key)
        mse = jnp.mean((output - target(schedule, x_0, t, eps)) ** 2)
        mean = read(schedule, x_t, t, output)
        fixed = jax.lax.stop_gradient(mean)._replace(fraction=fraction)
        vlb = schedule.num_steps * jnp.mean(term(fixed, x_0, t, t - 1))
        loss = mse + vlb_weight * vlb
        return loss, {"loss": loss, "mse": mse, "vlb": vlb}

    return loss_fn


def vlb(
    apply: Callable,
    schedule: Schedule,
    predicts: str = "eps",
    variance: str = "learned_range",
) -> LossFn:
    """The variational bound itself, in bits per dimension (without the prior's term).

    Args:
      apply: the network.
      schedule: the noise schedule.
      predicts: what the network predicts.
      variance: "learned_range", or "fixed_small" or "fixed_large" for a network that
        learns none.

    Raises:
      ValueError: see `process.parameterization`; for an unknown variance, and one that
        the network does not learn.
    """
    read = parameterization(predicts, schedule).read
    term = _vlb_term(schedule, variance)

    def loss_fn(params, batch, key):
        x_0, x_t, t, eps, output, fraction = _call(apply, schedule, params, batch, key)
        if fraction is not None and variance != "learned_range":
            raise ValueError(f"variance {variance!r} leaves a learned one untrained")
        mean = read(schedule, x_t, t, output)
        prediction = mean._replace(fraction=fraction)
        loss = schedule.num_steps * jnp.mean(term(prediction, x_0, t, t - 1))
        return loss, {"loss": loss, "vlb": loss}

    return loss_fn


def _vlb_term(schedule, variance):
    """A term of the bound over all T steps."""
    return make_term(schedule, variance, trailing(schedule, schedule.num_steps))


def _call(apply, schedule, params, batch, key):
    """Draws a time and noise for each image, and calls the network on what they make.

    Returns:
      x_0, x_t, t [batch], eps, and what `call_network` returns.
    """
    x_0 = batch["image"]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["id"])

    def draw(key, x):
        key_t, key_eps, key_dropout = jax.random.split(key, 3)
        t = jax.random.randint(key_t, (), 1, schedule.num_steps + 1)
        return t, jax.random.normal(key_eps, x.shape, x.dtype), key_dropout

    t, eps, dropout_keys = jax.vmap(draw)(keys, x_0)
    x_t = diffuse(schedule, x_0, t, eps)
    called = call_network(apply, params, x_t, t, batch.get("label"), dropout_keys)
    return x_0, x_t, t, eps, *called


LOSSES = {
    "simple": simple,
    "hybrid": hybrid,
    "vlb": vlb,
}
