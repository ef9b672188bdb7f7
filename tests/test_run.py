"""A run knows its data, and does not go on with others."""

import json
import shutil

import numpy as np
import pytest
from jobs import final_state, small
from PIL import Image
from tiny import call, fit

from ddpm_jax import sample
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import load
from ddpm_jax.sampling import pictures as drawings


@pytest.fixture
def pictures(tmp_path):
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(8):
            pixels = random.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{i}.png")
    return tmp_path / "set"


def of_pictures(place, *changes):
    data = {"name": "folder", "path": str(place), "batch_size": 8}
    return small(f"data={data}", "network.num_classes=2", *changes)


def test_a_run_knows_its_data(pictures, tmp_path, capsys):
    """They may move, but not change."""
    longer, workdir = "train.num_steps=8", tmp_path / "run"
    (pictures / "cat" / "notes.txt").touch()
    assert fit(of_pictures(pictures), workdir) == 0
    said = capsys.readouterr().out
    assert "16 images, 2 classes: cat, dog; 1 file passed over: 1 .txt" in said
    call(sample, "--workdir", workdir, "--num", 2, "--out", tmp_path / "drawn")
    record = json.loads((tmp_path / "drawn" / drawings.RECORD).read_text())
    assert record["classes"] == ["cat", "dog"]
    assert load.from_run(workdir).origin["classes"] == ["cat", "dog"]
    moved = pictures.rename(tmp_path / "moved")
    damaged = tmp_path / "copy"
    shutil.copytree(moved, damaged)
    (damaged / "dog" / "3.png").unlink()
    with pytest.raises(ConfigError, match="there are 15 images, and were 16; put"):
        fit(of_pictures(damaged, longer), workdir)
    shutil.rmtree(damaged / "cat")
    with pytest.raises(ConfigError, match="class 0 is dog, and was cat"):
        fit(of_pictures(damaged, longer), workdir)
    assert fit(of_pictures(moved, longer), workdir) == 0
    assert int(final_state(workdir).step) == 8


def test_a_run_without_a_record_of_its_data_goes_on_and_gets_one(pictures, tmp_path):
    workdir = tmp_path / "run"
    assert fit(of_pictures(pictures), workdir) == 0
    record = workdir / "data.json"
    written = record.read_text()
    record.unlink()
    assert fit(of_pictures(pictures, "train.num_steps=7"), workdir) == 0
    assert record.read_text() == written
    record.write_text("{")
    with pytest.raises(ConfigError, match="data.json is damaged .*: delete it"):
        fit(of_pictures(pictures, "train.num_steps=8"), workdir)
    # One whose classes had other numbers before they were counted as people do.
    record.unlink()
    (pictures / "cat").rename(pictures / "10")
    (pictures / "dog").rename(pictures / "9")
    with pytest.raises(ConfigError, match="alphabetically, now they are 9, 10"):
        fit(of_pictures(pictures, "train.num_steps=8"), workdir)
