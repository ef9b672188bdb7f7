"""Files of JiT and U-ViT: read, written, and refused where they are of others."""

import argparse

import jax
import numpy as np
import pytest
from foreign import message
from safetensors import safe_open
from safetensors.numpy import save_file
from tiny import call
from transformers import random_params, reference

import ddpm_jax
from ddpm_jax import convert, networks, sample
from ddpm_jax.errors import ConfigError
from ddpm_jax.files import read_arrays
from ddpm_jax.interop import jit, uvit
from ddpm_jax.interop.published import open_published

JIT = {
    "name": "jit",
    "patch_size": 2,
    "depth": 6,
    "channels": 32,
    "num_heads": 2,
    "bottleneck": 12,
    "class_tokens": 5,
    "class_tokens_from": 2,
    "num_classes": 3,
    "label_dropout": 0.1,
}
UVIT = {
    "name": "uvit",
    "patch_size": 2,
    "depth": 4,
    "channels": 64,
    "num_heads": 1,
    "time_layers": False,
}
SHAPE = (8, 8, 3)
SETTINGS = {"jit": JIT, "uvit": UVIT}
PREDICTS = {"jit": "x_0", "uvit": "eps"}


def made(name):
    """A config and random parameters."""
    settings = {k: v for k, v in SETTINGS[name].items() if k != "name"}
    network = networks.NETWORKS[name](**settings)
    loss = {"name": "simple", "predicts": PREDICTS[name]}
    config = {"image_shape": SHAPE, "network": SETTINGS[name], "loss": loss}
    return config, random_params(network, SHAPE)


@pytest.mark.parametrize("name, module", [("jit", jit), ("uvit", uvit)])
def test_what_is_written_is_read(tmp_path, name, module):
    (config, params), file = made(name), tmp_path / "w.safetensors"
    module.export(config, params, file)
    opened = open_published(file)
    assert opened.config["network"] == SETTINGS[name]
    assert opened.config["image_shape"] == SHAPE
    jax.tree.map(np.testing.assert_array_equal, opened.read(params), params)


@pytest.mark.parametrize("name, module, seed", [("jit", jit, 11), ("uvit", uvit, 12)])
def test_names_are_those_of_the_authors(tmp_path, name, module, seed):
    """All of a state_dict, with the fixed positions that JiT keeps in it."""
    module.export(*made(name), tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "np") as file:
        names = {key.removeprefix("net.") for key in file.keys()}  # noqa: SIM118
    theirs = {*reference(name, seed)[1]} - {"label_emb.weight"}
    theirs = {k for k in theirs if not k.startswith("time_embed")}
    theirs |= {"pos_embed"}
    later = [k for k in names if k.startswith(("blocks.4", "blocks.5"))]
    assert names - {*later} == theirs


def test_of_several_averages_the_first_is_taken(tmp_path):
    """As JiT's checkpoints hold them, with a Namespace beside, by PyTorch."""
    jit.export(*made("jit"), tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "np") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    holds = {
        f"{place}.{key}": value + shift
        for place, shift in (("model", 2), ("model_ema1", 0), ("model_ema2", 1))
        for key, value in tensors.items()
    }
    save_file(holds, tmp_path / "all.safetensors")
    opened, params = open_published(tmp_path / "all.safetensors"), made("jit")[1]
    assert "under 'model_ema1.net', the averaged ones, are taken" in opened.notes[0]
    jax.tree.map(np.testing.assert_array_equal, opened.read(params), params)


def test_arguments_beside_weights_do_no_harm(tmp_path):
    torch = pytest.importorskip("torch")
    jit.export(*made("jit"), tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    holds = {"model": tensors, "args": argparse.Namespace(lr=1e-4), "epoch": 3}
    torch.save(holds, tmp_path / "w.pth")
    opened, params = open_published(tmp_path / "w.pth"), made("jit")[1]
    jax.tree.map(np.testing.assert_array_equal, opened.read(params), params)


def test_a_published_transformer_is_drawn_from_and_converted(tmp_path):
    file = tmp_path / "w.safetensors"
    jit.export(*made("jit"), file)
    steps = "--config.timesteps.num_steps=3"
    call(sample, "--pretrained", file, "--num", 4, steps, "--out", tmp_path / "a.npz")
    call(convert, "--pretrained", file, "--out", tmp_path / "run")
    call(
        sample,
        "--workdir",
        tmp_path / "run",
        "--num",
        4,
        steps,
        "--out",
        tmp_path / "b.npz",
    )
    a, b = (read_arrays(tmp_path / f"{name}.npz")["images"] for name in "ab")
    np.testing.assert_array_equal(a, b)
    call(convert, "--workdir", tmp_path / "run", "--out", tmp_path / "x.safetensors")
    call(convert, "--pretrained", file, "--out", tmp_path / "y.safetensors")
    for name in "xy":
        assert (tmp_path / f"{name}.safetensors").read_bytes() == file.read_bytes()
    with pytest.raises(ConfigError, match="of format jit, give a new file"):
        call(convert, "--workdir", tmp_path / "run", "--out", tmp_path / "folder")
    assert ddpm_jax.load(file).null == 3


def test_what_cannot_be_is_refused(tmp_path):
    config, params = made("jit")
    out = tmp_path / "w.safetensors"
    eps = {**config, "loss": {"name": "simple", "predicts": "eps"}}
    with pytest.raises(OSError, match="predict x_0 of square images"):
        jit.export(eps, params, out)
    with pytest.raises(OSError, match="only a uvit can be written"):
        uvit.export(config, params, out)
    with pytest.raises(OSError, match="only a jit with tokens of classes"):
        jit.export(made("uvit")[0], params, out)
    jit.export(config, params, out)
    with safe_open(out, "np") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    lost = {k: v for k, v in tensors.items() if k != "net.blocks.1.attn.proj.bias"}
    save_file(lost, out)
    with pytest.raises(OSError, match="missing: blocks.1.attn.proj.bias"):
        open_published(out).read(params)
    large = {**tensors, "net.pos_embed": np.zeros((1, 256**2, 32), np.float32)}
    save_file(large, out)
    assert "a model of 512x512 images, whose noise is scaled by 2" in message(
        open_published, out
    )
