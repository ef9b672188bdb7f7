"""`docs/extending.md`, run: every part of a model by somebody else."""

import importlib
import os
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import call, fit, random_params, tiny

import ddpm_jax
from ddpm_jax import evaluate, sample
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import build, config, init_from, load, registry
from ddpm_jax.experiment import run as runs

PARTS = {
    "schedule": "{'name': 'mine.py:straight', 'num_steps': 20}",
    "network": "{'name': 'mine.py:small', 'width': 4, 'num_classes': 10}",
    "loss": "{'name': 'mine.py:absolute'}",
    "optimizer": "{'name': 'mine.py:heavy', 'momentum': 0.5, 'learning_rate': 0.01}",
    "sampler": "{'name': 'mine.py:plain', 'noise': 0.5}",
    "timesteps": "{'name': 'mine.py:two'}",
    "data": "{'name': 'mine.py:stripes', 'num': 16, 'batch_size': 8}",
    "train": "{'num_steps': 2, 'sample_every': 0, 'num_samples': 8}",
}
OVERRIDES = [f"{section}={value}" for section, value in PARTS.items()]
RECIPE = os.path.abspath("configs/digits.py")


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The file of the page, in the folder where commands are started."""
    blocks = re.findall(
        r"```python\n(.*?)```", Path("docs/extending.md").read_text(), re.S
    )
    monkeypatch.chdir(tmp_path)
    path = Path("mine.py")
    path.write_text("from __future__ import annotations\n\n" + "\n\n".join(blocks))
    return path


def trained(workdir="runs/mine"):
    fit(config.read_config(RECIPE, OVERRIDES), workdir)
    return workdir


def samples(workdir, *more):
    given = "--workdir", workdir, "--num", "4", "--out", "samples.npz", *more
    call(sample, *given)
    with np.load("samples.npz") as drawn:
        return drawn["images"]


def test_the_page(mine):
    """It trains, draws and is scored; the copy in the run serves when it is gone."""
    workdir = trained()
    drawn = samples(workdir)
    assert drawn.shape == (4, 8, 8, 1)
    given = "--metrics", "fd", "--num", "8", "--features", "mine.py:corners"
    sweep = "--sweep", "mine.py:plain@trailing:2,3", "data:train"
    call(evaluate, "--workdir", workdir, *given, *sweep, "--reference", "train")
    mine.rename("elsewhere.py")
    np.testing.assert_array_equal(samples(workdir), drawn)


def test_what_was_trained_is_what_is_loaded(mine):
    workdir = trained()
    before = samples(workdir)
    mine.write_text(mine.read_text().replace("(1 - noise)", "(0.5 - noise)"))
    np.testing.assert_array_equal(samples(workdir), before)
    changed = runs.changes(Path(workdir), config.read_config(RECIPE, OVERRIDES))
    assert len(changed) == 1 and "mine.py has changed since" in changed[0]
    named = config.read_config(RECIPE, OVERRIDES)["sampler"]["name"]
    assert load.from_run(workdir).config["sampler"]["name"] != named == "mine.py:plain"


COUNTED = """
from ddpm_jax import networks
import plain

traced = []

def counted(**settings):
    made = plain.plain(**settings)

    def apply(params, x_t, index, cond=None, keys=None):
        traced.append("drawing" if keys is None else "training")
        return made.apply(params, x_t, index, cond, keys)

    def init(key, image_shape):
        traced.append("parameters")
        return made.init(key, image_shape)

    return networks.Network(init, apply)
"""


def test_the_first_step_traces_the_network_once(tmp_path, monkeypatch):
    """For its parameters, for drawing, and for the program of the step itself."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "counted_network.py").write_text(COUNTED)
    network = "network={'name': 'counted_network:counted', 'learned_variance': True}"
    assert fit(tiny(network, "train.num_steps=1"), tmp_path / "run") == 0
    counted = importlib.import_module("counted_network")
    assert sorted(counted.traced) == ["drawing", "parameters", "training"]


