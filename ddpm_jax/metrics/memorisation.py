"""Whether samples copy training images: how near they lie, beside unseen images."""

from typing import NamedTuple

import numpy as np

from ddpm_jax.data.images import grid
from ddpm_jax.metrics.checks import check
from ddpm_jax.metrics.precision_recall import nearest


class Memorisation(NamedTuple):
    """How near samples lie to the training set.

    Attributes:
      score: the probability that a random sample lies nearer to the training set than
        a random held-out example does, in [0, 1], ties counted half. 0.5: as near as
        unseen data; towards 1: copies; towards 0: far from the data.
      error: standard error of the score, for this training set.
      copies: fraction of samples at distance 0 of a training example, in [0, 1].
      distances: of each sample to its nearest training example, float64 [num].
      indices: which training example that is, int [num].
      test_distances: of each held-out example to its nearest training example,
        float64 [num_test].
    """

    score: float
    error: float
    copies: float
    distances: np.ndarray
    indices: np.ndarray
    test_distances: np.ndarray


def memorisation(
    generated: np.ndarray, train: np.ndarray, test: np.ndarray
) -> Memorisation:
    """Compares distances to the training set, of samples and of held-out examples.

    The score is the Mann-Whitney statistic U / (num num_test) on which the test for
    data copying of Meehan, Chaudhuri & Dasgupta (2020) stands, over one cell, all of
    the space. Its standard error is that of DeLong et al. (1988). Far samples offset
    copies in it: look at the smallest distances too.

    Args:
      generated: features or flat images, any real dtype, [num, dim].
      train: the same of what the model was trained on, [num_train, dim].
      test: the same of examples of the same distribution that it was not trained on,
        [num_test, dim].

    Returns:
      The score, and all that it was made of.

    Raises:
      ValueError: if features are not finite or not [num, dim] of one dim, if there are
        fewer than two samples or held-out examples, and for an empty training set.
    """
    generated, test = check(generated, test, least=2)
    distances, indices = nearest(generated, train)
    test_distances, _ = nearest(test, train)
    nearer = _fraction_beyond(distances, test_distances)
    farther = _fraction_beyond(test_distances, distances)
    variance = sum(np.var(each, ddof=1) / len(each) for each in (nearer, farther))
    return Memorisation(
        float(np.mean(nearer)),
        float(np.sqrt(variance)),
        float(np.mean(distances == 0)),
        distances,
        indices,
        test_distances,
    )


def pairs(samples: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Shows each sample to the left of its nearest training image.

    Args:
      samples: uint8 [N, H, W, C], in the order in which to show them, row by row; the
        nearest first is what to look at.
      neighbours: uint8 [N, H, W, C].

    Returns:
      A picture, uint8 [height, width, C], with narrow lines within a pair and wide
      ones between pairs.

    Raises:
      ValueError: if they are not uint8 [N, H, W, C] of one shape, with N > 0.
    """
    samples, neighbours = np.asarray(samples), np.asarray(neighbours)
    if samples.shape != neighbours.shape:
        raise ValueError(
            f"samples are {list(samples.shape)} and neighbours "
            f"{list(neighbours.shape)}: give one of the same size for each"
        )
    if not len(samples):
        raise ValueError("there are no samples to show")
    pictures = [
        grid(np.stack(pair), 2) for pair in zip(samples, neighbours, strict=True)
    ]
    return grid(np.stack(pictures), scale=1, pad=8)


def _fraction_beyond(distances, others):
    """For each distance, the fraction of others that are larger; ties count half."""
    others = np.sort(others)
    sides = [np.searchsorted(others, distances, side) for side in ("left", "right")]
    return 1 - sum(sides) / (2 * len(others))
