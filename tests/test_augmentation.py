"""Augmentation of training images, and what the network is told of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.training import augmentation

IMAGE = np.random.default_rng(0).uniform(-1, 1, (12, 12, 3)).astype(np.float32)
ONE, NOTHING = np.eye(2, dtype=np.float32), np.zeros(2, np.float32)


def augmented(num=400, probability=0.12, image=IMAGE, seed=0):
    keys = jax.random.split(jax.random.key(seed), num)
    images = np.broadcast_to(image, (num, *image.shape))
    return map(np.asarray, augmentation.augment(images, keys, probability))


def test_nothing_done_is_the_image_and_zeros():
    images, labels = augmented(probability=0.0)
    as_is = labels[:, 0] == 0
    assert 0.4 < as_is.mean() < 0.6 and not labels[:, 1:].any()
    np.testing.assert_array_equal(images[as_is], np.stack([IMAGE] * as_is.sum()))
    np.testing.assert_array_equal(images[~as_is][0], IMAGE[:, ::-1])


def test_the_numbers_are_zero_where_nothing_was_done_and_only_there():
    images, labels = augmented(probability=0.2)
    same = np.all(images == IMAGE, axis=(1, 2, 3))
    np.testing.assert_array_equal(same, ~labels.any(axis=1))
    assert 0.05 < same.mean() < 0.3


def test_each_is_as_probable_as_asked():
    _, labels = augmented(20_000, 0.12, IMAGE[:2, :2])
    done = [(labels[:, i] != 0).mean() for i in (0, 1, 2, 4, 5, 7)]
    expected = np.array([0.5, 0.06, 0.12, 0.12, 0.12, 0.12])
    np.testing.assert_allclose(done, expected, atol=0.015)
    assert np.all((labels[:, 7] != 0) == (labels[:, 8] != 0))
    np.testing.assert_allclose(labels[labels[:, 2] != 0, 2].std(), 1, atol=0.06)


def test_upside_down_is_exact():
    images, labels = augmented(2000, 0.5)
    only = (labels[:, 1] == 1) & ~labels[:, [0, 2, 3, 4, 5, 6, 7, 8]].any(axis=1)
    assert only.any()
    np.testing.assert_array_equal(images[only][0], IMAGE[::-1])


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns(quarters):
    angle = quarters * np.pi / 2
    matrix = np.array([
        [np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]
    ], np.float32)  # fmt: skip
    found = augmentation.resample(IMAGE, matrix, NOTHING)
    np.testing.assert_allclose(found, np.rot90(IMAGE, quarters), atol=2e-5)


@pytest.mark.parametrize("right, down", [(3, 0), (0, -2), (1, 5)])
def test_moves_by_whole_pixels_are_exact_and_borders_are_reflected(right, down):
    found = augmentation.resample(IMAGE, ONE, np.array([-right, -down], np.float32))
    padded = np.pad(IMAGE, ((6, 6), (6, 6), (0, 0)), "reflect")
    expected = padded[6 - down : 18 - down, 6 - right : 18 - right]
    np.testing.assert_array_equal(found, expected)


def test_interpolation_is_exact_for_what_is_quadratic():
    """Keys' cubic reproduces polynomials of degree two, away from the borders."""
    x = np.arange(12) - 5.5
    image = (0.3 * x**2 - x + 2)[None, :, None] * np.ones((12, 1, 1))
    found = augmentation.resample(image.astype(np.float32), ONE, np.array([0.3, 0.2]))
    expected = 0.3 * (x + 0.3) ** 2 - (x + 0.3) + 2
    np.testing.assert_allclose(found[5, 2:9, 0], expected[2:9], rtol=1e-5, atol=1e-5)


def test_labels_say_what_was_done():
    """An image of its own place tells where each pixel came from."""
    side = 33
    place = np.arange(side) - (side - 1) / 2
    image = np.stack(np.meshgrid(place, place), -1).astype(np.float32)
    image = np.concatenate([image, image[..., :1]], -1)
    images, labels = augmented(2000, 0.3, image)
    middle = side // 2
    near = images[:, middle - 1 : middle + 2, middle - 1 : middle + 2, :2]
    plain = (labels[:, :2] == 0).all(axis=1)

    def only(*those):
        others = [i for i in range(9) if i not in those]
        found = plain & (labels[:, those[0]] != 0) & ~labels[:, others].any(axis=1)
        assert found.any()
        return near[found], labels[found]

    seen, told = only(2)  # enlarged: pixels come from nearer the middle
    scale = seen[:, 1, 2, 0] - seen[:, 1, 1, 0]
    np.testing.assert_allclose(scale, 2 ** (-0.2 * told[:, 2]), rtol=1e-4)
    seen, told = only(7, 8)
    np.testing.assert_allclose(seen[:, 1, 1, 0], -side / 8 * told[:, 7], atol=1e-3)
    np.testing.assert_allclose(seen[:, 1, 1, 1], -side / 8 * told[:, 8], atol=1e-3)
    seen, told = only(3, 4)
    step = seen[:, 1, 2] - seen[:, 1, 1]
    np.testing.assert_allclose(step[:, 0], told[:, 3] + 1, atol=1e-4)
    np.testing.assert_allclose(step[:, 1], told[:, 4], atol=1e-4)


def test_what_an_image_becomes_does_not_depend_on_its_batch():
    whole = [*augmented(32, 0.5)]
    keys = jax.random.split(jax.random.key(0), 32)
    part = augmentation.augment(jnp.stack([IMAGE] * 4), keys[8:12], 0.5)
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_allclose(a[8:12], b, atol=1e-5)
