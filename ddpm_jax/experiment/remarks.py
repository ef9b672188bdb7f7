"""What sections of a config must agree in, for a training that it is to describe.

A model that was trained otherwise can still be sampled: only trainings are compared.
"""

from ddpm_jax.data import images
from ddpm_jax.diffusion import schedules
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment.build import Experiment
from ddpm_jax.experiment.options import train_options
from ddpm_jax.experiment.sections import attempt
from ddpm_jax.training import optimizers


def of_training(experiment: Experiment) -> list[str]:
    """Returns, in a line each, what has no effect, or is odd but can be meant.

    Raises:
      ConfigError: for what cannot be meant.
    """
    model, options = experiment.model, experiment.training
    if options is None:
        options = train_options(experiment.config)  # which says what it lacks
    if options.num_steps >= 2**31:
        raise ConfigError(
            f"config.train.num_steps must be below 2**31, got {options.num_steps}"
        )
    if options.sample_every and model.image_shape[2] not in images.CHANNELS:
        raise ConfigError(
            f"images of {model.image_shape[2]} channels cannot be drawn as pictures: "
            "give --config.train.sample_every=0, or an image_shape of 1 or 3 channels"
        )
    rate = experiment.config.get("optimizer", {})
    return [
        *attempt("optimizer", optimizers.remarks, options.num_steps, **rate),
        *model.network.remarks(model.image_shape),
        *schedules.remarks(model.schedule),
        *_of_averages(options),
    ]


def _of_averages(options):
    """What is odd about averages and their snapshots."""
    widths = {each.sigma_rel for each in options.averaging.values()} - {None}
    if options.snapshot_every and not widths:
        return [
            f"train.snapshot_every {options.snapshot_every} has no effect: there are "
            "no averages of the kind 'power' to store"
        ]
    return []
