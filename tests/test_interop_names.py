"""The names of diffusers' tensors, and those that it used before."""

import json

import jax
import numpy as np
import pytest
from foreign import abstract, edit, message, read, weights, write_folder
from safetensors.numpy import load_file, save_file

from ddpm_jax.interop import names, unet2d
from ddpm_jax.interop.layout import make_entries
from ddpm_jax.interop.published import open_published

folder = pytest.fixture(write_folder)


def test_published_names():
    """328 and 450 tensors, as in google/ddpm-cifar10-32 and google/ddpm-cat-256."""
    for mults, size, count in [((1, 2, 2, 2), 32, 328), ((1, 1, 2, 2, 4, 4), 256, 450)]:
        config = dict(
            network=dict(name="unet", channel_mults=mults), image_shape=(size, size, 3)
        )
        layout = names.make_layout(config["network"])
        entries = make_entries(layout, abstract(config)).values()
        shapes = {entry.name: entry.shape for entry in entries}
        assert len(shapes) == count
        for name, shape in {
            "conv_in.weight": (128, 3, 3, 3),
            "time_embedding.linear_1.weight": (512, 128),
            "down_blocks.0.resnets.0.time_emb_proj.weight": (128, 512),
            "down_blocks.0.downsamplers.0.conv.weight": (128, 128, 3, 3),
            "mid_block.attentions.0.to_out.0.bias": (128 * mults[-1],),
            "up_blocks.0.resnets.0.conv_shortcut.weight": (
                128 * mults[-1],
                256 * mults[-1],
                1,
                1,
            ),
            "conv_norm_out.weight": (128,),
            "conv_out.weight": (3, 128, 3, 3),
        }.items():
            assert shapes[name] == shape
        attending = len(mults) - 1 - {32: 1, 256: 4}[size]
        assert shapes[f"up_blocks.{attending}.attentions.2.to_q.weight"]


def test_older_spellings(folder, tmp_path):
    """Of configs and of names, before diffusers 0.2."""
    expected = read(folder)
    path = folder / "unet/config.json"
    theirs = json.loads(path.read_text())
    for old, new in unet2d.OLD_KEYS.items():
        theirs[old] = theirs.pop(new)
    path.write_text(json.dumps(theirs | {"_class_name": "UNetUnconditionalModel"}))
    tensors = load_file(weights(folder))
    for new, old in (
        ("mid_block.", "mid."),
        ("down_blocks.", "downsample_blocks."),
        ("up_blocks.", "upsample_blocks."),
    ):
        tensors = {k.replace(new, old): v for k, v in tensors.items()}
    save_file(tensors, weights(folder))
    opened = open_published(folder)
    assert opened.config["network"]["head_channels"] is None
    jax.tree.map(np.testing.assert_array_equal, read(folder), expected)
    edit(path, sample_size=16)
    said = message(open_published, folder)
    assert "sample_size = 16 is not supported: as sample_size it is 8" in said
