"""Copies of training images: found, counted, shown."""

import numpy as np
import pytest

from ddpm_jax.data.images import grid, save_png
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import memorisation as of_model
from ddpm_jax.evaluation.extractors import open_extractor
from ddpm_jax.experiment.dataset import Dataset
from ddpm_jax.metrics.memorisation import memorisation, pairs


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


TRAIN, TEST = normal(0, 300, 4), normal(1, 200, 4)


def test_copies():
    order = np.random.default_rng(2).permutation(300)
    found = memorisation(TRAIN[order], TRAIN, TEST)
    assert (found.score, found.error, found.copies) == (1, 0, 1)
    np.testing.assert_array_equal(found.indices, order)
    np.testing.assert_array_equal(found.distances, 0)


def test_some_copies():
    found = memorisation(np.concatenate([normal(2, 300, 4), TRAIN[:100]]), TRAIN, TEST)
    assert found.copies == 0.25
    assert found.score == pytest.approx(0.75 * 0.5 + 0.25, abs=0.05)


def test_copies_with_noise():
    found = memorisation(TRAIN + 1e-3 * normal(2, 300, 4), TRAIN, TEST)
    assert found.copies == 0 and found.score > 0.99


def test_unseen_data():
    """Over many draws, 0.5 on average, off by as much as its error says."""
    draws = [
        memorisation(
            normal((i, 0), 80, 2), normal((i, 1), 500, 2), normal((i, 2), 60, 2)
        )
        for i in range(200)
    ]
    scores = np.array([draw.score for draw in draws])
    errors = np.array([draw.error for draw in draws])
    assert abs(np.mean(scores) - 0.5) < 4 * np.std(scores) / np.sqrt(len(draws))
    # Three standard errors of a spread over 200 draws, 1 / sqrt(400) each.
    np.testing.assert_allclose(np.mean(errors), np.std(scores), rtol=0.15)
    assert np.mean(np.abs(scores - 0.5) < 2 * errors) > 0.9


def test_far_from_the_data():
    found = memorisation(10 * normal(2, 100, 4) + 100, TRAIN, TEST)
    assert (found.score, found.error, found.copies) == (0, 0, 0)


def test_ties_count_half():
    train, twos = np.zeros((1, 1)), np.full((3, 1), 2.0)
    assert memorisation(twos, train, -twos).score == 0.5
    # Against distances 1, 2 and 3, one of 2 is nearer than one and ties with one.
    found = memorisation(twos, train, np.array([[1.0], [-2.0], [3.0]]))
    assert found.score == pytest.approx(0.5)
    assert memorisation(train[[0, 0]], train, train[[0, 0]]).score == 0.5


@pytest.mark.parametrize("decimals", [0, 12])  # also with many ties
def test_by_brute_force(decimals):
    sets = [np.round(2 * normal(i, n, 2), decimals) for i, n in enumerate((40, 30, 50))]
    generated, train, test = sets
    to_train = lambda x: np.linalg.norm(x[:, None] - train, axis=2)
    ours, held_out = to_train(generated).min(1)[:, None], to_train(test).min(1)
    wins = (ours < held_out) + (ours == held_out) / 2
    spread = lambda x: np.var(x, ddof=1) / len(x)
    found = memorisation(*sets)
    assert found.score == pytest.approx(np.mean(wins), rel=1e-12)
    assert found.error**2 == pytest.approx(spread(wins.mean(0)) + spread(wins.mean(1)))
    assert found.copies == np.mean(ours == 0)
    np.testing.assert_allclose(found.distances, ours[:, 0], rtol=1e-12)
    np.testing.assert_allclose(found.test_distances, held_out, rtol=1e-12)
    at = np.linalg.norm(generated - train[found.indices], axis=1)
    np.testing.assert_allclose(at, found.distances, rtol=1e-12)


def test_order_is_nothing():
    rng = np.random.default_rng(3)
    sets = [normal(i, n, 3) for i, n in enumerate((40, 30, 50))]
    found, turned = memorisation(*sets), memorisation(*map(rng.permutation, sets))
    assert turned[:3] == pytest.approx(found[:3], rel=1e-12)
    np.testing.assert_allclose(np.sort(turned.distances), np.sort(found.distances))


