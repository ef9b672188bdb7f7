"""Inception score and kernel distance, in float64 on the host.

Splits, subsets and seeds default to those of torch-fidelity, so that numbers compare.
"""

import numpy as np

from ddpm_jax.metrics.checks import check


def inception_score(
    logits: np.ndarray, num_splits: int = 10, shuffle_seed: int | None = 2020
) -> tuple[float, float]:
    """The inception score of Salimans et al. (2016), exp E[KL(p(y | x) ‖ p(y))].

    The logits are those of the Inception network without the bias of its last layer, as
    in the original code. Torch-fidelity shuffles examples, the original does not; Ho et
    al. (2020) take one split.

    Args:
      logits: any real dtype, [num, classes].
      num_splits: slices i num // num_splits of the examples are scored by themselves.
      shuffle_seed: permutes the examples first; None keeps their order.

    Returns:
      Mean and standard deviation (ddof 0) over the splits; the mean is in [1, classes].

    Raises:
      ValueError: if logits are not finite or not [num, classes], for num_splits < 1,
        and for fewer examples than splits.
    """
    if num_splits < 1:
        raise ValueError(f"num_splits must be positive, got {num_splits}")
    (logits,) = check(logits, least=num_splits)
    num = len(logits)
    if shuffle_seed is not None:
        logits = logits[np.random.RandomState(shuffle_seed).permutation(num)]
    edges = [i * num // num_splits for i in range(num_splits + 1)]
    scores = [
        _score(logits[start:stop].astype(np.float64))
        for start, stop in zip(edges[:-1], edges[1:], strict=True)
    ]
    return float(np.mean(scores)), float(np.std(scores))


def kernel_distance(
    generated: np.ndarray,
    real: np.ndarray,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float]:
    """The kernel distance (KID) of Binkowski et al. (2018), on random subsets.

    Each is the unbiased squared MMD under the kernel (x · y / dim + 1)^3: its mean is 0
    for equal distributions, so it may be negative, and unlike that of the FID does not
    depend on how many examples there are.

    Args:
      generated: features, any real dtype, [num, dim].
      real: features of data, [num, dim].
      num_subsets: how many pairs of subsets are compared.
      subset_size: examples in each, drawn without replacement, at least 2.
      seed: of the draws; generated is drawn first, as by torch-fidelity.

    Returns:
      Mean and standard deviation (ddof 0) over the subsets.

    Raises:
      ValueError: if features are not finite, not [num, dim] of one dim, or fewer than
        subset_size, for subset_size < 2, and for num_subsets < 1.
    """
    if num_subsets < 1 or subset_size < 2:
        raise ValueError(
            "num_subsets must be at least 1 and subset_size at least 2, "
            f"got {num_subsets} and {subset_size}"
        )
    generated, real = check(generated, real, least=subset_size)
    random = np.random.RandomState(seed)

    def draw(features):
        chosen = random.choice(len(features), subset_size, replace=False)
        return features[chosen].astype(np.float64)

    distances = [_mmd(draw(generated), draw(real)) for _ in range(num_subsets)]
    return float(np.mean(distances)), float(np.std(distances))


def _score(logits):
    """Exponential of the mean KL divergence of each p(y | x) from their average."""
    shifted = logits - np.max(logits, axis=1, keepdims=True)
    log_p = shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))
    p = np.exp(log_p)
    mean = np.mean(p, axis=0)
    # A class that underflows everywhere adds 0, not 0 log 0.
    log_mean = np.log(np.where(mean > 0, mean, 1))
    return np.exp(np.mean(np.sum(p * (log_p - log_mean), axis=1)))


def _mmd(x, y):
    """The unbiased squared MMD of two sets of equal size, [num, dim]."""
    num = len(x)

    def within(x):
        kernel = _kernel(x, x)
        return (np.sum(kernel) - np.trace(kernel)) / (num * (num - 1))

    return within(x) + within(y) - 2 * np.mean(_kernel(x, y))


def _kernel(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3
