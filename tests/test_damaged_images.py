"""Images that can no longer be read or decoded: the file, or the record, is named."""

import errno
from pathlib import Path

import numpy as np
import pytest
from jobs import small
from PIL import Image
from tiny import fit

from ddpm_jax.data import records as tfds
from ddpm_jax.data.base import gather
from ddpm_jax.data.folders import folder
from ddpm_jax.experiment import dataset


def test_an_image_that_is_damaged_while_training_is_named(tmp_path, monkeypatch):
    """The run goes on when it is mended."""
    images = np.random.default_rng(0).integers(0, 255, (16, 8, 8), np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    data = {"name": "folder", "path": str(tmp_path), "batch_size": 8}
    settings = {
        **small("network.num_classes=0", "network.label_dropout=0.0"),
        "data": data,
    }
    whole = (tmp_path / "03.png").read_bytes()
    opened = dataset.Dataset.feed

    def damage_later(*args):
        feed = opened(*args)
        (tmp_path / "03.png").write_bytes(whole[:60])
        return feed

    with monkeypatch.context() as context:
        context.setattr(dataset.Dataset, "feed", damage_later)
        with pytest.raises(
            OSError, match="cannot read .*/03.png any more .*put it back"
        ):
            fit(settings, tmp_path / "run")
    (tmp_path / "03.png").write_bytes(whole)
    assert fit(settings, tmp_path / "run") == 0


COLUMNS = ("image", "label")


def test_a_record_that_cannot_be_decoded_is_named():
    class Records:
        def __getitems__(self, indices):
            if 7 in indices:
                raise SyntaxError("broken PNG file")
            return [{"image": np.zeros((4, 4, 1), np.uint8)} for _ in indices]

    records = tfds._Records("faces", Path(), [], Records(), (4, 4, 1), (), COLUMNS)
    assert gather(records, np.array([1, 2]))[0].shape == (2, 4, 4, 1)
    message = r"record 7 of faces cannot be decoded \(broken PNG file\)"
    with pytest.raises(OSError, match=message):
        gather(records, np.array([1, 7, 2]))


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output"), MemoryError()])
def test_a_machine_that_fails_makes_no_record_corrupt(error):
    class Records:
        def __getitems__(self, indices):
            raise error

    records = tfds._Records("faces", Path(), [], Records(), (4, 4, 1), (), COLUMNS)
    with pytest.raises(type(error)) as raised:
        gather(records, np.array([1, 7, 2]))
    assert raised.value is error


def test_a_folder_names_the_file(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    source = folder(tmp_path, 4, channels=1)
    (tmp_path / "a.png").unlink()
    with pytest.raises(OSError, match=f"cannot read {tmp_path}/a.png any more"):
        source[0]
