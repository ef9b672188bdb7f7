"""Features of a part of the images, kept for the next start."""

import errno

import numpy as np
import pytest

from ddpm_jax.metrics.features.base import Outputs
from ddpm_jax.sampling import partial


def test_a_part_that_was_cut_off_is_made_again(tmp_path):
    of_images = partial.PartialResults(tmp_path, {"a": 1}, Outputs)
    made = lambda: Outputs(np.arange(6.0).reshape(2, 3), None, np.ones((2, 1)))
    positions = np.array([4, 5])
    of_images(positions, made)
    (path,) = tmp_path.rglob("*.npz")
    for content in (path.read_bytes()[:100], b"", b"PK\x03\x04"):
        path.write_bytes(content)
        again = of_images(positions, made)
        np.testing.assert_array_equal(again.features, made().features)
    kept = of_images(positions, None)
    np.testing.assert_array_equal(kept.spatial, made().spatial)
    assert kept.logits is None


@pytest.mark.parametrize(
    "error", [MemoryError(), PermissionError(errno.EACCES, "not now")]
)
def test_a_part_that_cannot_be_read_now_is_not_thrown_away(
    tmp_path, monkeypatch, error
):
    of_images = partial.PartialResults(tmp_path, {}, Outputs)
    of_images(np.array([0]), lambda: Outputs(np.ones((1, 3))))
    (path,) = tmp_path.rglob("*.npz")

    def fail(file):
        raise error

    with monkeypatch.context() as context:
        context.setattr(np, "load", fail)
        with pytest.raises(type(error)):
            of_images(np.array([0]), None)
    assert path.is_file()
