"""Published code's outputs in float64, its weights read by the importers.

See tests/data/README.md and tests/data/unets.md.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from ddpm_jax.interop import openai
from ddpm_jax.interop.published import open_published
from ddpm_jax.networks import layers, unet

TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
EMBEDDINGS = ("label_emb.weight", "class_embedding.weight")


class Golden:
    """One variant of a file, with its weights made anew by their rule."""

    def __init__(self, file, variant):
        self.data = np.load(f"tests/data/{file}.npz")
        self.variant = variant
        self.tensors = dict(self.draw(np.random.default_rng(int(self["seed"]))))

    def __getitem__(self, key):
        return self.data[f"{self.variant}/{key}"]

    def get(self, key):
        return self[key] if f"{self.variant}/{key}" in self.data.files else None

    def json(self, key):
        return json.loads(str(self[key]))

    def draw(self, random):
        for name, shape in self.json("names"):
            w = random.standard_normal(shape)
            if len(shape) == 1:
                w = 1 + 0.1 * w if name.endswith(".weight") else 0.1 * w
            elif name not in EMBEDDINGS:
                w = w / np.sqrt(np.prod(shape[1:]))
            yield name, w.astype(np.float32)


def rounded(sinusoid, table):
    """Sinusoids whose angles were rounded to float32, given in a table.

    NaN where they are no sinusoids of the same times.
    """

    def rounded_sinusoid(*settings):
        close = jnp.abs(sinusoid(*settings) - table) < 1e-4
        return jnp.where(close, table, jnp.nan)

    return rounded_sinusoid


def check(golden, pretrained, monkeypatch):
    """Compares our network with the output, in float64."""
    config = dict(pretrained.config["network"])
    assert config.pop("name") == "unet"
    network = unet(**config)
    shape = pretrained.config["image_shape"]
    like = jax.eval_shape(lambda: network.init(jax.random.key(0), shape))
    params = pretrained.read(like)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, like)
    for leaf in jax.tree.leaves(params):
        assert leaf.dtype == np.float32 and leaf.flags.c_contiguous
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
    table = jnp.asarray(golden["temb"], jnp.float64)

    with monkeypatch.context() as patch:
        patch.setattr(layers, "sinusoid", rounded(layers.sinusoid, table))
        index = golden["t"] if golden.get("index") is None else golden["index"]
        x = jnp.asarray(golden["x"].transpose(0, 2, 3, 1), jnp.float64)
        label = golden.get("y")
        label = None if label is None else jnp.asarray(label)
        out = jax.jit(network.apply)(params, x, jnp.asarray(index), label)
    theirs = golden["out"].transpose(0, 2, 3, 1)
    print(f"{golden.variant}: largest difference {np.abs(out - theirs).max():.1e}")
    np.testing.assert_allclose(out, theirs, **TOLERANCE)


@pytest.mark.parametrize("variant", ["ddpm", "iddpm", "adm"])
def test_diffusers(x64, monkeypatch, tmp_path, variant):
    golden = Golden("unets_diffusers", variant)
    (tmp_path / "unet").mkdir()
    theirs = {"_class_name": "UNet2DModel", **golden.json("config")}
    (tmp_path / "unet/config.json").write_text(json.dumps(theirs))
    save_file(golden.tensors, tmp_path / "unet/diffusion_pytorch_model.safetensors")
    pretrained = open_published(tmp_path)
    assert pretrained.config["image_shape"] == (16, 16, 3)
    assert pretrained.config["network"]["attention_resolutions"] == [8]
    assert pretrained.config["sampler"]["variance"] == (
        "fixed_small" if variant == "ddpm" else "learned_range"
    )
    check(golden, pretrained, monkeypatch)


@pytest.mark.parametrize(
    "variant, settings",
    {
        "improved": openai.Settings(8, 4, None, "cosine", 4000, rescale=True),
        "plain": openai.Settings(16),
        "guided": openai.Settings(8, head_channels=16),
        "guided_new": openai.Settings(16, num_heads=2, new_attention_order=True),
    }.items(),
)
def test_openai(x64, monkeypatch, tmp_path, variant, settings):
    golden = Golden("openai", variant)
    save_file(golden.tensors, tmp_path / "model.safetensors")
    pretrained = open_published(tmp_path / "model.safetensors", settings)
    theirs, network = golden.json("settings"), pretrained.config["network"]
    assert network["channels"] == theirs["model_channels"]
    assert network["channel_mults"] == theirs["channel_mult"]
    assert network["num_res_blocks"] == theirs["num_res_blocks"]
    assert network["scale_shift"] == theirs["use_scale_shift_norm"]
    assert network["residual_resample"] == theirs.get("resblock_updown", False)
    assert network["num_classes"] == (theirs["num_classes"] or 0)
    assert network["learned_variance"] == (theirs["out_channels"] == 6)
    side = settings.image_size
    attention = [side // factor for factor in theirs["attention_resolutions"]]
    assert network["attention_resolutions"] == attention
    check(golden, pretrained, monkeypatch)


def test_ermongroup(x64, monkeypatch, tmp_path):
    golden = Golden("ermongroup", "small")
    # As data parallel models name their parameters.
    tensors = {f"module.{name}": value for name, value in golden.tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    pretrained = open_published(tmp_path / "model.safetensors")
    assert pretrained.config["image_shape"] == (32, 32, 3)
    assert pretrained.config["network"] == dict(
        name="unet",
        channels=64,
        channel_mults=[1, 2, 2],
        num_res_blocks=2,
        attention_resolutions=[16],
    )
    assert pretrained.config["sampler"] == dict(name="ddpm", variance="fixed_large")
    check(golden, pretrained, monkeypatch)
