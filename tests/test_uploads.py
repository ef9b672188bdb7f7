"""Runs that live in a bucket, against real servers: the whole road and its faults."""

import json
import re
import shutil
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import services
from jobs import Job, environment, final_state, small, training
from plain import NAME
from tiny import fit

import ddpm_jax
from ddpm_jax import convert, evaluate, places, sample, train
from ddpm_jax.buckets import open_bucket
from ddpm_jax.buckets.lease import HeldError, Lease
from ddpm_jax.buckets.mirror import Mirror
from ddpm_jax.cli import command
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import run
from ddpm_jax.training import uploads
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.step import TrainState

# The clients leave their connections to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


# Clients differ, and are tested by themselves: most of a run is tested with one.
ONE = pytest.mark.parametrize("store", ["gs"], indirect=True, scope="module")
BOTH = pytest.mark.parametrize("store", ["gs", "s3"], indirect=True, scope="module")


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """What is saved is sent at once."""
    monkeypatch.setattr(uploads, "_POLL", 0.1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of six steps on a disk."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert fit(small(), workdir) == 0
    return workdir


def place(address):
    return places.place(address, "runs")


def lose_machine():
    shutil.rmtree(places.cache_dir())


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    return True


def objects(address):
    bucket, prefix = open_bucket(address)
    return {found.name.removeprefix(f"{prefix}/") for found in bucket.list(prefix)}


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [(json.loads(line)["step"], json.loads(line)["loss"]) for line in lines]


@BOTH
def test_a_run_goes_on_elsewhere_bit_for_bit(address, whole, capsys):
    assert fit(small("train.num_steps=3"), address) == 0
    assert f"step 3 is saved in {address}" in capsys.readouterr().out
    lose_machine()
    assert fit(small("train.sample_every=5"), address) == 0
    said = capsys.readouterr().out
    assert f"going on from step 3 in {address}" in said
    assert f"done: step 6 of {address}" in said and str(places.cache_dir()) not in said
    lose_machine()
    assert fit(small(), address) == 0
    assert f"{address} is already at step 6" in capsys.readouterr().out
    assert same(final_state(place(address)), final_state(whole))
    assert losses(place(address)) == losses(whole)
    there = objects(address)
    assert {"config.json", "data.json", "samples/step_00000005.png"} <= there
    assert any(name.startswith("events.") for name in there)


@ONE
def test_a_run_is_known_again_elsewhere_by_who_shows_it(address, monkeypatch):
    """What they keep of it themselves stays on its machine."""
    module = services.wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    for steps in (2, 4):
        settings = small(f"train.num_steps={steps}", "train.trackers=wandb")
        assert fit(settings, address) == 0
        assert (place(address) / "wandb" / "run.wandb").exists()
        assert not any(name.startswith("wandb/") for name in objects(address))
        lose_machine()
    assert [each.resumed for each in module.runs] == [False, True]
    assert module.runs[0].name == address.rpartition("/")[2]


@ONE
def test_the_checkpoints_there_are_those_kept_here(address):
    assert fit(small("train.keep=1", "train.num_steps=8"), address) == 0
    steps = {name.split("/")[1] for name in objects(address) if "checkpoints" in name}
    assert steps == {"00000008"}


@ONE
def test_some_checkpoints_stay_here(address, whole):
    few = ("train.upload_every=4", "train.save_every=1", "train.keep=9")
    assert fit(small("train.num_steps=7", *few), address) == 0
    steps = {name.split("/")[1] for name in objects(address) if "checkpoints" in name}
    assert steps == {"00000004", "00000007"}
    here = {path.name for path in (place(address) / "checkpoints").iterdir()}
    assert here == {f"{step:08}" for step in range(1, 8)}


@ONE
def test_checkpoints_that_are_soon_replaced_arrive(address, capsys, monkeypatch):
    client = type(open_bucket(address)[0])
    upload = client.upload

    def slow(self, path, name):
        time.sleep(0.05)
        upload(self, path, name)

    monkeypatch.setattr(client, "upload", slow)
    many = ("train.keep=1", "train.save_every=1", "train.num_steps=40")
    assert fit(small(*many), address) == 0
    said = capsys.readouterr().out
    saved = [int(step) for step in re.findall(r"step (\d+) is saved", said)]
    assert len(saved) > 2 and saved[-1] == 40 and saved == sorted(saved)
    steps = {name.split("/")[1] for name in objects(address) if "checkpoints" in name}
    assert steps == {"00000040"}
    assert not (place(address) / ".sending").exists()


@ONE
def test_scores_follow_their_checkpoint(address):
    state = TrainState(
        step=jnp.array(1),
        params={"a": jnp.zeros(3)},
        averages={"ema": {"a": jnp.ones(3)}},
        opt_state=(),
    )
    mirror = Mirror(*open_bucket(address), places.place(address))

    def wait_for(name):
        end = time.monotonic() + 60
        while name not in mirror.files:
            assert time.monotonic() < end
            time.sleep(0.1)
            mirror.look()

    with (
        uploads.Uploads(address, 3, 1, lambda text: None, lambda: None) as there,
        Checkpoints(there.folder / "checkpoints") as checkpoints,
    ):
        checkpoints.save(state)
        wait_for("checkpoints/00000001/checksums.json")
        checkpoints.add_scores(1, {"rank": 1.0})
        wait_for("checkpoints/00000001/metrics/metrics")


@ONE
def test_a_second_run_in_it_is_refused(address, monkeypatch):
    bucket, prefix = open_bucket(address)
    fast = lambda *args, **kwargs: Lease(*args, **{**kwargs, "seconds": 1})
    monkeypatch.setattr(uploads, "Lease", fast)
    with (
        fast(bucket, f"{prefix}/.lease.json"),
        pytest.raises(HeldError, match=f"another run is training in {address}"),
    ):
        fit(small(), address)


@ONE
def test_a_bucket_that_is_away_stops_nothing_but_saving(
    address, faults, whole, capsys, monkeypatch
):
    monkeypatch.setattr(uploads, "_PATIENCE", 0.5)
    monkeypatch.setattr(uploads, "_SECONDS", 0.3)
    assert fit(small("train.num_steps=2"), address) == 0

    def leave():
        faults.away = True

    told = threading.Event()

    def line(text):
        print(text)
        if "training goes on" in text:
            told.set()

    # Steps are faster than what sends: one of them waits for it to fail.
    monkeypatch.setattr(train.online.images, "save_png", lambda *args: told.wait(60))
    monkeypatch.setattr(train, "line", line)
    monkeypatch.setattr(run, "same_data", lambda *args: leave())
    with pytest.raises(OSError, match="is away.*what was trained is in .*same command"):
        fit(small("train.sample_every=4"), address)
    said = capsys.readouterr().out
    assert "step       6" in said and "training goes on" in said
    monkeypatch.undo()


@ONE
def test_what_is_newer_here_is_gone_on_with(address, whole, capsys):
    assert fit(small("train.num_steps=2"), address) == 0
    folder = place(address)
    for step in ("00000004", "00000006"):  # saved, and then the machine went down
        shutil.copytree(whole / "checkpoints" / step, folder / "checkpoints" / step)
    shutil.copy(whole / "metrics.jsonl", folder / "metrics.jsonl")
    assert fit(small("train.num_steps=8"), address) == 0
    assert f"going on from step 6 in {address}" in capsys.readouterr().out
    assert "checkpoints/00000006/checksums.json" in objects(address)
    assert [step for step, _ in losses(folder)] == [*range(1, 9)]


@ONE
@pytest.mark.parametrize("is_lost", [False, True])
def test_who_deletes_data_json_goes_on_with_other_data(address, is_lost, tmp_path):
    path = tmp_path / "a.npz"

    def train(num_images, num_steps):
        images = np.zeros((num_images, 8, 8, 1), np.uint8)
        np.savez(path, images=images, labels=np.arange(num_images) % 10)
        data = f"data={{'name': 'arrays', 'path': '{path}', 'batch_size': 8}}"
        return fit(small(data, f"train.num_steps={num_steps}"), address)

    assert train(16, num_steps=2) == 0
    with pytest.raises(ConfigError, match="go on with these by deleting"):
        train(17, num_steps=4)
    bucket, prefix = open_bucket(address)
    bucket.delete(f"{prefix}/data.json")
    if is_lost:
        lose_machine()
    assert train(17, num_steps=4) == 0
    lose_machine()
    assert train(17, num_steps=6) == 0


@ONE
def test_a_folder_of_another_run_of_this_name_is_not_gone_on_with(address, capsys):
    assert fit(small("train.num_steps=2"), address) == 0
    bucket, prefix = open_bucket(address)
    for name in objects(address):
        bucket.delete(f"{prefix}/{name}")
    assert fit(small("seed=1", "train.num_steps=2"), address) == 0
    said = capsys.readouterr().out
    assert f"training in {address}; another run had this name: what was here is" in said
    (aside,) = place(address).parent.glob(f"{place(address).name}.*")
    assert (aside / "checkpoints" / "00000002").is_dir()


@ONE
def test_a_damaged_checkpoint_is_left_out_and_made_again(
    address, whole, capsys, monkeypatch
):
    monkeypatch.setattr("ddpm_jax.buckets.mirror._DELAYS", (0.1,))
    assert fit(small("train.num_steps=4"), address) == 0
    bucket, prefix = open_bucket(address)
    name = next(n for n in sorted(objects(address)) if "00000004/state/d/" in n)
    bucket.write(f"{prefix}/{name}", b"damaged")
    lose_machine()
    assert fit(small(), address) == 0
    said = capsys.readouterr().out
    assert "going on from step 2" in said
    assert re.search("checkpoints/00000004 in the bucket is left out .*not what", said)
    lose_machine()
    assert fit(small(), address) == 0
    assert same(final_state(place(address)), final_state(whole))


@ONE
def test_who_loses_the_run_stops(address, monkeypatch, capsys):
    fast = lambda *args, **kwargs: Lease(*args, **{**kwargs, "seconds": 1})
    monkeypatch.setattr(uploads, "Lease", fast)
    bucket, prefix = open_bucket(address)
    content = json.dumps({"token": "other", "process": 7, "host": "there"}).encode()

    def take(seconds):
        bucket.write(f"{prefix}/.lease.json", content)

    timer = threading.Timer(1.0, take, [0])
    monkeypatch.setattr(run, "same_data", lambda *args: timer.start())
    with pytest.raises(OSError, match="taken by process 7 of there.*same command"):
        fit(small("train.num_steps=1000000"), address)
    assert json.loads(bucket.read(f"{prefix}/.lease.json")[0])["token"] == "other"


@ONE
def test_two_processes_train_in_it_as_one(address, tmp_path, whole):
    given = training(address)
    with Job(tmp_path, [given, given]) as job:
        assert job.wait() == [0, 0], job.said()
    found, wanted = final_state(place(address)), final_state(whole)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted
    )


