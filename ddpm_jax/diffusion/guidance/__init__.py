"""Guidance: denoisers that are pulled towards a condition, made of other denoisers.

Every method moves a prediction away from a weaker one, or along a gradient:

    weak + scale (strong - weak)           classifier-free, autoguidance
    score + scale ∇ log p(y | x_t)         classifier guidance

In the first, the scale counts as in most code: 0 is the weak prediction alone, 1 the
strong one, more pushes further (the weight w of Ho & Salimans is scale - 1).
"""

from ddpm_jax.diffusion.guidance.autoguidance import autoguide
from ddpm_jax.diffusion.guidance.cfg import guide, guide_rescaled
from ddpm_jax.diffusion.guidance.classifier import classifier_guide, shift
from ddpm_jax.diffusion.guidance.interval import within

# What the key `guidance` of the section `denoiser` names.
GUIDANCE = {"cfg": guide}

__all__ = [
    "GUIDANCE",
    "autoguide",
    "classifier_guide",
    "guide",
    "guide_rescaled",
    "shift",
    "within",
]
