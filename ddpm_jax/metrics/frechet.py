"""Mean and covariance of features as they stream by, and the distance of two Gaussians.

Everything is float64 on the host: covariances in float32 cost up to 0.1 of the Fréchet
distance. The moments of batches, hosts or shards merge into those of the whole (Chan et
al., 1979), in any order, equal to rounding; no power of a large mean is ever subtracted
from another.
"""

from typing import NamedTuple

import numpy as np

from ddpm_jax.metrics.checks import check


class Moments(NamedTuple):
    """The first two moments of a set of features.

    Attributes:
      num: how many examples were seen.
      mean: float64 [dim].
      scatter: sum of the outer products of deviations from the mean, float64
        [dim, dim].
    """

    num: int
    mean: np.ndarray
    scatter: np.ndarray


class Gaussian(NamedTuple):
    """A normal distribution of features.

    Attributes:
      mean: float64 [dim].
      covariance: float64 [dim, dim].
    """

    mean: np.ndarray
    covariance: np.ndarray


def empty(dim: int) -> Moments:
    """Returns the moments of no examples, to start from."""
    return Moments(0, np.zeros(dim), np.zeros((dim, dim)))


def update(moments: Moments, features: np.ndarray) -> Moments:
    """Adds examples.

    Args:
      moments: of the examples so far.
      features: any real dtype, [num, dim]; none at all is fine.

    Raises:
      ValueError: if features are not finite, or not [num, dim] of the moments' dim.
    """
    (features,) = check(features, least=0)
    if not len(features):
        return moments
    features = features.astype(np.float64)
    mean = np.mean(features, axis=0)
    deviations = features - mean
    return merge(moments, Moments(len(features), mean, deviations.T @ deviations))


def merge(a: Moments, b: Moments) -> Moments:
    """Returns the moments of both sets together.

    Raises:
      ValueError: if their widths differ.
    """
    _check_widths(a, b)
    num = a.num + b.num
    if not num:
        return a
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.num / num)
    between = np.outer(delta, delta) * (a.num * b.num / num)
    return Moments(num, mean, a.scatter + b.scatter + between)


def gaussian(moments: Moments) -> Gaussian:
    """Returns the Gaussian of these moments, with the unbiased covariance.

    The rank of that is at most num - 1. With num <= dim, directions without variance
    are an artefact of too few examples; whoever reports a score should say so.

    Raises:
      ValueError: for fewer than two examples.
    """
    if moments.num < 2:
        raise ValueError(f"a covariance needs at least 2 examples, got {moments.num}")
    return Gaussian(moments.mean, moments.scatter / (moments.num - 1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """The squared Fréchet distance of two Gaussians (Heusel et al., 2017).

        |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^½)

    On pool features of the Inception network this is the FID. It is biased upwards by
    too few examples: compare numbers of equal num only. Where num <= dim the
    covariances are singular; the distance is then defined, but says little (see
    `gaussian`).

    Args:
      a: one Gaussian.
      b: the other; the distance is symmetric to rounding.

    Returns:
      The distance, at least 0; rounding below 0 is cut.

    Raises:
      ValueError: for widths that differ.
    """
    _check_widths(a, b)
    # With C_a = R R^T, the eigenvalues of C_a C_b are those of the symmetric R^T C_b R,
    # so nothing is ever complex, as square roots of C_a C_b become.
    values, vectors = np.linalg.eigh(a.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))
    squares = np.linalg.eigvalsh(root.T @ b.covariance @ root)
    overlap = np.sum(np.sqrt(np.maximum(squares, 0)))
    shift = np.sum(np.square(a.mean - b.mean))
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2 * overlap
    return max(float(shift + spread), 0.0)


def _check_widths(a, b):
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"moments must be of one width, got {len(a.mean)} and {len(b.mean)}"
        )
