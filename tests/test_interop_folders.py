"""Which files of a folder of diffusers are meant, and what is said of the choice."""

import os
import shutil

import jax
import numpy as np
import pytest
from foreign import WEIGHTS, config_of, edit, message, read, weights, write_folder
from safetensors.numpy import load_file, save_file

from ddpm_jax.interop.published import open_published

folder = pytest.fixture(write_folder)


def test_other_layouts_of_a_folder(folder, tmp_path):
    expected = read(folder)
    flat = tmp_path / "flat"
    flat.mkdir()
    os.rename(folder / "unet/config.json", flat / "config.json")
    tensors = load_file(weights(folder))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        tensors = {k.replace(f".{new}.", f".{name}."): v for k, v in tensors.items()}
    half = {k: v.astype(np.float16) for k, v in tensors.items()}
    save_file(half, flat / f"{WEIGHTS}.fp16.safetensors")
    rough = dict(rtol=1e-3, atol=1e-3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **rough), read(flat), expected
    )
    save_file(tensors, flat / f"{WEIGHTS}.safetensors")
    jax.tree.map(np.testing.assert_array_equal, read(flat), expected)
    variance = lambda: config_of(flat)["sampler"]["variance"]
    assert variance() == "fixed_small"  # of diffusers, where nothing is said
    os.rename(
        folder / "scheduler/scheduler_config.json", flat / "scheduler_config.json"
    )
    assert variance() == "fixed_large"


def test_averaged_weights_of_a_training_example(folder, tmp_path):
    """Of a checkpoint they are taken, with the scheduler of the run above it."""
    run = tmp_path / "run"
    checkpoint = run / "checkpoint-500"
    shutil.copytree(folder / "unet", checkpoint / "unet")
    shutil.copytree(folder / "unet", checkpoint / "unet_ema")
    shutil.move(folder / "scheduler", run / "scheduler")
    (checkpoint / "scheduler.bin").touch()  # of its learning rate
    edit(run / "scheduler/scheduler_config.json", beta_schedule="squaredcos_cap_v2")
    edit(
        checkpoint / "unet_ema/config.json",
        decay=0.9999,
        inv_gamma=1.0,
        min_decay=0.0,
        optimization_step=3,
        power=0.75,
        update_after_step=0,
        use_ema_warmup=True,
    )
    tensors = load_file(checkpoint / f"unet/{WEIGHTS}.safetensors")
    averaged = tensors | {"conv_in.bias": np.full(8, 2, np.float32)}
    save_file(averaged, checkpoint / f"unet_ema/{WEIGHTS}.safetensors")
    bias = lambda place: read(place)["conv_in"]["bias"][0]
    assert bias(checkpoint) == bias(checkpoint / "unet_ema") == 2
    assert bias(checkpoint / "unet") != 2
    opened = open_published(checkpoint)
    assert opened.config["schedule"]["name"] == "cosine"
    assert opened.notes == [
        f"the averaged weights in {checkpoint / 'unet_ema'} are taken; for the raw "
        f"ones give {checkpoint / 'unet'}",
        f"its scheduler is {run / 'scheduler/scheduler_config.json'}",
    ]
    opened = open_published(checkpoint / "unet_ema")
    assert opened.config["schedule"]["name"] == "cosine"
    said = message(open_published, run)
    assert f"{checkpoint}/unet, {checkpoint}/unet_ema: give one of them" in said


def test_variants_of_weights(folder):
    """The plain name goes first, the raw weights last, and the choice is said."""
    tensors = load_file(weights(folder))
    names = [
        f"{WEIGHTS}.non_ema.safetensors",
        f"{WEIGHTS}.pruned.safetensors",
        f"{WEIGHTS}.safetensors",
    ]
    for i, name in enumerate(names):
        values = np.full(8, i, np.float32)
        save_file(tensors | {"conv_in.bias": values}, folder / "unet" / name)
    (folder / "unet" / f"{WEIGHTS}.bin").touch()  # never opened
    others = f"{WEIGHTS}.bin, {names[1]}, {names[0]}"
    assert open_published(folder).notes == [
        f"the weights {names[2]} are taken, and not {others}"
    ]
    assert read(folder)["conv_in"]["bias"][0] == 2
    # Another is had by its name, with the config beside it.
    assert read(folder / "unet" / names[0])["conv_in"]["bias"][0] == 0
    (folder / "unet" / f"{WEIGHTS}.bin").unlink()
    for i in (2, 1):
        assert read(folder)["conv_in"]["bias"][0] == i
        (folder / "unet" / names[i]).unlink()
    assert read(folder)["conv_in"]["bias"][0] == 0
    (note,) = open_published(folder).notes
    assert note == f"the weights are {names[0]}, raw ones"
