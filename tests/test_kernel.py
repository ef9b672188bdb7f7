"""Scores of features: against torch-fidelity, closed forms and brute force."""

import numpy as np
import pytest

from ddpm_jax.metrics import frechet, precision_recall
from ddpm_jax.metrics import kernel as scores

GOLDEN = np.load("tests/data/metrics.npz")
GENERATED, REAL, LOGITS = (GOLDEN[key] for key in ("gen", "real", "logits"))


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def moments_of(features):
    return frechet.update(frechet.empty(features.shape[1]), features)


def gaussian(mean, covariance):
    return frechet.Gaussian(np.asarray(mean), np.asarray(covariance))


def distance(features, others):
    gaussians = [frechet.gaussian(moments_of(each)) for each in (features, others)]
    return frechet.frechet_distance(*gaussians)


def assert_same(a, b, **tolerance):
    assert a.num == b.num
    np.testing.assert_allclose(a.mean, b.mean, **tolerance)
    np.testing.assert_allclose(a.scatter, b.scatter, **tolerance)


def assert_golden(ours, key, rtol=1e-6, atol=0.0):
    names = [f"{key}/mean", f"{key}/std"]
    np.testing.assert_allclose(
        ours, [GOLDEN[name] for name in names], rtol, atol, err_msg=key
    )


# Against torch-fidelity.


@pytest.mark.parametrize("num_splits", [1, 10])
@pytest.mark.parametrize("key, seed", [("isc", 2020), ("isc_noshuffle", None)])
def test_inception_score(key, seed, num_splits):
    ours = scores.inception_score(LOGITS, num_splits, seed)
    assert_golden(ours, f"{key}/splits{num_splits}", atol=1e-12)


def test_inception_score_of_openai():
    """Chunks of 300 of the 600, in order."""
    ours, _ = scores.inception_score(LOGITS, 2, None)
    np.testing.assert_allclose(ours, GOLDEN["isc_openai"], 1e-6)


def test_frechet_distance():
    ours = distance(GENERATED, REAL)
    np.testing.assert_allclose(ours, GOLDEN["fid"], 1e-6)


def test_kernel_distance():
    ours = scores.kernel_distance(GENERATED, REAL, 10, 100)
    assert_golden(ours, "kid_f64")
    assert_golden(ours, "kid", rtol=0, atol=1e-6)  # its kernels are float32


@pytest.mark.parametrize("k", [3, 5])
def test_precision_recall(k):
    precision, recall = precision_recall.precision_recall(GENERATED, REAL, k)
    f_score = 2 * precision * recall / (precision + recall)
    golden = [GOLDEN[f"prc/k{k}/{name}"] for name in ("precision", "recall", "f_score")]
    np.testing.assert_allclose([precision, recall, f_score], golden, 1e-6)


