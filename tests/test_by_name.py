"""Metrics by their names, with their errors and warnings."""

import numpy as np
import pytest
from features import DIM, LABELS, OURS, PROTOCOL, THEIRS, collected

from ddpm_jax.evaluation import extractors as networks
from ddpm_jax.metrics import by_name, frechet, kernel
from ddpm_jax.metrics.by_name import METRICS
from ddpm_jax.metrics.frechet import Gaussian
from ddpm_jax.metrics.statistics import Statistics


def known(num, dim=DIM):
    """Statistics of which only the number of images matters."""
    gaussian = Gaussian(np.zeros(dim), np.eye(dim))
    return Statistics(PROTOCOL, num, gaussian, gaussian)


# Metrics.


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_its_numbers(name):
    metric = METRICS[name]
    reference = THEIRS if metric.reads else None
    values = metric.score(OURS, reference, LABELS)
    assert len(values) == len(metric.names)
    for value in values:
        assert isinstance(value.value, float) and np.isfinite(value.value)
        assert value.error is None or value.error >= 0
        assert all(isinstance(warning, str) for warning in value.warnings)
    assert metric.network in (None, *networks.NAMES)


def test_every_number_has_a_name_of_its_own():
    names = [name for metric in METRICS.values() for name in metric.names]
    assert len(names) == len({*names})


def value(name, *given):
    first, *_ = METRICS[name].score(*given)
    return first


@pytest.mark.parametrize("name", ["fd", "fid", "sfid"])
def test_the_distance_of_equal_statistics_is_zero(name):
    assert 0 <= value(name, OURS, OURS, None).value < 1e-9
    assert value(name, OURS, THEIRS, None).value > 1e-3
    forth, back = (value(name, *p, None) for p in ((OURS, THEIRS), (THEIRS, OURS)))
    np.testing.assert_allclose(forth.value, back.value, rtol=1e-6)


@pytest.mark.parametrize("name, part", [
    ("fd", "gaussian"), ("fid", "gaussian"), ("sfid", "spatial")
])  # fmt: skip
def test_which_features_a_distance_is_of(name, part):
    expected = frechet.frechet_distance(getattr(OURS, part), getattr(THEIRS, part))
    assert value(name, OURS, THEIRS, None).value == expected


def test_scores_are_those_of_the_features_that_are_there():
    mean, error = kernel.inception_score(OURS.logits)
    assert value("is", OURS, None, None)[:2] == (mean, error)
    mean, error = kernel.kernel_distance(OURS.features, THEIRS.features, subset_size=40)
    assert value("kid", OURS, THEIRS, None)[:2] == (mean, error)
    for name in ("pr", "dc"):
        same = METRICS[name].score(OURS, OURS, None)
        assert [each.value for each in same] == [1, 1]


def test_accuracy():
    """It counts the images whose class is the one asked for, as a fair coin has it."""
    logits = np.full((8, 10), -1.0)
    logits[np.arange(8), [0, 1, 2, 3, 4, 5, 0, 0]] = 2
    found = value("accuracy", OURS._replace(logits=logits), None, np.arange(8))
    assert found.value == 6 / 8 and found.warnings == ()
    np.testing.assert_allclose(found.error, np.sqrt(8 / 12 * 4 / 12 / 12))
    all_right = value("accuracy", OURS._replace(logits=logits[:6]), None, np.arange(6))
    assert all_right.value == 1 and 0.1 < all_right.error < 0.2


@pytest.mark.parametrize("name, ours, theirs, message", [
    ("fd", OURS, known(40, DIM + 1), "of one width, got 3 and 4"),
    ("fid", OURS, known(40, DIM + 1), "of one width, got 3 and 4"),
    ("pr", collected(0, 3), THEIRS, "at least 4"),
])  # fmt: skip
def test_what_cannot_be_computed(name, ours, theirs, message):
    with pytest.raises(ValueError, match=message):
        METRICS[name].score(ours, theirs, None)


def checked(name, theirs, labels=None, protocol=PROTOCOL):
    """What is known before any image is drawn."""
    return by_name.check(METRICS[name], protocol, labels, theirs)


@pytest.mark.parametrize("name, theirs, message", [
    ("accuracy", None, "no classes asked for"),
    ("sfid", THEIRS._replace(spatial=None), "holds no spatial part: make one"),
    ("kid", THEIRS._replace(features=None), "holds no features part: make one"),
    ("pr", collected(10, num_kept=0), "holds no features part"),
    ("dc", THEIRS._replace(features=None), "holds no features part"),
])  # fmt: skip
def test_what_is_refused_before_any_image_is_drawn(name, theirs, message):
    with pytest.raises(ValueError, match=message):
        checked(name, theirs)


def test_what_is_accepted_before_any_image_is_drawn():
    for name, metric in METRICS.items():
        reference = THEIRS if metric.reads else None
        assert checked(name, reference, LABELS) == ()


# References.


def of_protocol(**changes):
    return OURS._replace(protocol={**PROTOCOL, **changes})


@pytest.mark.parametrize("changes, message", [
    ({"features": {"name": "ours", "code": 64 * "a"}},
     r"features name ours, code a{12}, these images have name pixels: make another"),
    ({"features": {"name": "pixels", "more": 1}}, "name pixels, more 1, these"),
    ({"image_shape": [8, 8, 3]},
     "image_shape 8x8x3, these images have 8x8x1: make another with python -m ddpm"),
    ({"image_shape": [8, 9, 1]}, "8x9x1"),
])  # fmt: skip
def test_references_of_another_protocol_are_refused(changes, message):
    for pair in ((OURS, of_protocol(**changes)), (of_protocol(**changes), OURS)):
        with pytest.raises(ValueError, match="^the reference has .*make another"):
            checked("fd", pair[1], None, pair[0].protocol)
    with pytest.raises(ValueError, match=message):
        checked("fd", of_protocol(**changes))


def test_other_images_are_what_references_are_for():
    assert checked("fd", of_protocol(num=7, images={"a": 1})) == ()


def test_a_reference_that_does_not_say_what_it_is_of_warns():
    (warning,) = checked("fd", OURS._replace(protocol={}))
    assert "does not say which images, size and preprocessing" in warning
