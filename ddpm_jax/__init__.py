"""Denoising diffusion models of images in JAX: DDPM, DDIM, from a laptop to a TPU pod.

The public names; the mathematics is in `ddpm_jax.diffusion`.
"""

import importlib
from typing import TYPE_CHECKING

from ddpm_jax.version import VERSION as __version__

if TYPE_CHECKING:  # for editors; what is asked for is imported below
    from ddpm_jax.diffusion import losses
    from ddpm_jax.diffusion.samplers.loop import make_sample_fn
    from ddpm_jax.experiment.build import Experiment, build
    from ddpm_jax.experiment.config import read_config
    from ddpm_jax.experiment.load import load, load_pretrained
    from ddpm_jax.experiment.model import Model
    from ddpm_jax.networks import unet
    from ddpm_jax.sampling.draw import draw

# Where each lives; imported when asked for, so that the mathematics loads alone.
_HOMES = {
    "Experiment": "ddpm_jax.experiment.build",
    "Model": "ddpm_jax.experiment.model",
    "build": "ddpm_jax.experiment.build",
    "draw": "ddpm_jax.sampling.draw",
    "load": "ddpm_jax.experiment.load",
    "load_pretrained": "ddpm_jax.experiment.load",
    "losses": "ddpm_jax.diffusion",
    "make_sample_fn": "ddpm_jax.diffusion.samplers.loop",
    "read_config": "ddpm_jax.experiment.config",
    "unet": "ddpm_jax.networks",
}
__all__ = [
    "Experiment",
    "Model",
    "__version__",
    "build",
    "draw",
    "load",
    "load_pretrained",
    "losses",
    "make_sample_fn",
    "read_config",
    "unet",
]


def __getattr__(name):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
