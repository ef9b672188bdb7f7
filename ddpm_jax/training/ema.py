"""Averages of the parameters over training, and others reconstructed of stored ones.

An average moves by `average += step_size * (params - average)` after each update. Its
kind is a function (t, batch_size, settings) -> step_size, 1 less the decay beta, of the
number t = 1, 2, … of the update and the images of each; the first update copies.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

MAIN = "ema"  # the average from which is drawn where no other is asked for
WIDEST = 12**-0.5  # sigma_rel of gamma 0, the mean of all steps


def constant(t, batch_size: int, decay: float = 0.9999):
    """Returns 1 - decay, as Ho et al. (2020) average.

    Args:
      t: the number of the update, from 1.
      batch_size: images of an update, which make no difference.
      decay: beta, in [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must lie in [0, 1), got {decay}")
    return 1 - jnp.where(t == 1, 0.0, decay)


def half_life(t, batch_size: int, images: float, ramp_up: float | None = 0.05):
    """Returns the step size with which a weight halves over so many images.

    beta = 2^(-batch_size / h), h = min(images, ramp_up * images seen before); Karras et
    al. (2022) train with 500,000 images and a ramp of 0.05 on CIFAR-10.

    Args:
      t: the number of the update, from 1.
      batch_size: images of an update.
      images: the half-life in images.
      ramp_up: its share of the images seen, while that is less; None for no ramp.
    """
    if not 0 < images < math.inf or (ramp_up is not None and ramp_up <= 0):
        raise ValueError(f"images and ramp_up must be positive: {images}, {ramp_up}")
    updates = images / batch_size
    if ramp_up is not None:
        updates = jnp.minimum(updates, ramp_up * (t - 1.0))
    return jnp.where(t == 1, 1.0, -jnp.expm1(-math.log(2) / updates))


def power(t, batch_size: int, sigma_rel: float):
    """Returns the step size of a profile (weight of update tau) ~ tau^gamma.

    beta = (1 - 1/t)^(gamma + 1), equation 127 of Karras et al. (2024), of which any
    other width is reconstructed of snapshots afterwards.

    Args:
      t: the number of the update, from 1.
      batch_size: images of an update, which make no difference.
      sigma_rel: the profile's standard deviation as a share of the training, below
        0.289, the mean of all steps.
    """
    return -jnp.expm1((gamma_of(sigma_rel) + 1) * jnp.log1p(-1.0 / t))


AVERAGES = {"constant": constant, "half_life": half_life, "power": power}


class Average(NamedTuple):
    """A kind of average with its settings; equal ones compare as equal.

    Attributes:
      function: of `AVERAGES`, or of the same form.
      settings: its further arguments, as pairs.
    """

    function: Callable
    settings: tuple[tuple[str, Any], ...] = ()

    def __call__(self, t, batch_size: int = 1):
        return self.function(t, batch_size, **dict(self.settings))

    @property
    def sigma_rel(self) -> float | None:
        """That of a power function, None of others."""
        return dict(self.settings)["sigma_rel"] if self.function is power else None


def update(averages: Mapping[str, Any], params, step_sizes: Mapping[str, Any]) -> dict:
    """Moves each average towards the parameters by its step size."""
    return {
        name: optax.incremental_update(params, average, step_sizes[name])
        for name, average in averages.items()
    }


def gamma_of(sigma_rel: float) -> float:
    """Returns the exponent of a profile of this width (equation 126, Algorithm 2).

    Raises:
      ValueError: for a width outside (0, 0.289).
    """
    if not 0 < sigma_rel < WIDEST:
        raise ValueError(
            f"sigma_rel must lie between 0 and {WIDEST:.3f}, got {sigma_rel}"
        )
    inverse = sigma_rel**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(roots[np.abs(roots.imag) < 1e-9].real.max())


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the inner products of profiles (equation 151).

    Args:
      a: rows of (t, gamma) [num, 2], float64.
      b: the same of others [other, 2].

    Returns:
      [num, other], in 1 / update.
    """
    (ta, ga), (tb, gb) = a.T[:, :, None], b.T[:, None, :]
    smaller = np.where(ta < tb, gb, ga)
    ratio = np.minimum(ta, tb) / np.maximum(ta, tb)
    scale = (ga + 1) * (gb + 1) / (ga + gb + 1)
    return scale * ratio**smaller / np.maximum(ta, tb)


def coefficients(
    stored: Sequence[tuple[float, float]], t: float, sigma_rel: float
) -> np.ndarray:
    """Returns how to add stored averages up to another one (Algorithm 3).

    Args:
      stored: of each, (the update it was stored after, its sigma_rel).
      t: the update after which the other one is wanted.
      sigma_rel: its width.

    Returns:
      float64 [num], whose sum is 1: the least squares fit of the profiles.
    """
    rows = np.array([(time, gamma_of(width)) for time, width in stored], np.float64)
    wanted = np.array([(t, gamma_of(sigma_rel))], np.float64)
    products = overlaps(rows, rows)
    found = np.linalg.lstsq(products, overlaps(rows, wanted)[:, 0], rcond=1e-13)[0]
    return found / found.sum()
