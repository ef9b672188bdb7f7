"""A transformer goes through every command as the U-Net does."""

import numpy as np
import pytest
from tiny import call, fit, random_params

import ddpm_jax
from ddpm_jax import evaluate, sample
from ddpm_jax.data import images
from ddpm_jax.evaluation import report
from ddpm_jax.experiment import build, config
from ddpm_jax.experiment import run as runs
from ddpm_jax.files import read_arrays

SMALL = (
    "network.depth=4",
    "network.channels=16",
    "network.num_heads=2",
    "network.class_tokens=2",
    "timesteps.num_steps=4",
    "data.batch_size=8",
    "train={'num_steps': 3, 'save_every': 3, 'sample_every': 3, 'log_every': 1}",
    "train.num_samples=4",
    "optimizer.learning_rate=0.05",
    "optimizer.warmup_steps=0",
    "train.averages.short={'name': 'constant', 'decay': 0.5}",
)


def settings(*changes):
    return config.read_config("configs/digits_jit.py", (*SMALL, *changes))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("transformer") / "run"
    assert fit(settings(), workdir) == 0
    return workdir


@pytest.fixture(scope="module")
def of_random_weights(tmp_path_factory):
    """A run whose classes matter, which take longer to be learned."""
    folder = tmp_path_factory.mktemp("transformer") / "random"
    runs.write(folder, settings(), random_params(build.build(settings())))
    return folder


def drawn(workdir, tmp_path, *given):
    out = tmp_path / "a.npz"
    call(sample, "--workdir", workdir, "--num", 4, "--out", out, *given)
    return read_arrays(out)["images"]


def test_it_draws_by_each_average(workdir, tmp_path):
    plain = drawn(workdir, tmp_path)
    assert (drawn(workdir, tmp_path, "--weights", "short") != plain).any()


def test_it_draws_with_guidance_and_other_samplers(of_random_weights, tmp_path):
    plain = drawn(of_random_weights, tmp_path)
    assert plain.shape == (4, 8, 8, 1)
    for given in (
        ("--guidance_scale", 3),
        ("--guidance_scale", 3, "--config.denoiser.guidance_interval=0.1,3"),
        ("--sampler", "dpmpp_2m", "--timesteps", "trailing"),
        ("--config.sampler.t_eps=0.3",),
    ):
        other = drawn(of_random_weights, tmp_path, *given)
        assert (other != plain).any(), given


def test_what_is_known_of_a_picture_stays(workdir, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
    mask = np.zeros((8, 8, 1), np.uint8)
    mask[:4] = 255
    images.save_png(tmp_path / "p.png", picture)
    images.save_png(tmp_path / "m.png", mask)
    edit = ("--inpaint", tmp_path / "p.png", "--mask", tmp_path / "m.png")
    found = drawn(workdir, tmp_path, *edit, "--labels", 3)
    np.testing.assert_array_equal(found[:, 4:], np.tile(picture[4:], (4, 1, 1, 1)))


def test_it_is_scored(workdir, tmp_path):
    out = tmp_path / "scores.json"
    given = ("--workdir", workdir, "--num", 8, "--out", out, "--batch_size", 4)
    call(evaluate, *given, "--metrics", "ode_bpd,fd", "--features", "pixels")
    found = {score.metric: score.value for score in report.load(out)}
    assert {*found} == {"ode_bpd", "fd"} and all(map(np.isfinite, found.values()))


def test_another_begins_from_it(workdir, tmp_path):
    given = f"init_from={workdir}", "train.num_steps=1"
    assert fit(settings(*given), tmp_path / "more") == 0
    assert (
        ddpm_jax.load(tmp_path / "more").params["blocks"]["proj"]["bias"].shape[0] == 4
    )


@pytest.mark.parametrize("change, message", [
    ("network.patch_size=3", "cannot be cut into patches of 3x3"),
    ("network.size=XL", "size must be one of S, M, B"),
    ("network.num_heads=3", "must be a multiple of 4 x num_heads"),
    ("network.depht=3", "did you mean 'depth'"),
])  # fmt: skip
def test_mistakes_are_named(change, message):
    with pytest.raises(ddpm_jax.errors.ConfigError, match=message):
        build.build(settings(change))