def test_roles_swapped():
    """Samples nearer than held-out examples, or the other way round."""
    generated = 0.5 * normal(2, 100, 4)
    one, other = (
        memorisation(*sets)
        for sets in ((generated, TRAIN, TEST), (TEST, TRAIN, generated))
    )
    assert one.score > 0.6
    assert (1 - one.score, one.error) == pytest.approx((other.score, other.error))


def test_pixels():
    train, test = noise(0, 50, 48), noise(1, 20, 48)
    found = memorisation(train[[7, 3]], train, test)
    assert (found.score, found.copies) == (1, 1)
    np.testing.assert_array_equal(found.indices, [7, 3])


@pytest.mark.parametrize("sets, message", [
    ((TEST, TRAIN[:, :3], TEST), "one width"),
    ((TEST[:, :3], TRAIN, TEST), "one width"),
    ((TEST * np.nan, TRAIN, TEST), "finite"),
    ((TEST, TRAIN * np.inf, TEST), "finite"),
    ((TEST[0], TRAIN, TEST), r"\[num, dim\]"),
    ((TEST[:1], TRAIN, TEST), "at least 2"),
    ((TEST, TRAIN, TEST[:1]), "at least 2"),
    ((TEST, TRAIN[:0], TEST), "at least 1"),
])  # fmt: skip
def test_refusals(sets, message):
    with pytest.raises(ValueError, match=message):
        memorisation(*sets)


# Pictures.


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num", [1, 5, 16])
def test_pairs_are_side_by_side(num, channels):
    samples, neighbours = noise(0, num, 8, 6, channels), noise(1, num, 8, 6, channels)
    picture = pairs(samples, neighbours)
    columns = int(np.ceil(np.sqrt(num)))
    for i, pair in enumerate(zip(samples, neighbours, strict=True)):
        tile = grid(np.stack(pair), columns=2)
        height, width, _ = tile.shape
        top, left = (8 + (height + 8) * (i // columns), 8 + (width + 8) * (i % columns))
        shown = picture[top : top + height, left : left + width]
        np.testing.assert_array_equal(shown, tile)


@pytest.mark.parametrize("samples, neighbours, message", [
    (noise(0, 4, 8, 8, 3), noise(0, 3, 8, 8, 3), "one of the same size"),
    (noise(0, 4, 8, 8, 3), noise(0, 4, 8, 8, 1), "one of the same size"),
    (noise(0, 0, 8, 8, 3), noise(0, 0, 8, 8, 3), "no samples"),
    (normal(0, 4, 8, 8, 3), normal(0, 4, 8, 8, 3), "uint8"),
    (noise(0, 4, 8, 8), noise(0, 4, 8, 8), "uint8"),
])  # fmt: skip
def test_what_makes_no_pairs(samples, neighbours, message):
    with pytest.raises(ValueError, match=message):
        pairs(samples, neighbours)


def in_folder(path, seeds, size=8):
    for seed in seeds:
        save_png(path / str(seed % 2) / f"{seed}.png", noise(seed, size, size))
    section = {"name": "folder", "path": str(path), "batch_size": 8}
    return Dataset(section, (8, 8, 1))


def test_a_folder_is_compared_with_images_held_out(tmp_path):
    """Of the same size as those of training, whatever theirs is."""
    data = in_folder(tmp_path / "train", range(12))
    in_folder(tmp_path / "held", range(20, 25), size=16)
    given = data, open_extractor("pixels", data), 8, tmp_path
    with pytest.raises(ConfigError, match="as --held_out"):
        of_model.measure_of(*given)
    measure = of_model.measure_of(*given, str(tmp_path / "held"))
    assert {k: v["num"] for k, v in measure.protocol.items()} == {
        "train": 12,
        "test": 5,
    }


def test_it_is_said_if_classes_are_not_used(tmp_path):
    data = in_folder(tmp_path, range(4))
    assert data.feed().notes == ["network.num_classes is 0: it is told none of them"]
    told = Dataset(data.section, data.image_shape, num_classes=2)
    assert told.feed().notes == []
