"""A sampler as one file: what it draws elsewhere, and what is beside it."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from plain import NAME
from safetensors.numpy import load_file, save_file
from tiny import call, tiny

import ddpm_jax
from ddpm_jax import convert
from ddpm_jax import export as export_main
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import config, run
from ddpm_jax.experiment.model import build_model
from ddpm_jax.interop import own
from ddpm_jax.sampling import portable
from ddpm_jax.sampling.draw import sample_keys

SAMPLERS = {
    "ddpm": ("sampler={'name': 'ddpm', 'variance': 'learned_range'}",),
    "ddim": ("sampler={'name': 'ddim', 'eta': 0.5}", "denoiser.guidance_scale=2.0"),
    "dpmpp_2m": ("sampler={'name': 'dpmpp_2m'}", "denoiser.guidance_scale=3.0"),
    "heun": (
        "sampler={'name': 'heun'}",
        "timesteps={'name': 'karras', 'num_steps': 4}",
    ),
    "unipc": ("sampler={'name': 'unipc'}",),
}
NUM = 5
ELSEWHERE = """
import jax.export, numpy as np, sys
drawn = {}
for name in sys.argv[1].split(","):
    content = bytearray(open(f"{name}.stablehlo", "rb").read())
    sampler = jax.export.deserialize(content)
    drawn[name] = sampler.call(np.uint32(7), np.arange(5), np.arange(5) % 10)
