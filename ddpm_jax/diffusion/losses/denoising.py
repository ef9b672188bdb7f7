"""The loss of denoising: of Ho et al. 2020, at any noise levels, with any weights."""

from collections.abc import Callable

from ddpm_jax.diffusion import densities, weightings
from ddpm_jax.diffusion.densities import Density
from ddpm_jax.diffusion.losses.base import (
    LossFn,
    draw_and_call,
    mean_of_examples,
    mean_of_image,
)
from ddpm_jax.diffusion.process import parameterization
from ddpm_jax.diffusion.schedules import Schedule, log_snr


def simple(
    apply: Callable,
    schedule: Schedule,
    predicts: str = "eps",
    density: Density | None = None,
    weighting: Callable | None = None,
    stratified: bool = False,
) -> LossFn:
    """The mean squared error of a network that predicts "eps", "x_0", "v" or "flow".

    Args:
      apply: the network.
      schedule: the noise schedule.
      predicts: what the network predicts.
      density: of the noise levels, by default `densities.uniform()`.
      weighting: λ -> the logarithm of the weight of ‖x̂_0 - x_0‖² (see `weightings`),
        by default that of a plain error of what is predicted.
      stratified: whether the levels of a batch are spread evenly, instead of drawn
        independently, so that its loss varies less.

    Raises:
      ValueError: see `process.parameterization`; for a network of learned variance,
        which this would leave untrained.
    """
    target = parameterization(predicts, schedule).target
    density = density or densities.uniform()
    weight = weighting and weightings.relative(weighting, predicts)

    def loss_fn(params, batch, key):
        x_0, x_t, t, eps, output, fraction = draw_and_call(
            apply, schedule, params, batch, key, density, stratified
        )
        if fraction is not None:
            raise ValueError(
                "the loss 'simple' does not train a learned variance: choose 'hybrid', "
                "'vlb', or a network without it"
            )
        error = mean_of_image((output - target(schedule, x_0, t, eps)) ** 2)
        if weight is not None:
            error = weight(log_snr(schedule, t)) * error
        return mean_of_examples(schedule, t, error)

    return loss_fn
