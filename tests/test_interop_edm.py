"""Files of EDM's networks, by the names of SongUNet (NVIDIA's PhysicsNeMo, Apache-2.0).

That the networks are theirs is in test_edm_unets; here are names, axes and rows.
"""

import jax
import numpy as np
import pytest
from foreign import message
from safetensors.numpy import save_file

from ddpm_jax import networks
from ddpm_jax.interop import edm
from ddpm_jax.interop.layout import make_entries, write_tensors
from ddpm_jax.interop.published import open_published

SETTINGS = {
    "channels": 16,
    "channel_mults": [1, 2],
    "num_res_blocks": 2,
    "attention_resolutions": [4],
    "num_classes": 3,
    "augmentation": 9,
    "dropout": 0.0,
}


def params_of(name):
    network = networks.NETWORKS[name](**SETTINGS)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), (8, 8, 3)))
    draw = np.random.default_rng(0).standard_normal
    return jax.tree.map(lambda x: draw(x.shape).astype(x.dtype), shapes)


def tensors_of(name, before="model."):
    params = params_of(name)
    tensors = write_tensors(params, make_entries(edm.make_layout(SETTINGS, 8), params))
    tensors["enc.4x4_down.conv0.resample_filter"] = np.ones((1, 1, 2, 2), np.float32)
    return params, {before + name: value for name, value in tensors.items()}


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp"])
@pytest.mark.parametrize("before", ["model.", ""])
def test_a_file_is_read_as_it_was_written(name, before, tmp_path):
    params, tensors = tensors_of(name, before)
    save_file(tensors, tmp_path / "edm.safetensors")
    opened = open_published(tmp_path / "edm.safetensors")
    assert opened.config["network"] == {"name": name, **SETTINGS}
    assert opened.config["image_shape"] == (8, 8, 3)
    assert any("CC BY-NC-SA" in note for note in opened.notes)
    jax.tree.map(np.testing.assert_array_equal, opened.read(params), params)


def test_names_and_axes_are_theirs():
    params, tensors = tensors_of("ncsnpp", "")
    kernel = params["down_1_0"]["conv1"]["kernel"]
    theirs = tensors["enc.4x4_block0.conv0.weight"]
    np.testing.assert_array_equal(theirs, kernel.transpose(3, 2, 0, 1))
    # qkv's rows: of channel c the query, the key and the value.
    fused = tensors["dec.4x4_in0.qkv.weight"]
    assert fused.shape == (96, 32, 1, 1)
    for i, part in enumerate("qkv"):
        kernel = params["mid_0"][part]["kernel"]
        np.testing.assert_array_equal(fused[i::3, :, 0, 0], kernel.T)
    shapes = {
        "enc.8x8_conv.weight": (16, 3, 3, 3),
        "enc.4x4_aux_residual.weight": (16, 3, 3, 3),
        "enc.4x4_down.skip.weight": (16, 16, 1, 1),
        "dec.8x8_up.affine.weight": (32, 64),
        "dec.8x8_block2.norm1.bias": (16,),
        "dec.8x8_aux_norm.weight": (16,),
        "dec.8x8_aux_conv.weight": (3, 16, 3, 3),
        "map_noise.freqs": (16,),
        "map_label.weight": (32, 3),
        "map_augment.weight": (32, 9),
        "map_layer1.weight": (64, 64),
    }
    assert {name: tensors[name].shape for name in shapes} == shapes


def test_what_is_missing_or_of_another_network_is_named(tmp_path):
    _, tensors = tensors_of("ddpmpp")
    file = tmp_path / "edm.safetensors"
    save_file({**tensors, "model.out_conv.weight": np.ones((3, 3, 3, 3))}, file)
    assert "EDM's models of ImageNet are not supported" in message(open_published, file)
    lost = "model.dec.4x4_in1.conv1.bias"
    save_file({k: v for k, v in tensors.items() if k != lost}, file)
    opened = open_published(file)
    with pytest.raises(OSError, match="missing: dec.4x4_in1.conv1.bias"):
        opened.read(params_of("ddpmpp"))
