"""The mains end to end: train, stop, go on, sample."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import ddpm_jax
from ddpm_jax import experiment, runs
from ddpm_jax.training.checkpoints import Checkpoints

TINY = [
    "network.channels=8",
    "network.channel_mults=1,2",
    "network.num_groups=4",
    "data.batch_size=8",
    "timesteps.num_steps=3",
    "train.num_steps=6",
    "train.log_every=2",
    "train.save_every=2",
    "train.sample_every=6",
    "train.num_samples=4",
]


def command(main, *args, overrides=()):
    text = [f"--config.{change}" for change in overrides]
    return [sys.executable, "-m", f"ddpm_jax.{main}", *map(str, args), *text]


def environment(devices=1):
    flags = re.sub(r"--xla_force_host\S+", "", os.environ["XLA_FLAGS"])
    flags += f" --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags}


def run(main, *args, overrides=(), devices=1):
    return subprocess.run(
        command(main, *args, overrides=overrides),
        capture_output=True,
        text=True,
        env=environment(devices),
        timeout=240,
    )


def train(workdir, *changes, devices=1):
    return run(
        "train",
        "--config",
        "configs/digits.py",
        "--workdir",
        workdir,
        overrides=(*TINY, *changes),
        devices=devices,
    )


def metrics(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def final_state(workdir):
    made = experiment.build(runs.read_config(workdir))
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = checkpoints.restore(made.abstract_state())
    checkpoints.close()
    return state


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of six steps on one device."""
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    result = train(workdir)
    assert result.returncode == 0, result.stderr
    return workdir


def assert_same_state(a, b):
    jax.tree.map(np.testing.assert_array_equal, final_state(a), final_state(b))


def test_a_run_leaves_everything_the_contract_says(workdir):
    assert json.loads((workdir / "config.json").read_text())["seed"] == 0
    records = metrics(workdir)
    assert [record["step"] for record in records] == [2, 4, 6]
    assert set(records[0]) == {
        "step",
        "loss",
        "learning_rate",
        "grad_norm",
        "images_per_sec",
    }
    with Image.open(workdir / "samples" / "step_00000006.png") as picture:
        assert picture.mode == "L" and min(picture.size) >= 128
    assert list(workdir.glob("events.out.tfevents.*"))
    assert int(final_state(workdir).step) == 6


def test_again_there_is_nothing_to_do(workdir):
    before = (workdir / "metrics.jsonl").read_text()
    result = train(workdir)
    assert result.returncode == 0 and "already at step 6" in result.stdout
    assert (workdir / "metrics.jsonl").read_text() == before


def test_two_halves_are_the_whole_bit_for_bit(workdir, tmp_path):
    assert train(tmp_path / "r", "train.num_steps=3").returncode == 0
    result = train(tmp_path / "r")
    assert result.returncode == 0 and "going on from step 3" in result.stdout
    assert_same_state(workdir, tmp_path / "r")