# Moments and the Fréchet distance.


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_are_those_of_numpy(offset):
    features = normal(0, 300, 5) @ normal(1, 5, 5) + offset
    ours = moments_of(features)
    np.testing.assert_allclose(ours.mean, np.mean(features, 0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        frechet.gaussian(ours).covariance, np.cov(features.T), rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_streaming_and_merging_are_all_at_once(offset):
    features = normal(0, 300, 5) + offset
    batches = np.split(features, [1, 1, 60, 200])  # one batch is empty
    once = moments_of(features)
    parts = [moments_of(batch) for batch in batches]
    streamed = frechet.empty(5)
    merged = frechet.empty(5)
    backwards = frechet.empty(5)
    for batch, part, other in zip(batches, parts, reversed(parts), strict=True):
        streamed = frechet.update(streamed, batch)
        merged = frechet.merge(merged, part)
        backwards = frechet.merge(other, backwards)
    for ours in (streamed, merged, backwards):
        assert_same(ours, once, rtol=1e-9, atol=1e-7)


def test_moments_of_float32_are_float64():
    features = normal(0, 100, 4).astype(np.float32)
    assert_same(moments_of(features), moments_of(features.astype(float)), rtol=0)


@pytest.mark.parametrize("num", [20, 500])  # also fewer than dimensions
def test_frechet_distance_to_itself_is_zero(num):
    ours = frechet.gaussian(moments_of(10 * normal(0, num, 40)))
    assert 0 <= frechet.frechet_distance(ours, ours) < 1e-6


def test_frechet_distance_has_a_closed_form():
    """Of covariances that commute, Σ (√a - √b)^2; rotations change nothing."""
    a, b = np.array([1.0, 4.0, 0.25, 0.0]), np.array([9.0, 1.0, 0.25, 2.0])
    mean = np.array([1.0, -2.0, 0.5, 0.0])
    expected = np.sum((np.sqrt(a) - np.sqrt(b)) ** 2) + mean @ mean
    rotation, _ = np.linalg.qr(normal(3, 4, 4))
    for turn in (np.eye(4), rotation):
        one = gaussian(np.zeros(4), turn @ np.diag(a) @ turn.T)
        other = gaussian(turn @ mean, turn @ np.diag(b) @ turn.T)
        for pair in ((one, other), (other, one)):
            ours = frechet.frechet_distance(*pair)
            np.testing.assert_allclose(ours, expected, rtol=1e-7)


def test_frechet_distance_of_covariances_that_do_not_commute():
    """In two dimensions tr(M^½) = √(tr M + 2 √det M)."""
    a, b = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
    product = a @ b
    overlap = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    ours = frechet.frechet_distance(gaussian([0, 0], a), gaussian([0, 0], b))
    np.testing.assert_allclose(ours, np.trace(a + b) - 2 * overlap, rtol=1e-12)


def test_a_shift_adds_its_square():
    features, others, shift = normal(0, 200, 6), normal(1, 150, 6) * 2, normal(2, 6)
    ours, other = (frechet.gaussian(moments_of(x)) for x in (features, others))
    other = other._replace(mean=ours.mean)
    before = frechet.frechet_distance(ours, other)
    after = frechet.frechet_distance(ours, other._replace(mean=ours.mean + shift))
    np.testing.assert_allclose(after - before, shift @ shift, rtol=1e-10)


# Inception score and kernel distance.


def test_inception_score_of_the_extremes():
    certain = 1e4 * np.eye(5)[np.arange(100) % 5]  # also nothing overflows
    assert scores.inception_score(certain, 1) == pytest.approx((5, 0))
    assert scores.inception_score(certain, 4, None) == pytest.approx((5, 0))
    assert scores.inception_score(np.zeros((100, 5))) == pytest.approx((1, 0))
    assert scores.inception_score(certain[::5], 1) == pytest.approx((1, 0))


def test_inception_score_of_one_split_knows_no_order():
    assert scores.inception_score(LOGITS, 1, 0) == pytest.approx(
        scores.inception_score(LOGITS, 1, None), rel=1e-12
    )


def test_kernel_distance_is_unbiased():
    """Around 0 for equal distributions, whatever the size of the subsets."""
    x, y = normal(0, 4000, 8), normal(1, 4000, 8)
    for size, num in ((5, 2000), (50, 200)):
        mean, std = scores.kernel_distance(x, y, num, size)
        assert abs(mean) < 4 * std / np.sqrt(num)
    far, _ = scores.kernel_distance(x + 1, y, 20, 100)
    assert far > 1


def test_kernel_distance_by_its_definition():
    x, y = normal(0, 6, 3), normal(1, 6, 3) + 0.5
    kernel = lambda a, b: (a @ b / 3 + 1) ** 3
    off = [(i, j) for i in range(6) for j in range(6) if i != j]
    expected = (
        np.mean([kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in off])
        - 2 * np.mean([kernel(a, b) for a in x for b in y])
    )  # fmt: skip
    ours = scores.kernel_distance(x, y, 3, 6)  # every subset is the whole
    assert ours == pytest.approx((expected, 0), rel=1e-12, abs=1e-12)


# Neighbours and manifolds.


def distances(a, b):
    return np.linalg.norm(a[:, None] - b[None], axis=2)


def brute_force(generated, real, k):
    """Precision, recall, density and coverage, from all distances at once."""
    radius = lambda x: np.sort(distances(x, x), axis=1)[:, k]
    across = distances(generated, real)
    inside = across < radius(real)
    return (
        np.mean(np.any(across <= radius(real), axis=1)),
        np.mean(np.any(distances(real, generated) <= radius(generated), axis=1)),
        np.mean(np.sum(inside, axis=1)) / k,
        np.mean(np.any(inside, axis=0)),
    )


@pytest.mark.parametrize("block", [7, 30, 2048])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_manifolds_by_brute_force(k, block):
    generated, real = 0.8 * normal(0, 50, 3) + 0.5, normal(1, 40, 3)
    ours = (
        *precision_recall.precision_recall(generated, real, k, block),
        *precision_recall.density_coverage(generated, real, k, block),
    )
    expected = brute_force(generated, real, k)
    assert min(expected) > 0.1 and max(expected[:2]) < 1
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


@pytest.mark.parametrize("block", [7, 64, 2048])
def test_the_same_set(block):
    """Boundaries are ties here: in by one definition, out by the other."""
    features = normal(0, 100, 64) + 100
    assert precision_recall.precision_recall(features, features, block=block) == (1, 1)
    assert precision_recall.density_coverage(features, features, block=block) == (1, 1)


@pytest.mark.parametrize("block", [7, 64])
def test_duplicates(block):
    """Balls of no radius hold their centre, or nothing if boundaries do not count."""
    features = np.repeat(normal(0, 10, 64) + 10, 8, axis=0)
    assert precision_recall.precision_recall(features, features, block=block) == (1, 1)
    assert precision_recall.density_coverage(features, features, block=block) == (0, 0)


def test_far_sets():
    a, b = normal(0, 30, 4), normal(1, 40, 4) + 100
    assert precision_recall.precision_recall(a, b) == (0, 0)
    assert precision_recall.density_coverage(a, b) == (0, 0)


def test_which_is_generated():
    """One mode of two: all of it is good, half of the data is missed."""
    real = np.concatenate([normal(0, 50, 2), normal(1, 50, 2) + 100])
    precision, recall = precision_recall.precision_recall(0.1 * normal(2, 60, 2), real)
    assert precision == 1 and recall < 0.5
    density, coverage = precision_recall.density_coverage(normal(2, 60, 2), real)
    assert density > 0.5 and 0.2 < coverage <= 0.5


@pytest.mark.parametrize("block", [6, 20, 2048])
def test_nearest(block):
    queries, references = normal(0, 20, 5) + 1e8, normal(1, 35, 5) + 1e8  # far off 0
    queries[4] = references[17]
    found, indices = precision_recall.nearest(queries, references, block)
    every = distances(queries, references)
    np.testing.assert_array_equal(indices, np.argmin(every, axis=1))
    np.testing.assert_allclose(found, np.min(every, axis=1), rtol=1e-12)
    assert found[4] == 0


def test_nearest_of_images_and_of_none():
    images = np.random.default_rng(0).integers(0, 256, (10, 12), np.uint8)
    found, indices = precision_recall.nearest(images[::-1], images)
    np.testing.assert_array_equal(indices, np.arange(10)[::-1])
    np.testing.assert_array_equal(found, 0)
    found, indices = precision_recall.nearest(images[:0], images)
    assert found.shape == indices.shape == (0,)


# Refusals.

A, NARROW = normal(0, 10, 3), normal(0, 10, 2)
BROKEN = np.where(np.arange(10)[:, None] == 4, [np.inf, -np.inf, 0], A)


@pytest.mark.parametrize("score", [
    distance,
    lambda x, y: scores.kernel_distance(x, y, 2, 5),
    precision_recall.precision_recall,
    precision_recall.density_coverage,
    precision_recall.nearest,
])  # fmt: skip
@pytest.mark.parametrize("x, y, message", [
    (A, NARROW, "one width"),
    (A, BROKEN, "finite"),
    (BROKEN, A, "finite"),
    (A, A[:0], "at least"),
])  # fmt: skip
def test_refusals_of_all(score, x, y, message):
    with pytest.raises(ValueError, match=message):
        score(x, y)


@pytest.mark.parametrize("call, message", [
    (lambda: frechet.update(frechet.empty(3), NARROW), "one width"),
    (lambda: frechet.update(frechet.empty(3), A[0]), r"\[num, dim\]"),
    (lambda: frechet.gaussian(moments_of(A[:1])), "at least 2"),
    (lambda: scores.inception_score(A, 0), "num_splits"),
    (lambda: scores.inception_score(A, 11), "at least 11"),
    (lambda: scores.inception_score(BROKEN), "finite"),
    (lambda: scores.kernel_distance(A, A), "at least 1000"),
    (lambda: scores.kernel_distance(A, A, 0, 5), "num_subsets"),
    (lambda: scores.kernel_distance(A, A, 5, 1), "subset_size"),
    (lambda: precision_recall.precision_recall(A, A[:3]), "at least 4"),
    (lambda: precision_recall.precision_recall(A, A, 0), "k must"),
    (lambda: precision_recall.density_coverage(A[:5], A), "at least 6"),
    (lambda: precision_recall.nearest(A, A, 0), "block"),
    (lambda: precision_recall.nearest(A[:, None], A), r"\[num, dim\]"),
])  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
