"""The mathematics of diffusion models: pure functions, no networks, no data."""

from ddpm_jax.diffusion import (
    bound,
    denoisers,
    editing,
    guidance,
    inverse,
    losses,
    process,
    samplers,
    schedules,
    timesteps,
    variances,
)
from ddpm_jax.diffusion.samplers import loop as sampling

__all__ = [
    "bound",
    "denoisers",
    "editing",
    "guidance",
    "inverse",
    "losses",
    "process",
    "samplers",
    "sampling",
    "schedules",
    "timesteps",
    "variances",
]