def test_killed_and_run_again_is_uninterrupted_bit_for_bit(tmp_path):
    changes = ("train.num_steps=400", "train.save_every=50", "train.sample_every=0")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(whole, *changes).returncode == 0
    arguments = ["--config", "configs/digits.py", "--workdir", killed]
    with subprocess.Popen(
        command("train", *arguments, overrides=(*TINY, *changes)),
        env=environment(),
        stdout=subprocess.DEVNULL,
    ) as process:
        deadline = time.time() + 200
        while not (killed / "checkpoints" / "00000050").exists():
            assert time.time() < deadline and process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    result = train(killed, *changes)
    assert result.returncode == 0, result.stderr
    assert int(re.search(r"going on from step (\d+)", result.stdout)[1]) < 400
    assert_same_state(whole, killed)
    assert [r["step"] for r in metrics(killed)] == [r["step"] for r in metrics(whole)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path, number):
    workdir = tmp_path / "r"
    changes = ("train.num_steps=100000", "train.save_every=100000", "train.log_every=5")
    arguments = ["--config", "configs/digits.py", "--workdir", workdir]
    with subprocess.Popen(
        command("train", *arguments, overrides=(*TINY, *changes)),
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        while not (workdir / "metrics.jsonl").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    step = int(re.search(r"stopped at step (\d+)", output)[1])
    assert int(final_state(workdir).step) == step > 0


def test_four_devices_train_as_one(workdir, tmp_path):
    result = train(tmp_path / "r", devices=4)
    assert result.returncode == 0, result.stderr
    for alone, shared in zip(metrics(workdir), metrics(tmp_path / "r"), strict=True):
        np.testing.assert_allclose(alone["loss"], shared["loss"], rtol=1e-4)


def test_another_config_is_refused(workdir):
    result = train(workdir, "optimizer.b1=0.5")
    assert result.returncode == 1
    assert "optimizer.b1 is None there and 0.5 here" in result.stderr
    assert result.stderr.count("\n") == 1


def test_mistakes_end_in_one_line(tmp_path):
    result = train(tmp_path / "r", "optimizer.learning_rat=1")
    assert result.returncode == 1 and not (tmp_path / "r").exists()
    assert result.stderr.startswith("error: config.optimizer: unknown setting")
    assert "did you mean 'learning_rate'" in result.stderr
    (tmp_path / "file").write_text("")
    result = train(tmp_path / "file")
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert "file" in result.stderr and "Traceback" not in result.stderr


def test_a_loss_that_is_not_finite_stops(tmp_path):
    changes = ("optimizer.learning_rate=1e30", "optimizer.warmup_steps=0")
    result = train(tmp_path / "r", *changes, "optimizer.clip_norm=None")
    assert result.returncode == 1
    assert re.search(r"error: \w+ is (nan|inf) at step \d", result.stderr)
    assert "of checkpoints" in result.stderr


def test_a_run_that_diverged_can_go_on_more_slowly(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "r")
    result = train(tmp_path / "r", "optimizer.learning_rate=1e-5", "train.num_steps=8")
    assert result.returncode == 0, result.stderr
    assert "optimizer.learning_rate is 0.002 there and 1e-05 here" in result.stdout
    assert int(final_state(tmp_path / "r").step) == 8


def test_one_run_at_a_time(tmp_path):
    with runs.lock(tmp_path):
        result = train(tmp_path)
    assert result.returncode == 1
    assert result.stderr == f"error: another run is training in {tmp_path}\n"


def test_checkpoints_of_an_unknown_config_are_left_alone(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "r")
    (tmp_path / "r" / "config.json").unlink()
    result = train(tmp_path / "r")
    assert result.returncode == 1 and "no config.json" in result.stderr
    (tmp_path / "r" / "config.json").write_text('{"seed": 0,')
    result = train(tmp_path / "r")
    assert result.returncode == 1 and "config.json is damaged" in result.stderr
    assert result.stderr.count("\n") == 1


def sample(workdir, out, *args):
    result = run("sample", "--workdir", workdir, "--out", out, *args)
    assert result.returncode == 0, result.stderr
    return np.load(out) if str(out).endswith(".npz") else None


def test_samples(workdir, tmp_path):
    many = sample(workdir, tmp_path / "a.npz", "--num", 5, "--batch_size", 2)
    assert many["images"].shape == (5, 8, 8, 1) and many["images"].dtype == np.uint8
    np.testing.assert_array_equal(many["labels"], [0, 1, 2, 3, 4])
    few = sample(workdir, tmp_path / "b.npz", "--num", 3)
    difference = few["images"].astype(int) - many["images"][:3]
    assert np.abs(difference).max() <= 1  # a rounding apart, in another batch size
    raw = sample(workdir, tmp_path / "c.npz", "--num", 3, "--weights", "raw")
    assert (raw["images"] != few["images"]).any()


def test_samples_of_another_sampler(workdir, tmp_path):
    arguments = ["--num", 3, "--labels", "7,2", "--guidance_scale", 2, "--seed", 4]
    drawn = [
        sample(workdir, tmp_path / f"{i}.npz", *arguments, *extra)["images"]
        for i, extra in enumerate(
            [
                [],
                ["--sampler", "ddpm", "--variance", "fixed_large", "--steps", 20],
                ["--eta", 1, "--steps", 20, "--timesteps", "quadratic"],
            ]
        )
    ]
    assert (drawn[0] != drawn[1]).any() and (drawn[1] != drawn[2]).any()


def test_pictures_of_samples(workdir, tmp_path):
    sample(workdir, tmp_path / "grid.png", "--num", 4)
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (134, 134)
    sample(workdir, tmp_path / "folder", "--num", 4)
    assert len(list((tmp_path / "folder").rglob("*.png"))) == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--labels", "1,10"], "--labels must be within 0 ... 9"),
        (["--labels", "one"], "--labels must be whole numbers"),
        (["--steps", "5000"], "num_steps must be 1 ... 1000"),
        (["--sampler", "ddimm"], "did you mean 'ddim'"),
        (["--eta", "2"], "eta must lie in"),
        (["--step", "4711"], "no checkpoint of step 4711"),
        (["--out", "a.jpg"], "give a .png, an .npz, or a folder"),
        (["--num", "0"], "must be at least 1"),
    ],
)
def test_mistakes_of_sampling(workdir, capsys, arguments, message):
    from ddpm_jax import cli
    from ddpm_jax.sample import add_arguments, main

    parser = add_arguments(cli.parser("samples"))
    args = parser.parse_args(["--workdir", str(workdir), *arguments])
    with pytest.raises(SystemExit) as exit:
        cli.run(main, args)
    error = capsys.readouterr().err
    assert exit.value.code == 1 and message in error and error.count("\n") == 1


def test_the_programmatic_way(workdir):
    from ddpm_jax.diffusion import denoisers, samplers, sampling, timesteps

    run, params = ddpm_jax.load(workdir)
    sample_fn = jax.jit(
        sampling.make_sample_fn(
            run.network.apply,
            run.schedule,
            samplers.ddim(run.schedule, eta=0.0),
            timesteps.trailing(run.schedule, 3),
            run.image_shape,
            run.predicts,
            transform=lambda denoiser: denoisers.clip(denoiser, run.schedule),
        )
    )
    keys, labels = experiment.sample_keys(0, 4), np.arange(4)
    images = sample_fn(params, keys, labels)
    np.testing.assert_allclose(images, run.sample_fn(params, keys, labels), atol=1e-5)
    with pytest.raises(AttributeError):
        ddpm_jax.nothing  # noqa: B018


def test_two_processes_train_as_one(workdir, tmp_path):
    result = subprocess.run(
        [
            "launch/local.sh",
            "2",
            *command(
                "train",
                "--config",
                "configs/digits.py",
                "--workdir",
                tmp_path / "r",
                overrides=TINY,
            )[2:],
        ],
        env={**environment(), "PORT": "23457", "PATH": _path()},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr
    for alone, shared in zip(metrics(workdir), metrics(tmp_path / "r"), strict=True):
        np.testing.assert_allclose(alone["loss"], shared["loss"], rtol=1e-4)
    assert int(final_state(tmp_path / "r").step) == 6
    assert (tmp_path / "r" / "samples" / "step_00000006.png").exists()


def _path():
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
