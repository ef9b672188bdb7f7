"""The public names: what a notebook needs, and what it needed before."""

from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import call, random_params, tiny

import ddpm_jax
from ddpm_jax import convert, diffusion, sample
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import sweep
from ddpm_jax.experiment import build, load, run
from ddpm_jax.experiment.model import build_model, complete
from ddpm_jax.experiment.options import SampleOptions
from ddpm_jax.files import read_arrays


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "run"
    run.write(folder, tiny(), random_params(build.build(tiny())))
    return folder


def test_what_there_is_is_listed():
    assert dir(ddpm_jax) == sorted(ddpm_jax.__all__)
    assert all(getattr(ddpm_jax, name) is not None for name in dir(ddpm_jax))
    assert Path(ddpm_jax.__file__).with_name("py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'drawn'"):
        ddpm_jax.drawn  # noqa: B018, it fails


def test_draw_gives_what_the_command_gives(workdir, tmp_path):
    """Of any number and batch size, in the order of the labels."""
    given = "--num", 6, "--labels", "3,5", "--seed", 2, "--out", tmp_path / "a.npz"
    call(sample, "--workdir", workdir, *given)
    model = ddpm_jax.load(workdir)
    for num, size in ((6, 1), (3, 64)):
        pictures = ddpm_jax.draw(model, num, seed=2, labels=[3, 5], batch_size=size)
        assert pictures.dtype == np.uint8
        np.testing.assert_array_equal(
            pictures, read_arrays(tmp_path / "a.npz")["images"][:num]
        )
    with pytest.raises(ValueError, match="labels must lie in 0 ... 9"):
        ddpm_jax.draw(model, 2, labels=[10])
    with pytest.raises(ValueError, match="must be positive"):
        ddpm_jax.draw(model, 0)


def test_one_door_for_runs_and_published_models(workdir, tmp_path):
    call(convert, "--workdir", workdir, "--out", tmp_path / "published")
    changes = ["timesteps.num_steps=3"]
    models = [
        ddpm_jax.load(path, changes) for path in (workdir, tmp_path / "published")
    ]
    for ours, theirs in zip(*(jax.tree.leaves(m.params) for m in models), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [len(model.timesteps) for model in models] == [4, 4]
    with pytest.raises(ConfigError, match="config.network.norm_eps: the model was"):
        ddpm_jax.load(workdir, ["network.norm_eps=1e-3"])


def test_what_would_have_no_effect_is_refused(workdir):
    with pytest.raises(ConfigError, match="is no run: ema and step are of runs"):
        ddpm_jax.load("google/ddpm-cifar10-32", step=100)
    with pytest.raises(ConfigError, match="is a run: settings are of published"):
        ddpm_jax.load(workdir, settings=object())


def test_what_was_written_before_still_works(workdir):
    """For one version, with a warning: a pair, a whole config, two names."""
    with pytest.warns(FutureWarning, match="with its parameters in model.params"):
        experiment, params = ddpm_jax.load(workdir)
    assert experiment.params is params
    with pytest.warns(FutureWarning, match="ddpm_jax.load loads all models"):
        model = ddpm_jax.load_pretrained(str(workdir))
    np.testing.assert_array_equal(
        *(jax.tree.leaves(m)[0] for m in (params, model.params))
    )
    with pytest.warns(FutureWarning, match="is in samplers"):
        assert diffusion.sampling.sample is diffusion.samplers.sample
    settings = tiny("sampler={'name': 'ddim'}")
    assert ddpm_jax.load(workdir, settings).config["sampler"] == {"name": "ddim"}


def test_a_model_needs_nothing_that_trains():
    config = tiny("optimizer={'name': 'nosuch'}", "loss={'name': 'nosuch'}")
    assert build_model(config).params is None
    with pytest.raises(ConfigError, match="nosuch"):
        build.build(config)


def test_what_decides_samples_is_named_as_before():
    """So that a folder that was begun goes on, and scores are not made again."""
    named = ["clip", "dynamic_largest", "dynamic_percentile", "guidance_interval"]
    named += ["guidance_rescale", "guidance_scale", "rederive"]
    assert sorted(complete(tiny())["denoiser"]) == named
    other = tiny("denoiser.guidance=mine.py:f")
    assert complete(other)["denoiser"]["guidance"] == "mine.py:f"


def test_rows_of_a_sweep_share_all_but_the_sampler(workdir):
    options = SampleOptions()
    rows = [*sweep.rows(load.from_run(workdir), ["ddim:2,3", "ddpm:2"], options)]
    assert [row.name for row in rows] == ["ddim:2", "ddim:3", "ddpm:2"]
    assert len({row.model.network.apply for row in rows}) == 1
    assert len({row.model.init for row in rows}) == 1
    assert [len(row.model.timesteps) for row in rows] == [3, 4, 3]
