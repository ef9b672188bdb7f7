"""Scores end to end: of runs, of published models, of images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jobs import environment
from scored import PIXELS, values, write_run
from tiny import call, tiny

import ddpm_jax
from ddpm_jax import convert, evaluate
from ddpm_jax.data import arrays as sources
from ddpm_jax.data import images
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import image_sets, report
from ddpm_jax.metrics import frechet, kernel
from ddpm_jax.sampling import draw

workdir = pytest.fixture(write_run, scope="module")


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """A run of the network that can be published, and knows bfloat16."""
    return write_run(tmp_path_factory, tiny("network.channel_mults=[1]"))


# Of a model, against real images.


def test_scores_of_samples(workdir, tmp_path):
    """They are those of the images that are drawn, computed by hand."""
    out = tmp_path / "scores.json"
    call(evaluate, "--workdir", workdir, *PIXELS, "--num", 70, "--out", out)
    run = ddpm_jax.load(workdir)
    params = run.params
    labels = np.resize(np.arange(10), 70)
    drawn = jax.jit(run.sample_fn)(params, draw.sample_keys(0, 70), labels)
    source = sources.digits("train")
    ours, real = (
        (x.astype(np.float64) / 127.5 - 1).reshape(len(x), -1)
        for x in (np.asarray(images.to_uint8(drawn)), source.images)
    )
    a, b = (frechet.Gaussian(np.mean(x, axis=0), np.cov(x.T)) for x in (ours, real))
    found = values(out, "ddpm:5")
    np.testing.assert_allclose(found["fd"], frechet.frechet_distance(a, b), rtol=1e-4)
    kid, _ = kernel.kernel_distance(ours, real, subset_size=70)
    np.testing.assert_allclose(found["kid"], kid, rtol=1e-4)
    assert {*found} == {"fd", "kid", "precision", "recall", "density", "coverage"}


def test_the_protocol_is_beside_each_number(workdir, tmp_path):
    out = tmp_path / "scores.json"
    given = ["--workdir", workdir, *PIXELS, "--num", 20, "--out", out, "--seed", 3]
    call(evaluate, *given, "--labels", "7", "--sampler", "ddim", "--eta", 0.5)
    for score in report.load(out):
        protocol = score.protocol
        assert protocol["features"] == {"name": "pixels"} and protocol["num"] == 20
        assert protocol["images"]["sampler"] == {"name": "ddim", "eta": 0.5}
        assert protocol["images"]["seed"] == 3 and protocol["network_calls"] == 5
        assert protocol["images"]["classes"] == "7"
        assert protocol["images"]["model"]["weights"] == "ema"
        assert protocol["images"]["model"]["step"] == 0
        assert protocol["reference"]["images"]["split"] == "train"
        assert protocol["reference"]["num"] == 1498
        assert score.warnings, "20 samples are few"


def test_what_is_done_is_not_done_again(workdir, tmp_path, monkeypatch):
    """A stop in the middle loses no features and changes no number."""
    given = ["--workdir", workdir, *PIXELS, "--num", 64]
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    call(evaluate, *given, "--out", whole)
    of_model, calls, limit = image_sets.from_model, [], 3

    def counted(*given, **more):
        subject = of_model(*given, **more)

        def draw(positions):
            if len(calls) == limit:
                raise KeyboardInterrupt
            calls.append(len(positions))
            return subject.draw(positions)

        return subject._replace(draw=draw)

    monkeypatch.setattr(image_sets, "from_model", counted)
    with pytest.raises(KeyboardInterrupt):
        call(evaluate, *given, "--out", parts)
    assert not parts.exists() and sum(calls) == 48
    limit = 4
    call(evaluate, *given, "--out", parts)
    assert sum(calls) == 64, "one batch was left"
    assert values(parts) == values(whole)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    call(evaluate, *given, "--out", parts)  # all is known: nothing is drawn
    assert sum(calls) == 64
    with pytest.raises(KeyboardInterrupt):
        call(evaluate, *given, "--seed", 1, "--out", parts)  # of another seed, nothing


def test_devices_and_processes_give_the_same_numbers(workdir, tmp_path):
    """37 samples, which nothing divides; references are made by all together, too.

    Eight devices of one process and two of each of two.
    """
    given = ["--workdir", workdir, *PIXELS, "--num", 37]
    given[given.index("fd,kid,pr,dc")] = "fd,kid,pr,bpd"
    alone, shared = tmp_path / "alone.json", tmp_path / "shared.json"
    call(evaluate, *given, "--out", alone)
    module = ["ddpm_jax.evaluate", *map(str, given), "--out", str(shared)]
    result = subprocess.run(
        ["launch/local.sh", "2", *module],
        env={
            **environment(devices=2),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    one, other = values(alone), values(shared)
    assert {*one} == {*other}
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-4, err_msg=name)


# Of images that are there.


def test_images_of_a_folder_or_a_file(tmp_path):
    pictures, labels = sources.digits("test").images, None
    images.save_folder(tmp_path / "folder", pictures, labels)
    np.savez(tmp_path / "a.npz", arr_0=pictures)
    found = []
    for path in ("folder", "a.npz"):
        out = tmp_path / "scores.json"
        config = ["--config", "configs/digits.py"]
        call(evaluate, "--images", tmp_path / path, *config, *PIXELS, "--out", out)
        found.append(report.load(out)[0])
        out.unlink()
    assert found[0].value == found[1].value and found[0].subject == "images"


def test_memorisation(tmp_path):
    """Half of the images are of the training set."""
    train, test = (sources.digits(split).images for split in ("train", "test"))
    np.savez(tmp_path / "a.npz", images=np.concatenate([train[:20], test[:20]]))
    out = tmp_path / "scores.json"
    given = ["--images", tmp_path / "a.npz", "--metrics", "memorisation", "--out", out]
    call(evaluate, *given, "--features", "pixels", "--config", "configs/digits.py")
    found = values(out)
    assert found["copies"] == 0.5 and 0.65 < found["memorisation"] < 0.85
    pairs, distances = sorted(path.name for path in tmp_path.glob("*.png"))
    assert distances == pairs.replace(".png", "_distances.png")
    assert pairs.startswith("memorisation_images_")


# Bits per dimension.


def test_bits(workdir, tmp_path):
    out, small = tmp_path / "scores.json", tmp_path / "small.json"
    given = ["--workdir", workdir, "--num", 5]
    both = [*given, "--metrics", "bpd,ode_bpd", "--tolerance", 1e-3]
    call(evaluate, *both, "--out", out)
    found = {score.metric: score for score in report.load(out)}
    protocol = found["bpd"].protocol
    assert protocol["variance"] == "learned_range" and protocol["num_steps"] == 20
    assert protocol["split"] == "data:test" and protocol["num"] == 5
    assert all(np.isfinite(score.value + score.error) for score in found.values())
    bpd = [*given, "--metrics", "bpd"]
    call(evaluate, *bpd, "--batch_size", 4, "--out", small)
    np.testing.assert_allclose(values(small)["bpd"], found["bpd"].value, rtol=1e-5)
    call(evaluate, *bpd, "--variance", "fixed_small", "--out", small)
    assert values(small)["bpd"] != found["bpd"].value
    call(evaluate, *both, "--out", out)
    assert len(json.loads(out.read_text())) == 2, "known scores are not repeated"


def test_a_published_model_is_scored_on_the_data_given(unet, tmp_path):
    folder = tmp_path / "published"
    call(convert, "--workdir", unet, "--out", folder)
    found = []
    for model in (["--workdir", unet], ["--pretrained", folder]):
        out = tmp_path / f"{len(found)}.json"
        given = [*model, "--config.data={'name': 'digits'}", "--num", 5, "--out", out]
        call(evaluate, *given, "--metrics", "bpd")
        found.append(values(out)["bpd"])
    np.testing.assert_allclose(*found, rtol=1e-6)


# Mistakes, and changes.


MISTAKES = {
    "unknown metric 'bdp'; did you mean 'bpd'": "--metrics bdp",
    "no split 'tset'": "--metrics bpd --split tset",
    "no split 'tst'": "--metrics fd --features pixels --reference tst",
    "no reference x.npz: python -m": "--metrics fd --features pixels --reference x.npz",
    "--num must be at least 2": "--num 1",
    "unknown variance 'learned'": "--metrics bpd --variance learned",
    "--tolerance must lie": "--metrics ode_bpd --tolerance 0",
    "--tolerance would have no effect": "--metrics bpd --tolerance 1e-3",
    "is: --reference would have no effect": "--metrics is --reference x.npz",
    "--inception belongs to": "--metrics kid --features pixels --inception x",
    "--eta would have no effect": "--metrics bpd --eta 0.5",
    "--config would have no effect": "--metrics bpd --config x.py",
    "there is no folder": "--out nowhere/at/all.json",
    "fid is of the features 'inception'": "--metrics fid,accuracy --features pixels",
    "accuracy is of the features 'classifier'": "--metrics fid,accuracy",
    "is called fid": "--metrics fid,fd",
    "--features resnet: unknown network": "--metrics fd --features resnet",
    "unknown convention 'tff'; did you mean 'tf'": "--convention tff --inception x",
    "no file w.pth: download": "--inception w.pth",
    "no file 'f.py'": "--metrics fd --features f.py",
    "give NAME:STEPS": "--metrics fd --sweep ddim",
    "unknown name 'dimm'; did you mean 'ddim'": "--metrics fd --sweep dimm:3",
    "--steps would have no effect": "--metrics fd --sweep ddim:3 --steps 4",
    "num_steps must be 1 ... 20": "--metrics fd --sweep ddim:21",
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_of_evaluation(workdir, tmp_path, message):
    given = MISTAKES[message].split()
    if "--out" not in given:
        given += ["--out", tmp_path / "scores.json"]
    with pytest.raises((ConfigError, OSError), match=message):
        call(evaluate, "--workdir", workdir, *given)
    assert not [*tmp_path.iterdir()]


def test_images_have_no_likelihood_and_need_data(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((9, 8, 8, 1), np.uint8))
    given = ["--images", tmp_path / "a.npz", "--out", tmp_path / "s.json"]
    with pytest.raises(ConfigError, match="bpd is of a model, not of --images"):
        call(evaluate, *given, "--metrics", "bpd")
    with pytest.raises(ConfigError, match="compared with.* --reference FILE.npz, or"):
        call(evaluate, *given, "--metrics", "fd", "--features", "pixels")
    with pytest.raises(ConfigError, match="trained on a data set: give --config"):
        call(evaluate, *given, "--metrics", "fd")
    with pytest.raises(ConfigError, match="there is no file .*b.npz"):
        call(evaluate, "--images", tmp_path / "b.npz")


def test_a_change_of_the_network_is_another_protocol(unet, tmp_path):
    out = tmp_path / "scores.json"
    given = ["--workdir", unet, *PIXELS, "--num", 16, "--out", out]
    call(evaluate, *given)
    call(evaluate, *given, "--config.network.dtype=bfloat16")
    one, other = (s.value for s in report.load(out) if s.metric == "fd")
    assert one != other


def test_a_damaged_file_of_scores_is_not_overwritten(workdir, tmp_path):
    out = tmp_path / "scores.json"
    out.write_text('[{"sub')
    with pytest.raises(ConfigError, match="is damaged or holds no scores: move it"):
        call(evaluate, "--workdir", workdir, *PIXELS, "--out", out)
    assert out.read_text() == '[{"sub'