@BOTH
def test_it_is_drawn_from_and_scored(address, tmp_path, capsys, monkeypatch):
    assert fit(small(), address) == 0
    lose_machine()
    capsys.readouterr()
    folder = address.rpartition("/")[0]

    def run_main(main, *given):
        args = command.parser("").parse_args([])
        parsed = main.add_arguments(command.parser("")).parse_args([*map(str, given)])
        parsed.overrides = args.overrides
        command._find_places(parsed)
        main.main(parsed)
        return capsys.readouterr().out

    out = f"{folder}/{address.rpartition('/')[2]}.png"
    said = run_main(sample, "--workdir", address, "--num", "4", "--out", out)
    assert said == f"wrote 4 images to {out}\n"
    bucket, name = open_bucket(out)
    assert bucket.read(name)[0].startswith(b"\x89PNG")
    asked = ("--workdir", address, "--metrics", "bpd", "--num")
    said = run_main(evaluate, *asked, "2")
    assert f"is in {address}/evaluation.json" in said
    lose_machine()
    run_main(evaluate, *asked, "4")
    bucket, prefix = open_bucket(address)
    scores = json.loads(bucket.read(f"{prefix}/evaluation.json")[0])
    assert len(scores) == 2 and address in json.dumps(scores)
    copy = f"{folder}/copy{address.rpartition('/')[2]}"
    converted = ("--workdir", address, "--format", "run", "--out", copy)
    assert f"wrote {copy}, " in run_main(convert, *converted)
    model = ddpm_jax.load(address, step=4)
    with pytest.raises(Exception, match="no checkpoint of step 5"):
        ddpm_jax.load(address, step=5)
    lose_machine()
    assert same(ddpm_jax.load(copy).params, ddpm_jax.load(address).params)
    assert model.params
    lose_machine()
    with pytest.raises(OSError, match=f"{copy} is there already"):
        run_main(convert, *converted)


@ONE
def test_a_run_that_was_copied_there_is_read(address, whole):
    bucket, prefix = open_bucket(address)
    for path in whole.rglob("*"):
        if path.is_file():
            bucket.upload(path, f"{prefix}/{path.relative_to(whole).as_posix()}")
    assert same(ddpm_jax.load(address).params, ddpm_jax.load(whole).params)
    assert fit(small("train.num_steps=8"), address) == 0
    assert same(ddpm_jax.load(address, step=6).params, ddpm_jax.load(whole).params)


@BOTH
def test_a_bucket_that_is_not_there_is_named(store, faults):
    with pytest.raises(OSError, match=f"there is no .*{store[0]}://no-such-bucket"):
        fit(small(), f"{store[0]}://no-such-bucket/runs/a")


def test_kills_and_faults_lose_nothing():
    """As `benchmarks/soak.py --bucket` with fewer kills."""
    result = subprocess.run(
        [sys.executable, "benchmarks/soak.py", "--kills", "2", "--seconds", "5"]
        + ["--bucket", "gs", "--faults", "0.05"]
        + [f"--config.network={{'name': '{NAME}'}}"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search("equal to the run without kills.* True", result.stdout)
