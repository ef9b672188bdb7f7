"""Nearest neighbours, and the scores that take balls around examples for a manifold.

Distances are Euclidean, float64, and computed between blocks of examples: memory is
some block (block + dim) numbers beside the features, and every pair counts.
Squared distances come from |x|^2 + |y|^2 - 2 x · y about a common centre. Two of them
that agree to 1e-11 of the norms are taken for equal, so that ties and duplicates do not
depend on rounding, nor on the block.
"""

from collections.abc import Iterator

import numpy as np

from ddpm_jax.metrics.checks import check

_ROUNDING = 1e-11  # of |x|^2 + |y|^2; far below what float32 features resolve


def precision_recall(
    generated: np.ndarray, real: np.ndarray, k: int = 3, block: int = 2048
) -> tuple[float, float]:
    """Improved precision and recall of Kynkäänniemi et al. (2019).

    The manifold of a set is the union of balls around its examples that reach to their
    k-th nearest other example, boundary included.

    Args:
      generated: features, any real dtype, [num, dim].
      real: features of data, [num, dim]; the numbers may differ.
      k: which neighbour bounds a ball.
      block: how many examples are compared at once.

    Returns:
      Precision, the fraction of generated inside the real manifold (quality), and
      recall, the fraction of real inside the generated manifold (variety).

    Raises:
      ValueError: if features are not finite, not [num, dim] of one dim, or k or fewer,
        and for k or block < 1.
    """
    generated, real = _check_sets(generated, real, k, block)
    in_real, _ = _members(generated, real, k, block, boundary=True)
    in_generated, _ = _members(real, generated, k, block, boundary=True)
    return float(np.mean(in_real > 0)), float(np.mean(in_generated > 0))


def density_coverage(
    generated: np.ndarray, real: np.ndarray, k: int = 5, block: int = 2048
) -> tuple[float, float]:
    """Density and coverage of Naeem et al. (2020), which outliers distort less.

    Only real examples have balls, and their boundary is not included.

    Args:
      generated: features, any real dtype, [num, dim].
      real: features of data, [num, dim]; the numbers may differ.
      k: which neighbour bounds a ball.
      block: how many examples are compared at once.

    Returns:
      Density, how many real balls a generated example lies in, on average and divided
      by k (quality; it may exceed 1), and coverage, the fraction of real balls that
      hold a generated example (variety).

    Raises:
      ValueError: if features are not finite, not [num, dim] of one dim, or k or fewer,
        and for k or block < 1.
    """
    generated, real = _check_sets(generated, real, k, block)
    counts, covered = _members(generated, real, k, block, boundary=False)
    return float(np.mean(counts) / k), float(np.mean(covered))


def nearest(
    queries: np.ndarray, references: np.ndarray, block: int = 2048
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest reference of every query, as to ask whether it is a copy.

    Args:
      queries: features or flat images, any real dtype, [num, dim].
      references: where to look, [num, dim].
      block: how many examples are compared at once.

    Returns:
      Distances, float64 [num], exactly 0 for a copy (they are computed once more, from
      differences), and int indices [num] into the references; of references that are
      equally near to rounding, any.

    Raises:
      ValueError: if features are not finite or not [num, dim] of one dim, if there are
        no references, and for block < 1.
    """
    _check_block(block)
    check(references)
    queries, references = check(queries, references, least=0)
    centre = _centre(references)
    distances, indices = np.zeros(len(queries)), np.zeros(len(queries), int)
    for rows, some in _blocks(queries, centre, block):
        best, found = np.full(len(some), np.inf), np.zeros(len(some), int)
        for columns, others in _blocks(references, centre, block):
            squares = _squared_distances(some, others)
            index = np.argmin(squares, axis=1)
            square = squares[np.arange(len(some)), index]
            found = np.where(square < best, columns.start + index, found)
            best = np.minimum(square, best)
        gap = queries[rows].astype(np.float64) - references[found].astype(np.float64)
        distances[rows], indices[rows] = np.linalg.norm(gap, axis=1), found
    return distances, indices


def _members(points, centres, k, block, boundary):
    """Returns how many balls each point is in, and whether each ball holds a point."""
    middle = _centre(centres)
    radii_sq = _squared_radii(centres, k, block)
    slack = -_ROUNDING if boundary else _ROUNDING
    counts, occupied = np.zeros(len(points), int), np.zeros(len(centres), bool)
    for rows, some in _blocks(points, middle, block):
        for columns, others in _blocks(centres, middle, block):
            squares = _squared_distances(some, others, slack)
            compare = np.less_equal if boundary else np.less
            inside = compare(squares, radii_sq[columns])
            counts[rows] += np.sum(inside, axis=1)
            occupied[columns] |= np.any(inside, axis=0)
    return counts, occupied


def _squared_radii(features, k, block):
    """Squared distances to the k-th nearest other example, [num]."""
    centre = _centre(features)
    radii_sq = np.zeros(len(features))
    for rows, some in _blocks(features, centre, block):
        closest = np.full((len(some), k + 1), np.inf)  # itself among them, at 0
        for _, others in _blocks(features, centre, block):
            squares = np.concatenate(
                [closest, _squared_distances(some, others)], axis=1
            )
            squares.partition(k, axis=1)
            closest = squares[:, : k + 1].copy()
        radii_sq[rows] = closest[:, k]
    return radii_sq


def _squared_distances(x, y, slack=0.0):
    """Between all rows, [len(x), len(y)]; slack adds that part of their norms."""
    squares = x @ y.T
    squares *= -2
    squares += (1 + slack) * np.sum(np.square(x), axis=1)[:, None]
    squares += (1 + slack) * np.sum(np.square(y), axis=1)
    return np.maximum(squares, 0, out=squares)


def _blocks(features, centre, block) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields which rows, and the rows in float64 about the centre."""
    for start in range(0, len(features), block):
        rows = slice(start, start + block)
        yield rows, features[rows].astype(np.float64) - centre


def _centre(features):
    """Where to put the origin: small norms keep small distances exact."""
    return np.mean(features, axis=0, dtype=np.float64)


def _check_sets(generated, real, k, block):
    _check_block(block)
    if k < 1:
        raise ValueError(f"k must be positive, got {k}")
    return check(generated, real, least=k + 1)


def _check_block(block):
    if block < 1:
        raise ValueError(f"block must be positive, got {block}")
