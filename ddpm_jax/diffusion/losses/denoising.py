"""The loss of denoising, of Ho et al. 2020."""

from collections.abc import Callable

import jax.numpy as jnp

from ddpm_jax.diffusion.losses.base import LossFn, draw_and_call
from ddpm_jax.diffusion.process import parameterization
from ddpm_jax.diffusion.schedules import Schedule


def simple(apply: Callable, schedule: Schedule, predicts: str = "eps") -> LossFn:
    """The mean squared error of a network that predicts "eps", "x_0" or "v".

    Raises:
      ValueError: see `process.parameterization`; for a network of learned variance,
        which this would leave untrained.
    """
    target = parameterization(predicts, schedule).target

    def loss_fn(params, batch, key):
        x_0, x_t, t, eps, output, fraction = draw_and_call(
            apply, schedule, params, batch, key
        )
        if fraction is not None:
            raise ValueError(
                "the loss 'simple' does not train a learned variance: choose 'hybrid', "
                "'vlb', or a network without it"
            )
        loss = jnp.mean((output - target(schedule, x_0, t, eps)) ** 2)
        return loss, {"loss": loss}

    return loss_fn
