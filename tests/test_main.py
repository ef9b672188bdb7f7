"""The mains end to end: train, stop, go on, sample.

As processes of their own where that matters (signals, locks, devices, other processes),
else the same command lines within this one, which has eight devices.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from threading import Event

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jobs import SMALL, environment, final_state
from PIL import Image
from tiny import fit

import ddpm_jax
from ddpm_jax import sample as sampling_main
from ddpm_jax import train as training_main
from ddpm_jax.buckets.base import AwayError
from ddpm_jax.cli import command as cli
from ddpm_jax.compiled.topologies import LIBTPU_FLAGS
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import config
from ddpm_jax.experiment import run as runs
from ddpm_jax.experiment.build import Checked, build
from ddpm_jax.experiment.options import train_options
from ddpm_jax.files import read_arrays
from ddpm_jax.networks.convolutions import conv_3x3
from ddpm_jax.sampling import draw

TINY = (*SMALL, "train.log_every=2", "train.sample_every=6")


def command(main, *args, overrides=()):
    text = [f"--config.{change}" for change in overrides]
    return [sys.executable, "-m", f"ddpm_jax.{main}", *map(str, args), *text]


def run(main, *args, overrides=()):
    return subprocess.run(
        command(main, *args, overrides=overrides),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=240,
    )


def train(workdir, *changes):
    return run(
        "train",
        "--config",
        "configs/digits.py",
        "--workdir",
        workdir,
        overrides=(*TINY, *changes),
    )


@pytest.fixture
def here(capsys, monkeypatch):
    """Command lines within this process: the function returns what `run` does."""

    def run_here(main, *args):
        line = [str(arg) for arg in args]
        monkeypatch.setattr(sys, "argv", [main.__name__, *line])
        parser = main.add_arguments(cli.parser(main.__doc__))
        parse = cli.parse_config if main is training_main else cli.parse
        given = parse(parser)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.run(main.main, given)
        code = exit.value.code
        said = capsys.readouterr()
        return subprocess.CompletedProcess(line, code or 0, said.out, said.err)

    return run_here


@pytest.fixture
def train_here(here):
    def train(workdir, *changes):
        given = [f"--config.{change}" for change in (*TINY, *changes)]
        where = ("--config", "configs/digits.py", "--workdir", workdir)
        return here(training_main, *where, *given)

    return train


def metrics(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run of six steps on one device."""
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    result = train(workdir)
    assert result.returncode == 0, result.stderr
    return workdir


@pytest.fixture(scope="module")
def of_eight(tmp_path_factory):
    """The same run on eight devices."""
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    settings = config.read_config("configs/digits.py", TINY)
    assert fit(settings, workdir) == 0
    return workdir


def assert_same_state(a, b):
    jax.tree.map(np.testing.assert_array_equal, final_state(a), final_state(b))


def test_a_run_leaves_everything_the_contract_says(workdir):
    assert json.loads((workdir / "config.json").read_text())["seed"] == 0
    records = metrics(workdir)
    assert [record["step"] for record in records] == [2, 4, 6]
    by_time = [name for name in records[0] if name.startswith("loss_by_t/q")]
    assert 0 < len(by_time) <= 4
    assert {*records[0]} - {*by_time} == {
        "step",
        "loss",
        "learning_rate",
        "grad_norm",
        "images_per_sec",
        "input_wait",
        "input_images_per_sec",
    }
    with Image.open(workdir / "samples" / "step_00000006.png") as picture:
        assert picture.mode == "L" and min(picture.size) >= 128
    assert list(workdir.glob("events.out.tfevents.*"))
    assert int(final_state(workdir).step) == 6


def test_again_there_is_nothing_to_do(workdir, train_here):
    before = (workdir / "metrics.jsonl").read_text()
    result = train_here(workdir)
    assert result.returncode == 0 and "already at step 6" in result.stdout
    undone = "warning: --config.train.log_every has no effect"
    assert result.stdout.count(undone) == 1  # TINY gives another
    assert (workdir / "metrics.jsonl").read_text() == before


def test_two_halves_are_the_whole_bit_for_bit(of_eight, tmp_path, train_here):
    assert train_here(tmp_path / "r", "train.num_steps=3").returncode == 0
    result = train_here(tmp_path / "r")
    assert result.returncode == 0 and "going on from step 3" in result.stdout
    assert_same_state(of_eight, tmp_path / "r")


