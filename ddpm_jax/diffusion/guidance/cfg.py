"""Classifier-free guidance: away from what is predicted without a condition."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ddpm_jax.diffusion.denoisers import Denoiser
from ddpm_jax.diffusion.guidance.base import extrapolate
from ddpm_jax.diffusion.process import Prediction, from_x_0
from ddpm_jax.diffusion.schedules import Schedule


def guide(denoiser: Denoiser, scale, null) -> Denoiser:
    """Classifier-free guidance: null + scale (cond - null) (Ho & Salimans 2022).

    At a Python 0 or 1 the network is called once, otherwise on pairs c0 n0 c1 n1 ...,
    which keep a sharded batch in its place. A learned variance is the condition's.

    Args:
      denoiser: a denoiser trained with conditions dropped at random.
      scale: guidance scale, a float or a traced scalar.
      null: the condition that means none, without a batch axis (a class label: the
        number of classes).
    """

    def guided(x_t, t, cond):
        if isinstance(scale, (int, float)) and scale in (0, 1):
            return denoiser(x_t, t, cond if scale == 1 else _none(cond, null))
        weak, strong = _pair(denoiser, x_t, t, cond, null)
        return extrapolate(weak, strong, scale)

    return guided


def guide_rescaled(
    denoiser: Denoiser, schedule: Schedule, scale, null, strength: float = 0.7
) -> Denoiser:
    """Classifier-free guidance without its added contrast (Lin et al. 2024, 3.4).

    The guided x_0 of each image is scaled towards the standard deviation of the
    conditional one. Lin et al. scale what the network predicts, which may be another
    thing than x_0.

    Args:
      denoiser: a denoiser trained with conditions dropped at random.
      schedule: the noise schedule.
      scale: guidance scale, a float or a traced scalar.
      null: the condition that means none, as in `guide`.
      strength: φ of Eq. 16, from 0 for `guide` to 1 for the same deviation.
    """

    def guided(x_t, t, cond):
        if isinstance(scale, (int, float)) and scale == 1:
            return denoiser(x_t, t, cond)
        weak, strong = _pair(denoiser, x_t, t, cond, null)
        prediction = extrapolate(weak, strong, scale)
        axes = tuple(range(1, x_t.ndim))

        def deviation(p):
            variance = jnp.var(p.x_0, axis=axes, keepdims=True)
            return jnp.sqrt(variance + 1e-12)  # an even picture has none

        ratio = deviation(strong) / deviation(prediction)
        x_0 = (1 + strength * (ratio - 1)) * prediction.x_0
        eps = from_x_0(schedule, x_t, t, x_0).eps
        return Prediction(x_0, eps, prediction.fraction)

    return guided


def _none(cond, null):
    if cond is None:
        raise ValueError("guidance needs a condition for each image, such as a class")
    cond = jnp.asarray(cond)  # NumPy's classes are of 64 bits
    return jnp.broadcast_to(jnp.asarray(null, cond.dtype), cond.shape)


def _pair(denoiser, x_t, t, cond, null) -> tuple[Prediction, Prediction]:
    """The unconditional and the conditional prediction, of one network call."""
    times = jnp.broadcast_to(t, x_t.shape[:1])
    given = (x_t, x_t), (times, times), (cond, _none(cond, null))
    both = denoiser(*(_interleave(*pair) for pair in given))
    strong, weak = (jax.tree.map(lambda p, i=i: p[i::2], both) for i in (0, 1))
    return weak, strong


def _interleave(a: Array | np.ndarray, b: Array | np.ndarray) -> Array:
    """[a0, b0, a1, b1, ...] along the first axis."""
    return jnp.stack([a, b], axis=1).reshape(2 * a.shape[0], *a.shape[1:])
