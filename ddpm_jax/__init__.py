"""Denoising diffusion models of images in JAX: DDPM, DDIM, from a laptop to a TPU pod.

The public names; the mathematics is in `ddpm_jax.diffusion`.
"""

import importlib

# Where each lives; imported when asked for, so that the mathematics loads alone.
_HOMES = {
    "build": "ddpm_jax.experiment.build",
    "load": "ddpm_jax.experiment.run",
    "load_pretrained": "ddpm_jax.experiment.load",
    "make_sample_fn": "ddpm_jax.diffusion.samplers.loop",
    "losses": "ddpm_jax.diffusion",
    "unet": "ddpm_jax.networks",
}
__all__ = [*_HOMES]


def __getattr__(name):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