def test_calls_of_several_steps_change_no_bit(of_eight, tmp_path, train_here):
    """Cut by another end of the run; as single steps, to rounding."""
    longer = ("train.save_every=100", "train.sample_every=0", "train.steps_per_call=4")
    assert train_here(tmp_path / "whole", *longer).returncode == 0
    for steps in (3, 6):
        given = (*longer, f"train.num_steps={steps}")
        assert train_here(tmp_path / "halves", *given).returncode == 0
    assert_same_state(tmp_path / "whole", tmp_path / "halves")
    records = metrics(tmp_path / "whole")
    assert [record["step"] for record in records] == [2, 4, 6]
    for together, single in zip(records, metrics(of_eight), strict=True):
        for name in ("loss", "grad_norm", "learning_rate"):
            np.testing.assert_allclose(together[name], single[name], rtol=1e-4)


def test_a_signal_saves_and_stops(tmp_path):
    """SIGTERM; test_processes sends SIGINT."""
    workdir = tmp_path / "r"
    changes = ("train.num_steps=100000", "train.save_every=100000", "train.log_every=5")
    changes += ("train.sample_every=0",)
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
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    step = int(re.search(r"stopped at step (\d+)", output)[1])
    assert int(final_state(workdir).step) == step > 0


def test_eight_devices_train_as_one(workdir, of_eight):
    assert jax.local_device_count() == 8
    for alone, shared in zip(metrics(workdir), metrics(of_eight), strict=True):
        np.testing.assert_allclose(alone["loss"], shared["loss"], rtol=1e-4)


def test_another_config_is_refused(workdir, train_here):
    result = train_here(workdir, "optimizer.b1=0.5")
    assert result.returncode == 1
    assert "optimizer.b1 is None there and 0.5 here" in result.stderr
    assert result.stderr.count("\n") == 1


