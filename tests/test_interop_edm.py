"""Files of EDM's networks, by the names of SongUNet (NVIDIA's PhysicsNeMo, Apache-2.0).

That the networks are theirs is in test_edm_unets; here are names, axes and rows.
"""

import json
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest
from foreign import message
from safetensors import safe_open
from safetensors.numpy import save_file

from ddpm_jax import networks
from ddpm_jax.interop import edm, pickles
from ddpm_jax.interop.layout import write_tensors
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


SMALLEST = {**SETTINGS, "channels": 4, "channel_mults": [1], "num_res_blocks": 1}
SMALLEST |= {"attention_resolutions": []}


def params_of(name, settings=SETTINGS):
    network = networks.NETWORKS[name](**settings)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), (8, 8, 3)))
    draw = np.random.default_rng(0).standard_normal
    return jax.tree.map(lambda x: draw(x.shape).astype(x.dtype), shapes)


def tensors_of(name, before="model."):
    params = params_of(name)
    tensors = write_tensors(params, edm.make_layout(SETTINGS, 8))
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


def config_of(name, **changes):
    loss = {"name": "simple", "predicts": "x_0"}
    network = {"name": name, **SETTINGS}
    return {"image_shape": (8, 8, 3), "network": network, "loss": loss, **changes}


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp"])
def test_a_file_that_is_written_is_theirs_and_read_back(name, tmp_path):
    """data/edm_names.json: the state_dict of PhysicsNeMo's SongUNet, so set."""
    params, file = params_of(name), tmp_path / "edm.safetensors"
    edm.export(config_of(name), params, file)
    with safe_open(file, framework="np") as tensors:
        shapes = {k: tensors.get_tensor(k).shape for k in tensors.keys()}  # noqa: SIM118
        taps = tensors.get_tensor("model.enc.4x4_down.skip.resample_filter")
    theirs = json.loads(Path("tests/data/edm_names.json").read_text())[name]
    assert shapes == {f"model.{name}": tuple(shape) for name, shape in theirs.items()}
    assert taps.sum() == 1
    jax.tree.map(
        np.testing.assert_array_equal, open_published(file).read(params), params
    )


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"loss": {"name": "simple", "predicts": "eps"}}, "loss.predicts x_0"),
        ({"network": {"name": "ddpmpp", "convention": "flow"}}, "network.convention"),
        ({"network": {"name": "unet"}}, "only ddpmpp and ncsnpp can be written"),
        ({"image_shape": (8, 16, 3)}, "square images, not 8x16"),
    ],
)
def test_what_a_file_cannot_say_is_refused(changes, said, tmp_path):
    file = tmp_path / "edm.safetensors"
    with pytest.raises(OSError, match=said):
        edm.export(config_of("ddpmpp", **changes), {}, file)
    assert not file.exists()


# Pickles


def test_a_pickle_is_read_without_being_run():
    """data/edm.pkl: tests/data/README.md says how it was made, with PyTorch.

    Its classes bring code that would end this process.
    """
    opened = open_published("tests/data/edm.pkl")
    assert opened.config["network"] == {"name": "ncsnpp", **SMALLEST}
    assert any("the weights under 'ema.model'" in note for note in opened.notes)
    params = params_of("ncsnpp", SMALLEST)
    jax.tree.map(np.testing.assert_array_equal, opened.read(params), params)


def test_what_a_pickle_asks_for_is_not_done(tmp_path):
    class Ran:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    file = tmp_path / "edm.pkl"
    file.write_bytes(pickle.dumps({"ema": Ran(), "list": [Ran()], "set": {1}}))
    assert "holds no tensors" in message(open_published, file)
    assert not (tmp_path / "ran").exists()


def test_a_damaged_pickle_is_named(tmp_path):
    whole = Path("tests/data/edm.pkl").read_bytes()
    file = tmp_path / "edm.pkl"
    for damaged in (whole[: len(whole) // 2], whole[:2], whole[:100] + whole[150:]):
        file.write_bytes(damaged)
        assert f"cannot read {file}, it may be damaged" in message(open_published, file)


def test_a_tensor_outside_its_storage_is_refused(tmp_path):
    """The number of rows of a tensor, made larger than the elements that are there."""
    storage = np.zeros(6, np.float32)
    with pytest.raises(ValueError):
        pickles.rebuilt(storage, 0, (4, 3), (3, 1))
    with pytest.raises(ValueError):
        pickles.rebuilt(storage, -1, (2, 3), (3, 1))
    kept = pickles.rebuilt(np.arange(6.0), 1, (2, 2), (1, 3))
    np.testing.assert_array_equal(kept, [[1, 4], [2, 5]])
