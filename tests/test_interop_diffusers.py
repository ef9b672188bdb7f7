"""Folders of diffusers: round trips, and what is refused how."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from foreign import (
    CONFIG,
    LINEAR,
    NETWORK,
    changed,
    draw,
    edit,
    message,
    weights,
    write_folder,
)
from safetensors.numpy import load_file

from ddpm_jax.interop import diffusers, tensors
from ddpm_jax.interop.published import open_published

folder = pytest.fixture(write_folder)

# Round trips.


ROUND_TRIPS = {
    "as Ho et al.": CONFIG,
    "oblong": {**CONFIG, "image_shape": (8, 16, 3)},
    "gray, without attention": {
        **changed("network", attention_resolutions=[]),
        "image_shape": (8, 8, 1),
    },
    "as OpenAI": {
        **CONFIG,
        "network": NETWORK
        | dict(
            head_channels=4,
            scale_shift=True,
            residual_resample=True,
            num_classes=5,
            learned_variance=True,
            norm_eps=1e-5,
            symmetric_padding=True,
            cos_first=True,
            frequency_shift=0,
        ),
        "schedule": dict(name="cosine", num_steps=1000),
        "loss": dict(name="hybrid", predicts="eps"),
        "sampler": dict(name="ddpm", variance="learned_range"),
    },
    "residual, no attention": changed(
        "network", attention_resolutions=[], residual_resample=True
    ),
    "v": changed("loss", predicts="v"),
    "x_0, unclipped": {**changed("loss", predicts="x_0"), "denoiser": {"clip": 0}},
    "thresholded": changed("denoiser", dynamic_percentile=95.0, dynamic_largest=1.5),
    "thresholded, unbounded": changed("denoiser", dynamic_percentile=99.5),
    "quadratic": changed("schedule", name="quadratic"),
    "zero terminal": changed("schedule", name="sigmoid", zero_terminal_snr=True),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_round_trip(tmp_path, name):
    config = ROUND_TRIPS[name]
    params = draw(config)
    diffusers.export(config, LINEAR, params, tmp_path / "model")
    opened = open_published(tmp_path / "model")
    assert opened.config == config
    jax.tree.map(np.testing.assert_array_equal, opened.read(params), params)
    diffusers.export(opened.config, LINEAR, params, tmp_path / "again")
    for file in ["model_index.json", "unet/config.json"]:
        content = [(tmp_path / n / file).read_text() for n in ("model", "again")]
        assert content[0] == content[1]
    first, second = (load_file(weights(tmp_path / n)) for n in ("model", "again"))
    assert list(first) == list(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_null_class_comes_back(tmp_path):
    """It is one more class for diffusers, and a key of ours says which."""
    config = changed("network", num_classes=5, label_dropout=0.1)
    params = draw(config)
    assert len(params["class_embedding"]["embedding"]) == 6
    diffusers.export(config, LINEAR, params, tmp_path / "model")
    opened = open_published(tmp_path / "model")
    theirs = json.loads((tmp_path / "model/unet/config.json").read_text())
    assert theirs["num_class_embeds"] == 6
    assert opened.config == config
    jax.tree.map(np.testing.assert_array_equal, opened.read(params), params)


# Refusals, and what is assumed.


def test_what_is_assumed_is_said(folder):
    (folder / "scheduler/scheduler_config.json").unlink()
    (note,) = open_published(folder).notes
    assert f"no scheduler_config.json in {folder} or above it: assumed are lin" in note


def test_refused_folders(folder, tmp_path):
    assert "config.json" in message(open_published, tmp_path)
    (folder / "scheduler/scheduler_config.json").write_text('{"_class_name": "Ve"}')
    assert "'Ve'" in message(open_published, folder)
    (folder / "scheduler/scheduler_config.json").unlink()
    edit(folder / "model_index.json", vqvae=["diffusers", "VQModel"])
    assert "scheduler, unet, vqvae" in message(open_published, folder)
    (folder / "model_index.json").unlink()
    weights(folder).unlink()
    assert "no weights" in message(open_published, folder)
    (folder / "unet/diffusion_flax_model.msgpack").touch()
    assert "; there is diffusion_flax_model.msgpack" in message(open_published, folder)
    (folder / "unet/config.json").write_text("{")
    assert "damaged" in message(open_published, folder)
    (folder / "unet/config.json").write_text("[]")
    assert "it holds [] in the place of keys" in message(open_published, folder)
    (folder / "unet/config.json").unlink()
    shutil.rmtree(folder / "unet")
    (folder / "model.safetensors").touch()
    said = message(open_published, folder)
    assert "put that of the model of model.safetensors beside it" in said


def test_a_model_of_latents_is_told_by_the_folder_above(folder):
    edit(folder / "model_index.json", vqvae=["diffusers", "VQModel"])
    assert "scheduler, unet, vqvae" in message(open_published, folder / "unet")
    (folder / "unet").rename(folder / "transformer")
    assert "scheduler, unet, vqvae" in message(open_published, folder)


@pytest.mark.parametrize("name", ["unet/config.json", "model_index.json"])
def test_what_lies_in_the_place_of_a_config(folder, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1")
    assert f"{name}: it is a pointer of Git LFS" in message(open_published, folder)
    (folder / name).write_text("")
    assert f"{name}: it is empty" in message(open_published, folder)


# Export.


def test_export_does_not_overwrite(folder, tmp_path):
    before = weights(folder).read_bytes()
    said = message(diffusers.export, CONFIG, LINEAR, draw(CONFIG), folder)
    assert "exists and is not empty" in said
    assert weights(folder).read_bytes() == before
    (tmp_path / "empty").mkdir()
    diffusers.export(CONFIG, LINEAR, draw(CONFIG), tmp_path / "empty")
    assert (tmp_path / "empty/unet/config.json").is_file()
    (tmp_path / "file").touch()
    message(diffusers.export, CONFIG, LINEAR, draw(CONFIG), tmp_path / "file")


@pytest.mark.parametrize("others", ["nobody", "all"])
def test_weights_may_be_read_by_who_may_read_new_files(tmp_path, others):
    """What safetensors itself writes, its owner alone may."""
    before = os.umask(0o022 if others == "all" else 0o077)
    try:
        diffusers.export(CONFIG, LINEAR, draw(CONFIG), tmp_path / "model")
        tensors.save({"a": np.zeros(3)}, tmp_path / "a.safetensors")
    finally:
        os.umask(before)
    for path in (tmp_path / "a.safetensors", weights(tmp_path / "model")):
        assert path.stat().st_mode & 0o777 == (0o644 if others == "all" else 0o600)


def test_export_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "save_file", full)
    target = tmp_path / "model"
    said = message(diffusers.export, CONFIG, LINEAR, draw(CONFIG), target)
    assert "No space left" in said and str(target) in said
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "values, named",
    [
        (dict(index_scale=0.25), "index_scale"),
        (dict(num_heads=2, attention_resolutions=[8]), "num_heads"),
        (dict(name="transformer"), "transformer"),
    ],
)
def test_export_refuses(tmp_path, values, named):
    config = changed("network", **values)
    said = message(diffusers.export, config, LINEAR, draw(CONFIG), tmp_path / "model")
    assert named in said and not any(tmp_path.iterdir())