def test_mistakes_end_in_one_line(tmp_path, train_here):
    result = train_here(tmp_path / "r", "optimizer.learning_rat=1")
    assert result.returncode == 1 and not (tmp_path / "r").exists()
    assert result.stderr.startswith("error: config.optimizer: unknown setting")
    assert "did you mean 'learning_rate'" in result.stderr
    (tmp_path / "file").write_text("")
    result = train_here(tmp_path / "file")
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert "file" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_there_is_named(tmp_path, platform, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    result = train(tmp_path / "r")
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert last.startswith(f"error: JAX finds no device with JAX_PLATFORMS={platform}")
    assert last.endswith("or give JAX_PLATFORMS=cpu") and not (tmp_path / "r").exists()


@pytest.mark.parametrize("given", [
    ["--workdir", "hdfs://bucket/run"],
    ["--workdir=S3://bucket/run"],
    ["--config.data.cache=az://bucket/cache"],
    ["--config.init_from", "https://bucket/run"],
])  # fmt: skip
def test_places_on_other_machines_are_refused(here, given):
    result = here(training_main, "--config", "configs/digits.py", *given)
    assert result.returncode == 1 and "://bucket" in result.stderr
    assert "is no place in the file system" in result.stderr


def test_what_cannot_lie_in_a_bucket_is_said(here):
    given = ["--config", "configs/digits.py", "--config.data.cache=gs://bucket/a"]
    result = here(training_main, *given)
    assert result.returncode == 1
    assert "--config.data.cache=gs://bucket/a: give a path of this" in result.stderr


@pytest.mark.parametrize("scheme, client", [("gs", "google.cloud"), ("s3", "boto3")])
def test_a_client_that_is_not_installed_is_named(here, scheme, client, monkeypatch):
    monkeypatch.setitem(sys.modules, client, None)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    given = ["--config", "configs/digits.py", "--workdir", f"{scheme}://bucket/a"]
    result = here(training_main, *given)
    wanted = f"error: {scheme}:// needs its client: pip install '.["
    assert result.returncode == 1 and result.stderr.startswith(wanted)


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_bucket_that_is_away_asks_for_another_start(is_wrapped, capsys):
    def main(args):
        try:
            raise AwayError("gs://b/a is away")
        except AwayError as error:
            if not is_wrapped:
                raise
            raise ConfigError(f"config.data: {error}") from error

    with pytest.raises(SystemExit) as ended:
        cli.run(main, argparse.Namespace(overrides=[]))
    assert ended.value.code == 75
    assert capsys.readouterr().err.endswith("gs://b/a is away\n")


def test_bits_are_asked_for_before_devices_are_found(monkeypatch):
    args = argparse.Namespace(config="configs/digits.py", overrides=[])
    monkeypatch.setenv("XLA_FLAGS", "--of_others")
    training_main._before_devices(args)
    assert os.environ["XLA_FLAGS"] == "--of_others"
    args.overrides = ["train.deterministic=True"]
    training_main._before_devices(args)
    assert os.environ["XLA_FLAGS"] == f"--of_others {training_main.DETERMINISTIC}"
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    options = train_options(config.read_config(args.config, args.overrides))
    with pytest.raises(ConfigError, match="set XLA_FLAGS=--xla_gpu_deterministic_ops"):
        training_main._check_deterministic(options)


def test_compilers_are_told_unless_the_environment_says_something(monkeypatch):
    choice = "--xla_cpu_experimental_ynn_fusion_type"
    monkeypatch.setenv("XLA_FLAGS", "--of_others")
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    for _ in range(2):  # a second time, nothing
        cli.tell_compilers()
        told = f"--of_others {choice}=-individual_convolution"
        assert os.environ["XLA_FLAGS"] == told
    assert os.environ["LIBTPU_INIT_ARGS"] == LIBTPU_FLAGS
    window, *more = LIBTPU_FLAGS.split()
    more = " ".join(more)
    smaller = f"{window.partition('=')[0]}=4096"
    for name, given, told in (
        ("XLA_FLAGS", f"{choice}=", f"{choice}="),
        ("LIBTPU_INIT_ARGS", "--own", f"--own {window} {more}"),
        ("LIBTPU_INIT_ARGS", f"{smaller}  --own", f"{smaller}  --own {more}"),
    ):
        monkeypatch.setenv(name, given)
        cli.tell_compilers()
        assert os.environ[name] == told


def test_xla_keeps_convolutions_on_cpus():
    """The tests run with what the mains tell it, see conftest.py."""
    x, kernel = jnp.ones((8, 16, 16, 32)), jnp.ones((3, 3, 32, 32))
    program = jax.jit(conv_3x3).lower(x, kernel).compile().as_text()
    assert " convolution(" in program and "ynn" not in program


def test_a_run_that_diverged_can_go_on_more_slowly(workdir, tmp_path, train_here):
    """Also on other devices than before."""
    shutil.copytree(workdir, tmp_path / "r")
    slower = ("optimizer.learning_rate=1e-5", "train.num_steps=8")
    result = train_here(tmp_path / "r", *slower)
    assert result.returncode == 0, result.stderr
    assert "optimizer.learning_rate is 0.002 there and 1e-05 here" in result.stdout
    assert int(final_state(tmp_path / "r").step) == 8


def test_one_run_at_a_time(tmp_path, train_here):
    with runs.lock(tmp_path):
        result = train_here(tmp_path)
    assert result.returncode == 1
    assert result.stderr == f"error: another run is training in {tmp_path}\n"


def test_checkpoints_of_an_unknown_config_are_left_alone(workdir, tmp_path, train_here):
    shutil.copytree(workdir, tmp_path / "r")
    (tmp_path / "r" / "config.json").unlink()
    result = train_here(tmp_path / "r")
    assert result.returncode == 1 and "no config.json" in result.stderr
    (tmp_path / "r" / "config.json").write_text('{"seed": 0,')
    result = train_here(tmp_path / "r")
    assert result.returncode == 1 and "config.json is damaged" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.fixture
def sample(workdir, here):
    def draw(out, *args):
        result = here(sampling_main, "--workdir", workdir, "--out", out, *args)
        assert result.returncode == 0, result.stderr
        return read_arrays(out) if str(out).endswith(".npz") else None

    return draw


def test_samples(sample, tmp_path):
    many = sample(tmp_path / "a.npz", "--num", 20, "--batch_size", 8)
    assert many["images"].shape == (20, 8, 8, 1) and many["images"].dtype == np.uint8
    np.testing.assert_array_equal(many["labels"], np.arange(20) % 10)
    few = sample(tmp_path / "b.npz", "--num", 11)
    difference = few["images"].astype(int) - many["images"][:11]
    assert np.abs(difference).max() <= 1  # a rounding apart, in another batch size
    raw = sample(tmp_path / "c.npz", "--num", 11, "--weights", "raw")
    assert (raw["images"] != few["images"]).any()


def test_samples_of_another_sampler(sample, tmp_path):
    arguments = ["--num", 3, "--labels", "7,2", "--guidance_scale", 2, "--seed", 4]
    drawn = [
        sample(tmp_path / f"{i}.npz", *arguments, *extra)["images"]
        for i, extra in enumerate(
            [
                [],
                ["--sampler", "ddpm", "--variance", "fixed_large", "--steps", 20],
                ["--eta", 1, "--steps", 20, "--timesteps", "quadratic"],
            ]
        )
    ]
    assert (drawn[0] != drawn[1]).any() and (drawn[1] != drawn[2]).any()


def test_pictures_of_samples(workdir, sample, tmp_path):
    """The first by a process of its own."""
    out = tmp_path / "grid.png"
    result = run("sample", "--workdir", workdir, "--out", out, "--num", 4)
    assert result.returncode == 0, result.stderr
    with Image.open(out) as picture:
        assert picture.size == (134, 134)
    sample(tmp_path / "folder", "--num", 4)
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
def test_mistakes_of_sampling(workdir, here, arguments, message):
    result = here(sampling_main, "--workdir", workdir, *arguments)
    assert result.returncode == 1 and message in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_programmatic_way(workdir):
    from ddpm_jax.diffusion import denoisers, samplers, timesteps
    from ddpm_jax.diffusion.samplers import loop

    run = ddpm_jax.load(workdir)
    params = run.params
    sample_fn = jax.jit(
        loop.make_sample_fn(
            run.network.apply,
            run.schedule,
            samplers.ddim(run.schedule, eta=0.0),
            timesteps.trailing(run.schedule, 3),
            run.image_shape,
            run.predicts,
            transform=lambda denoiser: denoisers.clip(denoiser, run.schedule),
        )
    )
    keys, labels = draw.sample_keys(0, 4), np.arange(4)
    images = sample_fn(params, keys, labels)
    np.testing.assert_allclose(images, run.sample_fn(params, keys, labels), atol=1e-5)
    with pytest.raises(AttributeError):
        ddpm_jax.nothing  # noqa: B018


def test_what_fails_while_a_step_is_compiled_is_told_at_once(tmp_path, monkeypatch):
    experiment, over, waited = (
        build(config.read_config("configs/digits.py", TINY)),
        Event(),
        [],
    )

    def compile_it():
        waited.append(over.wait(20))

    def unreadable(*args):
        raise ConfigError("unreadable")

    monkeypatch.setattr(training_main, "check", lambda _: Checked(1, compile_it))
    monkeypatch.setattr(training_main, "_state", unreadable)
    with pytest.raises(ConfigError, match="unreadable"):
        training_main.train(experiment, tmp_path)
    assert not waited
    over.set()


@pytest.mark.parametrize(
    ("of", "code", "said"),
    [
        ("half", 141, ""),
        ("all", None, ""),  # what was to be done is done
        ("a socket", 1, "error: a socket\n"),
    ],
)
def test_who_reads_no_further_is_told_nothing(monkeypatch, capsys, of, code, said):
    """As `| head` does; the pipe of anything else is an error as any other."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "argv", ["main"])

        def main(args):
            if of == "a socket":
                raise BrokenPipeError(of)
            os.close(reader)
            print("lines", flush=of == "half")

        with pytest.raises(SystemExit) as exit:
            cli.run(main, cli.parse(cli.parser("A main.")))
    assert exit.value.code == code
    assert capsys.readouterr().err == said
    if of == "a socket":
        os.close(reader)


def test_one_of_several_whose_output_is_unread_ends_at_once(monkeypatch):
    """As with any error: at the usual end it would wait for the others."""
    ended = []
    monkeypatch.setattr(cli.jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(cli.jax, "process_count", lambda: 2)
    monkeypatch.setattr(cli.multihost, "exit_now", ended.append)
    assert cli._failed("", 141) == 141 and ended == [141]
