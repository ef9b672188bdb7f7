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
    sampling,
    schedules,
    timesteps,
    variances,
)

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
