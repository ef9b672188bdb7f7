"""The mathematics of diffusion models: pure functions, no networks, no data."""

import warnings

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

__all__ = [
    "bound",
    "denoisers",
    "editing",
    "guidance",
    "inverse",
    "losses",
    "process",
    "samplers",
    "schedules",
    "timesteps",
    "variances",
]


def __getattr__(name):
    if name == "sampling":
        warnings.warn("diffusion.sampling is in samplers", FutureWarning, stacklevel=2)
        return samplers
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
