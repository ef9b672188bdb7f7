"""References: of a split, of a file, of other tools."""

import numpy as np
import pytest
from scored import PIXELS, values, write_run
from tiny import call

from ddpm_jax import evaluate, reference
from ddpm_jax.data import arrays as sources
from ddpm_jax.data.base import ArraySource
from ddpm_jax.distributed import devices
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import image_sets, references, report
from ddpm_jax.metrics.features import base

workdir = pytest.fixture(write_run, scope="module")


def test_a_reference_of_a_file_is_that_of_the_split(workdir, tmp_path):
    made, out = tmp_path / "train.npz", tmp_path / "scores.json"
    features = ["--features", "pixels"]
    call(reference, "--config", "configs/digits.py", *features, "--out", made)
    given = ["--workdir", workdir, *PIXELS, "--num", 20, "--out", out]
    call(evaluate, *given)
    by_split = values(out)
    out.unlink()
    call(evaluate, *given, "--reference", made)
    assert values(out) == by_split


def test_a_reference_of_another_protocol_is_refused(workdir, tmp_path):
    pictures = np.repeat(sources.digits("test").images, 2, axis=1)
    np.savez(tmp_path / "tall.npz", images=pictures)
    made = tmp_path / "made.npz"
    features = ["--features", "pixels"]
    call(reference, "--images", tmp_path / "tall.npz", *features, "--out", made)
    given = ["--workdir", workdir, *PIXELS, "--num", 20, "--out", tmp_path / "s.json"]
    with pytest.raises(ConfigError, match="image_shape 16x8x1, .* have 8x8x1: make"):
        call(evaluate, *given, "--reference", made)
    ours = tmp_path / "ours.py"
    ours.write_text(
        "def make_features(image_shape):\n"
        "    return {}, lambda params, x: x.reshape(len(x), -1) / 255.0\n"
    )
    call(reference, "--config", "configs/digits.py", "--features", ours, "--out", made)
    with pytest.raises(ConfigError, match="features name ours, .* name pixels: make"):
        call(evaluate, *given, "--reference", made)
    given[given.index("pixels")] = ours
    call(evaluate, *given, "--reference", made)


@pytest.mark.parametrize("spatial", [False, True])
def test_statistics_of_other_tools(workdir, tmp_path, spatial):
    """They hold mu and sigma alone, and the number says that this is all it knows."""
    x = sources.digits("train").images.reshape(1498, -1) / 127.5 - 1
    arrays = {"mu": x.mean(0), "sigma": np.cov(x.T)}
    if spatial:
        arrays |= {"mu_s": np.zeros(3), "sigma_s": np.eye(3), "arr_0": np.zeros(2)}
    np.savez(tmp_path / "theirs.npz", **arrays)
    out = tmp_path / "scores.json"
    given = ["--workdir", workdir, "--features", "pixels", "--num", 20, "--out", out]
    call(evaluate, *given, "--metrics", "fd", "--reference", tmp_path / "theirs.npz")
    theirs = report.load(out)[-1]
    assert any("does not say" in warning for warning in theirs.warnings)
    call(evaluate, *given, "--metrics", "fd")
    np.testing.assert_allclose(theirs.value, report.load(out)[-1].value, rtol=1e-6)
    with pytest.raises(ConfigError, match="kid of ddpm:5: .* holds no features part"):
        call(
            evaluate, *given, "--metrics", "kid", "--reference", tmp_path / "theirs.npz"
        )


def test_references_are_made_once_and_again_when_images_change(monkeypatch):
    extractor = base.pixels()
    source = sources.digits("test")
    subject = image_sets.from_source("a", source)
    first = references.statistics_of(subject, extractor, 64)
    with monkeypatch.context() as context:
        context.setattr(devices, "in_batches", None)
        again = references.statistics_of(subject, extractor, 64)
    np.testing.assert_array_equal(first.gaussian.covariance, again.gaussian.covariance)
    other = np.flip(source.images, axis=2)
    changed = image_sets.from_source("a", ArraySource(other, source.labels, 10))
    assert not np.array_equal(
        references.statistics_of(changed, extractor, 64).gaussian.mean,
        first.gaussian.mean,
    )
