"""The configs of diffusers' UNet2DModel, as they are published, and refused."""

import inspect

import numpy as np
import pytest
from foreign import CONFIG, LINEAR, changed, draw, edit, message, write_folder

from ddpm_jax.diffusion import schedules
from ddpm_jax.interop import diffusers, names, unet2d
from ddpm_jax.interop.published import open_published
from ddpm_jax.networks import unet

folder = pytest.fixture(write_folder)


def assert_is_default(network):
    """Whether a section is our U-Net's defaults, which are those of Ho et al."""
    for key, value in network.items():
        if key != "name":
            assert np.array_equal(value, names.OURS[key]), key


def test_export_of_defaults(tmp_path):
    """A config needs no more than a name; the defaults are those of the network."""
    config = dict(image_shape=(32, 32, 3), network=dict(name="unet"))
    theirs = unet2d.export_network(config["image_shape"], config["network"], 0)
    signature = inspect.signature(unet).parameters
    how = ("dtype", "remat")  # it is computed, not what
    ours = {k: p.default for k, p in signature.items() if k not in how}
    assert ours == names.OURS
    assert_is_default(unet2d.import_network(theirs)[1])
    scheduler = diffusers.export_scheduler(config, LINEAR)
    assert scheduler["variance_type"] == "fixed_small"
    again = schedules.from_betas(scheduler["trained_betas"])
    np.testing.assert_allclose(again.log_snr, LINEAR.log_snr, rtol=1e-9)


def test_published_config():
    """That of google/ddpm-cifar10-32, as it is on the hub."""
    theirs = {
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.0.4",
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": [128, 256, 256, 256],
        "center_input_sample": False,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", *["DownBlock2D"] * 2],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": [*["UpBlock2D"] * 2, "AttnUpBlock2D", "UpBlock2D"],
    }
    image_shape, network = unet2d.import_network(theirs)
    assert image_shape == (32, 32, 3)
    assert_is_default(network)


@pytest.mark.parametrize(
    "key, value",
    [
        ("_class_name", "UNet2DConditionModel"),
        ("_class_name", None),
        ("center_input_sample", True),
        ("time_embedding_type", "fourier"),
        ("time_embedding_dim", 100),
        ("freq_shift", 2),
        ("mid_block_type", None),
        ("mid_block_scale_factor", 1.4142),
        ("downsample_padding", 2),
        ("downsample_type", "fir"),
        ("act_fn", "gelu"),
        ("resnet_time_scale_shift", "scale_shift"),  # then the middle has no norm
        ("resnet_time_scale_shift", "ada_group"),
        ("attn_norm_num_groups", 2),
        ("norm_num_groups", None),
        ("add_attention", False),
        ("class_embed_type", "timestep"),
        ("block_out_channels", [8, 12]),
        ("block_out_channels", [16, 8]),
        ("block_out_channels", None),
        ("down_block_types", ["DownBlock2D", "SkipDownBlock2D"]),
        ("down_block_types", ["DownBlock2D", "DownBlock2D"]),
        ("down_block_types", ["DownBlock2D"]),
        ("down_block_types", ["ResnetDownsampleBlock2D", "AttnDownBlock2D"]),
        ("up_block_types", ["AttnUpBlock2D", "AttnUpBlock2D"]),
        ("out_channels", 4),
        ("attention_head_dim", [8, 8]),
        ("sample_size", None),
        ("something_new", 3),
    ],
)
def test_refused_models(folder, key, value):
    edit(folder / "unet/config.json", **{key: value})
    said = message(open_published, folder)
    assert str(folder / "unet/config.json") in said
    if value is not None and key not in ("_class_name", "block_out_channels"):
        known = key if key != "resnet_time_scale_shift" else ""
        assert known in said or "up_block_types" in said


def test_size_may_be_given(folder):
    edit(folder / "unet/config.json", sample_size=None)
    opened = open_published(folder, None, (8, 8, 3))
    assert opened.config == CONFIG
    assert "in_channels" in message(open_published, folder, None, (8, 8, 1))


def test_heads_are_written_as_their_channels(tmp_path):
    config = changed("network", num_heads=2)
    diffusers.export(config, LINEAR, draw(config), tmp_path / "model")
    network = open_published(tmp_path / "model").config["network"]
    assert network["head_channels"] == 8  # 2 heads, where all attention has 16
