"""The mathematics of diffusion models: pure functions, no networks, no data."""

from ddpm_jax.diffusion import (
    denoisers,
    losses,
    process,
    samplers,
    sampling,
    schedules,
    timesteps,
)

__all__ = [
    "denoisers",
    "losses",
    "process",
    "samplers",
    "sampling",
    "schedules",
    "timesteps",
]
