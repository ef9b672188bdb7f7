"""The feature network that is trained in place: what it learns, and that it repeats."""

import itertools

import jax
import numpy as np
import pytest

from ddpm_jax.data import arrays
from ddpm_jax.metrics import frechet
from ddpm_jax.metrics.features import classifier

TRAIN, TEST = arrays.digits("train"), arrays.digits("test")


def fit(seed=0, num_steps=2, **settings):
    return classifier.fit(TRAIN.images, TRAIN.labels, 10, seed, num_steps, **settings)


@pytest.fixture(scope="module")
def outputs():
    """Images -> (features, logits), of a network trained for a short while."""
    params = fit(num_steps=120, batch_size=64)
    apply = jax.jit(classifier.apply)
    return lambda images: jax.device_get(apply(params, images))


def gaussian(features):
    empty = frechet.empty(classifier.DIM)
    return frechet.gaussian(frechet.update(empty, features))


def accuracy(logits, labels):
    return np.mean(np.argmax(logits, axis=1) == labels)


def test_it_recognises_digits(outputs):
    _, logits = outputs(TEST.images)
    assert accuracy(logits, TEST.labels) > 0.9
    assert accuracy(logits, np.roll(TEST.labels, 1)) < 0.2


def test_features_describe_the_image(outputs):
    """No direction is without variance, so that a change along any counts."""
    features, _ = outputs(TEST.images)
    assert features.shape == (len(TEST), classifier.DIM)
    assert features.dtype == np.float32
    values = np.linalg.eigvalsh(gaussian(features).covariance)
    assert values[0] > 0 and values[-1] < 1e4 * values[0]


def test_distances_rank_images(outputs):
    """Other digits are close, one class or blur further, noise furthest."""
    real = gaussian(outputs(TRAIN.images)[0])
    random = np.random.default_rng(0)
    blurred = np.mean([np.roll(TEST.images, i, axis=2) for i in (-1, 0, 1)], axis=0)
    pixels = random.permuted(TEST.images.reshape(len(TEST), -1), axis=1)

    def distance(images):
        images = images.astype(np.uint8)
        return frechet.frechet_distance(gaussian(outputs(images)[0]), real)

    near = distance(TEST.images)
    assert 10 * near < distance(TEST.images[TEST.labels == 3])
    assert 10 * near < distance(blurred)
    assert 10 * near < distance(pixels.reshape(TEST.images.shape))
    assert 10 * near < distance(random.integers(0, 256, TEST.images.shape))


def test_features_do_not_depend_on_the_batch(outputs):
    together = outputs(TEST.images[:16])
    alone = [outputs(TEST.images[i : i + 1]) for i in range(16)]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(whole, np.concatenate(parts), rtol=0, atol=1e-5)


def test_it_is_always_the_same_network():
    first, again, other = fit(0), fit(0), fit(1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    differ = jax.tree.map(lambda a, b: np.any(a != b), first, other)
    assert all(jax.tree.leaves(differ["head"]))


@pytest.mark.parametrize("batch, counts", [(2, True), (3, False)])
def test_it_takes_as_many_steps_as_asked(batch, counts):
    """Of three steps, the third batch counts and the fourth is not seen."""
    batches = list(itertools.islice(classifier._batches(len(TRAIN), 8, seed=0), 4))
    labels = TRAIN.labels.copy()
    labels[batches[batch]] = 9 - labels[batches[batch]]
    other = classifier.fit(TRAIN.images, labels, 10, num_steps=3, batch_size=8)
    first = fit(num_steps=3, batch_size=8)
    differ = jax.tree.map(lambda a, b: np.any(a != b), first, other)
    assert any(jax.tree.leaves(differ)) == counts


@pytest.mark.parametrize("num, batch_size", [(10, 4), (3, 8)])
def test_every_epoch_has_each_image_once(num, batch_size):
    batches = classifier._batches(num, batch_size, seed=0)
    order = np.concatenate([next(batches) for _ in range(6 * num)])
    epochs = order[: len(order) // num * num].reshape(-1, num)
    np.testing.assert_array_equal(np.sort(epochs), np.arange(num)[None] + 0 * epochs)
    assert len(np.unique(epochs, axis=0)) > 1


@pytest.mark.parametrize("side, most", [(4, 0), (8, 1), (16, 2)])
def test_shifts(side, most):
    """Each row moves by up to 1/8, all amounts occur, and the edge is repeated."""
    images = np.broadcast_to(
        np.arange(side, dtype=np.uint8).reshape(1, side, 1, 1), (64, side, side, 1)
    )
    shifted = np.asarray(classifier._shifted(jax.random.key(0), images))
    assert shifted.dtype == np.uint8
    found = {tuple(image[:, 0, 0].tolist()) for image in shifted}
    rows = np.arange(side)
    expected = {
        tuple(np.clip(rows + by, 0, side - 1).tolist()) for by in range(-most, most + 1)
    }
    assert found == expected


@pytest.mark.parametrize("shape", [(4, 4, 1), (32, 32, 3), (28, 20, 1), (160, 200, 3)])
def test_images_of_any_size(shape):
    images = np.random.default_rng(0).integers(0, 256, (4, *shape), np.uint8)
    params = classifier.fit(images, np.arange(4), 4, num_steps=1, batch_size=2)
    features, logits = classifier.apply(params, images)
    assert features.shape == (4, classifier.DIM) and logits.shape == (4, 4)
    assert np.all(np.std(features, axis=0) > 0)


@pytest.mark.parametrize("num, steps", [(1498, 351), (100, 300), (50_000, 2500)])
def test_more_images_take_more_steps(num, steps):
    assert classifier._num_steps(num, 128) == steps


IMAGES, LABELS = TRAIN.images[:8], TRAIN.labels[:8]


@pytest.mark.parametrize("call, message", [
    (lambda: classifier.fit(IMAGES / 255, LABELS, 10), "uint8"),
    (lambda: classifier.fit(IMAGES[..., 0], LABELS, 10), "uint8"),
    (lambda: classifier.fit(IMAGES[:0], LABELS[:0], 10), "uint8"),
    (lambda: classifier.fit(IMAGES, LABELS[:7], 10), "for each of 8"),
    (lambda: classifier.fit(IMAGES, LABELS / 1, 10), "integer"),
    (lambda: classifier.fit(IMAGES, LABELS, 7), r"0 \.\.\. 6"),
    (lambda: classifier.fit(IMAGES, LABELS - 1, 10), r"0 \.\.\. 9"),
    (lambda: classifier.fit(IMAGES, 0 * LABELS, 1), "2 classes"),
    (lambda: classifier.fit(IMAGES, LABELS, 10, num_steps=0), "positive"),
    (lambda: classifier.fit(IMAGES, LABELS, 10, batch_size=0), "positive"),
    (lambda: classifier.apply(fit(num_steps=1), IMAGES / 255), "uint8"),
])  # fmt: skip
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_loss_that_is_not_finite(monkeypatch):
    monkeypatch.setitem(classifier.RECIPE, "learning_rate", 1e30)
    with pytest.raises(ValueError, match="finite"):
        fit(num_steps=30, batch_size=8)
