"""Losses with the variational bound, of Nichol & Dhariwal 2021."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion.bound import make_term
from ddpm_jax.diffusion.losses.base import (
    LossFn,
    draw_and_call,
    mean_of_examples,
    mean_of_image,
)
from ddpm_jax.diffusion.process import parameterization
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.diffusion.timesteps import trailing


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
        x_0, x_t, t, eps, output, fraction = draw_and_call(
            apply, schedule, params, batch, key
        )
        mse = mean_of_image((output - target(schedule, x_0, t, eps)) ** 2)
        mean = read(schedule, x_t, t, output)
        fixed = jax.lax.stop_gradient(mean)._replace(fraction=fraction)
        vlb = schedule.num_steps * term(fixed, x_0, t, t - 1)
        loss, metrics = mean_of_examples(schedule, t, mse + vlb_weight * vlb)
        return loss, {**metrics, "mse": jnp.mean(mse), "vlb": jnp.mean(vlb)}

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
        x_0, x_t, t, eps, output, fraction = draw_and_call(
            apply, schedule, params, batch, key
        )
        if fraction is not None and variance != "learned_range":
            raise ValueError(f"variance {variance!r} leaves a learned one untrained")
        mean = read(schedule, x_t, t, output)
        prediction = mean._replace(fraction=fraction)
        vlb = schedule.num_steps * term(prediction, x_0, t, t - 1)
        loss, metrics = mean_of_examples(schedule, t, vlb)
        return loss, {**metrics, "vlb": loss}

    return loss_fn


def _vlb_term(schedule, variance):
    """A term of the bound over all T steps."""
    return make_term(schedule, variance, trailing(schedule, schedule.num_steps))
