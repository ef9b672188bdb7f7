"""Models in the files of others: tiny, of random weights, and how they are read."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ddpm_jax.diffusion import schedules
from ddpm_jax.interop import diffusers
from ddpm_jax.interop.layout import make_entries
from ddpm_jax.interop.published import open_published
from ddpm_jax.networks import unet

NETWORK = dict(
    name="unet",
    channels=8,
    channel_mults=[1, 2],
    num_res_blocks=1,
    attention_resolutions=[4],
    num_heads=1,
    head_channels=None,
    dropout=0.1,
    scale_shift=False,
    residual_resample=False,
    num_classes=0,
    learned_variance=False,
    num_groups=4,
    norm_eps=1e-6,
    symmetric_padding=False,
    cos_first=False,
    frequency_shift=1,
)
CONFIG = dict(
    image_shape=(8, 8, 3),
    network=NETWORK,
    schedule=dict(name="linear", num_steps=1000, beta_start=1e-4, beta_end=2e-2),
    loss=dict(name="simple", predicts="eps"),
    denoiser=dict(clip=True),
    sampler=dict(name="ddpm", variance="fixed_large"),
    timesteps=dict(name="trailing", num_steps=1000),
)
LINEAR = schedules.linear()
WEIGHTS = "diffusion_pytorch_model"


def abstract(config):
    settings = {k: v for k, v in config["network"].items() if k != "name"}
    network = unet(**settings)
    return jax.eval_shape(
        lambda: network.init(jax.random.key(0), config["image_shape"])
    )


def draw(config):
    random = np.random.default_rng(3)
    return jax.tree.map(
        lambda leaf: random.standard_normal(leaf.shape).astype(leaf.dtype),
        abstract(config),
    )


def changed(section, **values):
    return {**CONFIG, section: {**CONFIG[section], **values}}


def edit(path, **values):
    content = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps(content))


def write_folder(tmp_path):
    """A folder as diffusers would write it, of random weights: a fixture of tests."""
    diffusers.export(CONFIG, LINEAR, draw(CONFIG), tmp_path / "model")
    return tmp_path / "model"


def read(path, *args):
    opened = open_published(path, *args)
    return opened.read(abstract(opened.config))


def config_of(folder):
    return diffusers.import_config(folder)[0]


def message(function, *args):
    """What a user is told: one line."""
    with pytest.raises(OSError) as refused:
        function(*args)
    said = str(refused.value)
    assert said and "\n" not in said
    return said


def weights(folder):
    return folder / "unet" / f"{WEIGHTS}.safetensors"


def file_of(module, config, path, *settings):
    """Writes a file of random weights for a network of ours."""
    random = np.random.default_rng(4)
    layout = module.make_layout(config["network"], *settings)
    entries = make_entries(layout, abstract(config)).values()
    shapes = {entry.name: entry.shape for entry in entries}
    tensors = {
        name: random.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    save_file(tensors, path)
    return tensors
