"""Files of named tensors: in parts, damaged, or something else."""

import json
import sys

import jax
import numpy as np
import pytest
from foreign import WEIGHTS, message, read, weights, write_folder
from safetensors.numpy import load_file, save_file

from ddpm_jax.interop.published import open_published
from ddpm_jax.interop.tensors import read_tensors

folder = pytest.fixture(write_folder)


def test_weights_in_parts(folder):
    expected = read(folder)
    tensors = load_file(weights(folder))
    weights(folder).unlink()
    parts = [f"{WEIGHTS}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    places = {name: parts[i % 2] for i, name in enumerate(tensors)}
    for part in parts:
        held = {name: x for name, x in tensors.items() if places[name] == part}
        save_file(held, folder / "unet" / part)
    assert "to its parts diffusion_pytorch_model.safetensors.index.json; there is" in (
        message(open_published, folder)
    )
    index = folder / "unet" / f"{WEIGHTS}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    jax.tree.map(np.testing.assert_array_equal, read(folder), expected)
    said = message(open_published, folder / "unet" / parts[0])
    assert "is one of several parts: give the folder" in said
    (folder / "unet" / parts[1]).unlink()
    said = message(open_published, folder)
    assert f"of its 2 files there is no {parts[1]}: copy or" in said
    index.write_text(json.dumps({"weight_map": {"a": "../../b.safetensors"}}))
    assert "damaged" in message(open_published, folder)


def test_files_that_cannot_be_read(tmp_path):
    assert "no file" in message(read_tensors, tmp_path / "absent.safetensors")
    assert "no file or folder" in message(open_published, str(tmp_path / "absent"))
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"12345")
    assert "damaged" in message(open_published, file)
    save_file({"a": np.ones(3)}, file)
    file.write_bytes(file.read_bytes()[:-5])
    assert "damaged" in message(open_published, file)
    save_file({}, file)
    assert "no tensors" in message(open_published, file)
    save_file({"a": np.ones(3)}, file)
    assert "not the weights" in message(open_published, file)
    save_file({"time_embedding.linear_1.weight": np.ones(3)}, file)
    assert "give the folder" in message(open_published, file)
    (tmp_path / "model.npz").touch()
    assert ".safetensors, .bin" in message(open_published, tmp_path / "model.npz")


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "is a web page"),
        (b"<html>", "is a web page"),
        (b"Entry not found", "it is text, 'Entry not found'"),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_what_lies_in_the_place_of_weights(folder, suffix, content, words):
    weights(folder).unlink()
    file = folder / "unet" / f"{WEIGHTS}{suffix}"
    file.write_bytes(content)
    said = message(open_published, folder)
    assert words in said and str(file) in said


def test_numbers_that_are_not_read_are_named(tmp_path):
    tensor = {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}
    header = json.dumps({"a": tensor}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"abcd")
    said = message(read_tensors, path)
    assert "fewer bits" in said and "float8" in said and "save it as float32" in said


def test_files_go_by_what_they_are(folder):
    """Safetensors by another name need no PyTorch."""
    expected = read(folder)
    weights(folder).rename(folder / "unet" / f"{WEIGHTS}.bin")
    jax.tree.map(np.testing.assert_array_equal, read(folder), expected)


def test_pickles_need_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "model.ckpt").write_bytes(b"PK\3\4")
    said = message(open_published, tmp_path / "model.ckpt")
    assert "needs PyTorch: pip install torch, or convert it to safetensors" in said