np.savez("drawn.npz", **drawn)
assert not {"ddpm_jax", "flax"} & {*sys.modules}
"""


def filled(model):
    """The model with parameters, at random."""
    random = np.random.default_rng(0)
    draw = lambda x: (0.2 * random.standard_normal(x.shape)).astype(x.dtype)
    return dataclasses.replace(
        model, params=jax.tree.map(draw, model.abstract_params())
    )


def trained(*changes):
    return filled(build_model(tiny("network.label_dropout=0.1", *changes)))


@pytest.fixture(scope="module")
def models():
    return {name: trained(*changes) for name, changes in SAMPLERS.items()}


@pytest.fixture(scope="module")
def written(models, tmp_path_factory):
    """The samplers as files, and what another process draws with them."""
    folder = tmp_path_factory.mktemp("portable")
    for name, model in models.items():
        one = {"batch_size": NUM, "platforms": ("cpu",)}
        portable.write(folder / f"{name}.stablehlo", model, **one)
    portable.write(folder / "any.stablehlo", models["ddim"])
    code = [sys.executable, "-c", ELSEWHERE, ",".join([*models, "any"])]
    subprocess.run(code, cwd=folder, check=True, env=os.environ)
    return folder


def expected(model, seed=7, num=NUM):
    labels = np.arange(num) % 10
    return jax.jit(model.sample_fn)(model.params, sample_keys(seed, num), labels)


@pytest.mark.parametrize("name", SAMPLERS)
def test_it_draws_elsewhere_what_is_drawn_here_bit_for_bit(models, written, name):
    with np.load(written / "drawn.npz") as drawn:
        images = np.asarray(expected(models[name]))
        np.testing.assert_array_equal(drawn[name], images, strict=True)
        assert np.ptp(images) > 0.1


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m"])
def test_for_any_number_it_draws_the_same_but_for_rounding(models, name):
    program = portable.trace_sampler(models[name])
    for num in (1, NUM):
        given = np.uint32(7), np.arange(num), np.arange(num) % 10
        images = expected(models[name], num=num)
        np.testing.assert_allclose(program.call(*given), images, atol=5e-6)


def test_its_card_says_what_it_is(models, written):
    card = json.loads((written / "any.json").read_text())
    assert card["protocol"] == json.loads(json.dumps(models["ddim"].protocol()))
    assert card["times"] == models["ddim"].timesteps.tolist()
    assert card["takes"]["labels"] == "int32 [b], 0 ... 9; 10 for none"
    assert card["jax"] == jax.__version__ and card["platforms"] == [
        "cpu",
        "cuda",
        "tpu",
    ]
    # What it says to type is right.
    code = "\n".join([*card["python"], "assert images.shape == (16, 8, 8, 1)"])
    subprocess.run([sys.executable, "-c", code], cwd=written, check=True)
    card = json.loads((written / "ddim.json").read_text())
    assert card["gives"] == "float32 [5, 8, 8, 1] in [-1, 1]"
    assert card["python"][-1].endswith("np.arange(5), np.arange(5) % 10)")


def test_parameters_may_lie_apart(models, tmp_path):
    path, model = tmp_path / "a.stablehlo", models["ddim"]
    one = {"batch_size": NUM, "platforms": ("cpu",)}
    portable.write(path, model, is_apart=True, **one)
    params = load_file(tmp_path / "a.safetensors")
    sampler = export.deserialize(bytearray(path.read_bytes()))
    given = np.uint32(7), np.arange(NUM), np.arange(NUM)
    np.testing.assert_array_equal(sampler.call(params, *given), expected(model))
    program = portable.trace_sampler(model, **one)
    size = sum(array.nbytes for array in params.values())
    assert path.stat().st_size < len(program.serialize()) - size / 2
    found = ddpm_jax.load(tmp_path / "a.safetensors")
    jax.tree.map(np.testing.assert_array_equal, found.params, model.params)
    assert found.protocol() == model.protocol()


def test_what_is_no_class_is_not_a_number(models):
    program = portable.trace_sampler(models["ddim"])
    labels = np.array([-1, 0, 10, 11, 2**31 - 1])
    images = np.asarray(program.call(np.uint32(0), np.arange(5), labels))
    is_bad = np.isnan(images).all((1, 2, 3))
    assert is_bad.tolist() == [True, False, False, True, True]
    assert not np.isnan(images[~is_bad]).any()


def test_image_i_is_the_same_whatever_is_asked_beside_it(models):
    program = portable.trace_sampler(models["ddpm"])
    images = program.call(np.uint32(7), np.arange(NUM), np.arange(NUM))
    some = program.call(np.uint32(7), np.array([4, 1]), np.array([4, 1]))
    np.testing.assert_allclose(some, images[np.array([4, 1])], atol=1e-5)


NETWORKS = {
    "unet": ("digits.py", ()),
    "ddpmpp": (
        "cifar_edm.py:unconditional",
        ("network.channels=8",),
    ),
    "jit": ("digits_jit.py", ("network.depth=2", "network.channels=16")),
    "uvit": ("cifar_uvit.py", ("network.depth=2", "network.channels=16")),
    "unconditional": ("cifar.py", ("network.channels=8", "network.num_groups=4")),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_for_any_number_of_images(name):
    recipe, changes = NETWORKS[name]
    settings = config.read_config(f"configs/{recipe}", changes)
    model = filled(build_model(settings))
    program = portable.trace_sampler(model, is_apart=True)
    assert str(program.out_avals[0].shape[0]) == "b"
    assert len(program.in_avals) - len(jax.tree.leaves(model.params)) == (
        3 if model.num_classes else 2
    )


def test_a_network_for_a_known_number_is_told(models):
    def sample_fn(params, keys, labels):
        return jnp.zeros((len(keys), 8, 8, 1))

    model = dataclasses.replace(models["ddim"], sample_fn=sample_fn)
    with pytest.raises(ConfigError, match=r"give --batch_size, or use x.shape\[0\]"):
        portable.trace_sampler(model)
    portable.trace_sampler(model, batch_size=2)


def test_a_file_that_would_be_too_large_is_refused(models, monkeypatch):
    monkeypatch.setattr(portable, "_MOST", 1000)
    with pytest.raises(ConfigError, match="give --apart"):
        portable.trace_sampler(models["ddim"])
    portable.trace_sampler(models["ddim"], is_apart=True)


@pytest.fixture
def workdir(models, tmp_path):
    model = models["ddim"]
    run.write(tmp_path / "run", model.config, model.params)
    return tmp_path / "run"


def test_the_command(workdir, tmp_path, capsys):
    out = tmp_path / "new" / "a.stablehlo"
    given = ("--workdir", workdir, "--out", out, "--sampler", "dpmpp_2m", "--steps", 3)
    call(export_main, *given, "--platforms", "cpu")
    assert "a.json says how to use it" in capsys.readouterr().out
    card = json.loads(out.with_suffix(".json").read_text())
    assert len(card["times"]) == 4 and card["platforms"] == ["cpu"]
    assert str(tmp_path) not in json.dumps(card)
    with pytest.raises(ConfigError, match="a name ends in|ends in .stablehlo"):
        call(export_main, "--workdir", workdir, "--out", tmp_path / "a.png")


def test_a_model_as_one_file(workdir, tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    call(convert, "--workdir", workdir, "--out", path)
    found, there = ddpm_jax.load(path), ddpm_jax.load(workdir)
    jax.tree.map(np.testing.assert_array_equal, found.params, there.params)
    assert found.protocol() == there.protocol()
    assert "data" not in json.loads(own._header(path)[own.HEADER])
    # It is what a run was: another run is made of it, too.
    call(convert, "--pretrained", path, "--out", tmp_path / "again")
    again = ddpm_jax.load(tmp_path / "again")
    jax.tree.map(np.testing.assert_array_equal, again.params, there.params)


def test_a_damaged_model_is_told(workdir, tmp_path):
    path = tmp_path / "model.safetensors"
    call(convert, "--workdir", workdir, "--out", path)
    tensors, header = load_file(path), own._header(path)

    def told(message, changed=tensors, **said):
        save_file(changed, path, metadata={**header, **said})
        with pytest.raises(OSError, match=message):
            ddpm_jax.load(path)

    name = min(tensors)
    told(f"holds no {name}", {k: v for k, v in tensors.items() if k != name})
    told("holds also more", {**tensors, "more": tensors[name]})
    told(f"another shape of {name}", {**tensors, name: tensors[name][None]})
    told("its header is damaged", ddpm_jax="{")
    told("its header is damaged", ddpm_jax="{}")
    named = {**json.loads(header["ddpm_jax"]), "network": {"name": "evil.py:run"}}
    told("asks for code, config.network.name=evil.py:run", ddpm_jax=json.dumps(named))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(OSError, match=str(path)):
        ddpm_jax.load(path)


def test_code_does_not_travel_in_a_file_of_tensors(tmp_path):
    network = f"network={{'name': '{NAME}', 'num_classes': 10}}"
    one = "loss={'name': 'simple'}", "sampler={'name': 'ddim'}"
    model = filled(build_model(tiny(network, *one)))
    with pytest.raises(OSError, match="config.network.name=.* is code"):
        own.export(model.sections, model.params, tmp_path / "a.safetensors")
    assert not [*tmp_path.iterdir()]