def test_a_run_begins_from_one_of_the_same_network(mine):
    """With its parameters as they are; of parts that we do not know, none is fitted."""
    trained()

    def begin(*changes):
        changes = [*OVERRIDES, *changes, "init_from=runs/mine"]
        made = config.read_config(RECIPE, changes)
        return init_from.initial_params(build.build(made))

    for ours, theirs in zip(
        jax.tree.leaves(begin().params),
        jax.tree.leaves(ddpm_jax.load("runs/mine").params),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ConfigError, match="is of another network, width 4 there and 8"):
        begin("network.width=8")
    with pytest.raises(
        ConfigError, match="network mine.py:small, and this run of unet"
    ):
        begin("network={'name': 'unet'}")
    with pytest.raises(ConfigError, match=r"embedding'\] is \(10, 4\) there and \(12,"):
        begin("network.num_classes=12")


def test_guidance_is_asked_with_its_scale(mine):
    drawn = []
    for changes in (
        ["guidance=mine.py:halved", "guidance_scale=3.0"],
        ["guidance_scale=2.0"],
    ):
        built = build.build(
            config.read_config(RECIPE, [f"denoiser.{c}" for c in changes])
        )
        denoiser = built.model.denoiser(
            random_params(built), np.array([1, 2], np.int32)
        )
        drawn.append(denoiser(np.ones((2, 8, 8, 1), np.float32), 500).x_0)
    np.testing.assert_array_equal(*drawn)
    with pytest.raises(ConfigError, match="needs a guidance_scale other than 1"):
        build.build(config.read_config(RECIPE, ["denoiser.guidance=mine.py:halved"]))


def test_an_installed_package():
    lion = "optimizer={'name': 'optax:lion', 'b1': 0.8}"
    build.build(config.read_config(RECIPE, [lion]))
    with pytest.raises(ConfigError, match="unknown setting of lion 'b3'"):
        build.build(config.read_config(RECIPE, [lion.replace("b1", "b3")]))


@pytest.mark.parametrize(
    "change, said",
    [
        ("network.width='wide'", "config.network.width must be a whole number"),
        ("network.wdth=3", "unknown config.network key 'wdth'; did you mean 'width'"),
        ("sampler={'name': 'mine.py:two'}", "mine.py:two must return a Sampler, and"),
        ("sampler.name=mine.py:no", "does not define a function no"),
        ("sampler.name=nowhere.py:f", "config.sampler: no file 'nowhere.py'"),
        ("sampler.name=no.where:f", "config.sampler: no.where:f: No module named 'no'"),
        ("sampler.name=optax:no", "optax does not define a function no"),
        ("sampler.name=dimm", "did you mean 'ddim'"),
        ("optimizer.name=mine.py:no", "config.optimizer.name: mine.py does not define"),
    ],
)
def test_what_does_not_fit_is_said_as_for_ours(mine, change, said):
    with pytest.raises(ConfigError, match=said):
        build.build(config.read_config(RECIPE, [*OVERRIDES, change]))


def test_a_file_that_fails_is_named(mine):
    mine.write_text("import nothing_here")
    with pytest.raises(ConfigError, match="mine.py, line 1: ModuleNotFoundError"):
        registry.choose({"sampler": {"name": "mine.py:plain"}}, "sampler")


NAMES = {
    "schedule": "constant cosine flow from_betas linear log_snr_linear quadratic "
    "sigmoid",
    "network": "ddpmpp jit ncsnpp unet uvit",
    "loss": "hybrid simple vlb",
    "sampler": "ddim ddpm dpmpp_2m dpmpp_3m heun heun_flow plms probability_flow "
    "reverse_sde unipc",
    "timesteps": "custom flow karras leading linspace log_snr_uniform quadratic "
    "trailing",
    "data": "arrays digits folder tfds",
}


def test_the_names_that_configs_and_published_models_may_give():
    """None is lost, for runs and importers name them; and no other is one."""
    known = {key: sorted(family.known) for key, family in registry.FAMILIES.items()}
    assert known == {key: text.split() for key, text in NAMES.items()}


def test_betas_of_a_published_schedule_are_read(mine):
    betas = "schedule={'name': 'from_betas', 'betas': [0.1, 0.2, 0.3]}"
    built = build.build(config.read_config(RECIPE, [betas, "timesteps.num_steps=3"]))
    assert built.model.schedule.num_steps == 3
