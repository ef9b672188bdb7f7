"""Files of OpenAI's code: known by name, or by the settings that are given."""

import os
import shutil

import numpy as np
from foreign import changed, file_of, message, read
from safetensors.numpy import save_file

from ddpm_jax.interop import openai
from ddpm_jax.interop.published import open_published

GUIDED = changed(
    "network",
    channels=64,
    channel_mults=[1, 2],
    num_groups=32,
    head_channels=64,
    residual_resample=True,
    scale_shift=True,
    num_classes=3,
    learned_variance=True,
)


def test_published_openai_files_are_known_by_name(tmp_path):
    settings = openai.PUBLISHED["64x64_diffusion"]
    config = {**GUIDED, "image_shape": (64, 64, 3)}
    config["network"] = {**GUIDED["network"], "attention_resolutions": [32]}
    path = tmp_path / "64x64_diffusion.safetensors"
    file_of(openai, config, path, settings)
    opened = open_published(path)
    assert opened.config["image_shape"] == (64, 64, 3)
    assert opened.config["schedule"] == dict(name="cosine", num_steps=1000)
    assert opened.config["loss"]["name"] == "hybrid"
    assert opened.config["sampler"]["variance"] == "learned_range"
    for key in GUIDED["network"]:
        ours = ("dropout", "norm_eps", "symmetric_padding", "cos_first", "num_groups")
        if key not in (*ours, "frequency_shift"):
            assert opened.config["network"][key] == config["network"][key], key
    read(path)
    os.rename(path, tmp_path / "other.safetensors")
    said = message(open_published, tmp_path / "other.safetensors")
    assert (
        "not one of OpenAI's published files" in said and "--openai image_size=" in said
    )


def test_openai_settings_reach_the_config(tmp_path):
    path, settings = tmp_path / "a.safetensors", openai.Settings(8, num_steps=4000)
    config = changed("network", num_groups=32, channels=32, residual_resample=False)
    tensors = file_of(openai, config, path, settings)
    opened = open_published(path, settings)
    assert opened.config["schedule"] == dict(
        name="linear", num_steps=4000, beta_start=2.5e-5, beta_end=5e-3
    )
    assert opened.config["network"]["index_scale"] == 1
    assert opened.config["sampler"] == dict(name="ddpm", variance="fixed_large")
    (tmp_path / "ema_0.99_005.safetensors").touch()
    raw = shutil.copy(path, tmp_path / "model005.safetensors")
    (note,) = open_published(raw, settings).notes
    assert note.endswith("the averaged ones are in ema_0.99_005.safetensors")
    scaled = open_published(path, settings._replace(rescale=True))
    assert scaled.config["network"]["index_scale"] == 0.25
    read(path, settings)
    tensors["input_blocks.0.0.weight"] = np.ones((16, 3, 3, 3), np.float32)
    save_file(tensors, path)
    assert "512x512" in message(open_published, path, settings)
    tensors["input_blocks.0.0.weight"] = np.ones((32, 6, 3, 3), np.float32)
    save_file(tensors, path)
    assert "enlarge" in message(open_published, path, settings)
    assert "enlarge" in message(open_published, path)  # before settings are asked for
    published = tmp_path / "cd_imagenet64_l2.safetensors"
    tensors["input_blocks.0.0.weight"] = np.ones((32, 3, 3, 3), np.float32)
    save_file(tensors, published)
    assert "a consistency model" in message(open_published, published, settings)
    save_file({"input_blocks.0.0.weight": np.ones((32, 3, 3, 3))}, path)
    assert "missing: out.2.weight" in message(open_published, path, settings)
