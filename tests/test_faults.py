"""What goes wrong on long runs: nothing is lost, and a line says what happened."""

import contextlib
import errno
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jobs import SMALL, environment, final_state, training
from PIL import Image
from tiny import call, fit

from ddpm_jax import sample, train
from ddpm_jax.data import records as tfds
from ddpm_jax.data.base import gather
from ddpm_jax.data.folders import folder
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import config, dataset, load
from ddpm_jax.sampling import pictures as drawings
from ddpm_jax.training import loop
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.meter import DivergedError
from ddpm_jax.training.step import TrainState
from ddpm_jax.training.watchdog import Watchdog


def small(*changes):
    return config.read_config("configs/digits.py", (*SMALL, *changes))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def of_six(tmp_path_factory):
    """A run of six steps, with checkpoints of 2, 4 and 6."""
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    assert fit(small(), workdir) == 0
    return workdir


@pytest.fixture
def workdir(of_six, tmp_path):
    """A copy of that run, to damage."""
    shutil.copytree(of_six, tmp_path / "run")
    return tmp_path / "run"


# kill -9


def test_killed_at_random_moments_and_run_again_is_uninterrupted():
    """As `benchmarks/soak.py` without arguments, with fewer kills."""
    result = subprocess.run(
        [sys.executable, "benchmarks/soak.py", "--kills", "1"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search("equal to the run without kills.* True", result.stdout)


# Damaged checkpoints


def some_state(step):
    draw = np.random.default_rng(step).standard_normal((40, 50)).astype(np.float32)
    return TrainState(
        step=jnp.array(step, jnp.int32),
        params={"layer": {"kernel": draw, "bias": draw[0]}},
        ema_params={"layer": {"kernel": draw / 3, "bias": draw[1]}},
        opt_state=({"count": jnp.array(step)}, {"mu": draw * 2}),
    )


def gone(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[random.Random(0).randrange(len(data))] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [gone, empty, truncated, flipped])
def test_what_is_read_is_what_was_saved(tmp_path, damage):
    """Each file of a checkpoint in turn: it does not matter, or is noticed."""
    checkpoints = Checkpoints(tmp_path / "whole")
    for step in (1, 2):
        checkpoints.save(some_state(step))
        checkpoints.add_scores(step, {"rank": 1.0})
    checkpoints.close()
    like, noticed = jax.eval_shape(lambda: some_state(0)), 0
    newest = tmp_path / "whole" / "00000002"
    files = [p.relative_to(newest) for p in newest.rglob("*") if p.is_file()]
    assert len(files) > 8
    for i, file in enumerate(sorted(files)):
        copy = tmp_path / str(i) / "checkpoints"
        shutil.copytree(tmp_path / "whole", copy)
        damage(copy / "00000002" / file)
        checkpoints = Checkpoints(copy)
        state, notes = checkpoints.restore_latest(like)
        assert_same(state, jax.device_get(some_state(int(state.step))))
        if int(state.step) == 1:
            noticed += 1
            assert "checkpoint of step 2" in notes[0] and "is damaged (" in notes[0]
            assert (tmp_path / str(i) / "damaged" / "00000002").is_dir()
        checkpoints.save(some_state(2))  # there is room for it again
        assert_same(checkpoints.restore(like, 2), jax.device_get(some_state(2)))
        checkpoints.close()
    assert noticed > 2


def largest_file(folder):
    return max((p for p in folder.rglob("d/*")), key=lambda p: p.stat().st_size)


def test_the_checkpoint_before_a_damaged_one_is_used(of_six, workdir, capsys):
    truncated(largest_file(workdir / "checkpoints" / "00000006"))
    assert fit(small(), workdir) == 0
    said = capsys.readouterr().out
    assert re.search(
        "going on from step 4 in .*; the checkpoint of step 6 .* is dam", said
    )
    assert f"it was moved to {workdir}/damaged/00000006" in said
    assert_same(final_state(workdir), final_state(of_six))


def test_a_run_is_not_begun_anew_where_no_checkpoint_can_be_read(workdir):
    for step in (2, 4, 6):
        truncated(largest_file(workdir / "checkpoints" / f"{step:08}"))
    with pytest.raises(OSError, match="no checkpoint to go on from: .* step 2 .*dam"):
        fit(small(), workdir)
    assert len([*(workdir / "checkpoints").iterdir()]) == 3


# A full disk


def test_a_save_that_fails_leaves_the_checkpoints_before_it(tmp_path, capsys):
    """Files of more than 64 kB cannot be written, as on a full disk."""
    workdir = tmp_path / "run"
    main, *args = training(workdir, "train.num_steps=2", "train.save_every=1")
    command = [sys.executable, "-m", f"ddpm_jax.{main}", *args]
    result = subprocess.run(
        ["bash", "-c", 'ulimit -f 64; exec "$@"', "-", *command],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    said = (
        rf"error: cannot save a checkpoint in {workdir}/checkpoints \(.*there is none"
    )
    assert re.search(said, result.stderr)
    assert fit(small("train.num_steps=2", "train.save_every=1"), workdir) == 0
    assert "done: step 2" in capsys.readouterr().out


# Images that cannot be decoded


def test_an_image_that_is_damaged_while_training_is_named(tmp_path, monkeypatch):
    """The run goes on when it is mended."""
    images = np.random.default_rng(0).integers(0, 255, (16, 8, 8), np.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    data = {"name": "folder", "path": str(tmp_path), "batch_size": 8}
    settings = {
        **small("network.num_classes=0", "network.label_dropout=0.0"),
        "data": data,
    }
    whole = (tmp_path / "03.png").read_bytes()
    opened = dataset.Dataset.feed

    def damage_later(*args):
        feed = opened(*args)
        (tmp_path / "03.png").write_bytes(whole[:60])
        return feed

    with monkeypatch.context() as context:
        context.setattr(dataset.Dataset, "feed", damage_later)
        with pytest.raises(
            OSError, match="cannot read .*/03.png any more .*put it back"
        ):
            fit(settings, tmp_path / "run")
    (tmp_path / "03.png").write_bytes(whole)
    assert fit(settings, tmp_path / "run") == 0


COLUMNS = ("image", "label")


def test_a_record_that_cannot_be_decoded_is_named():
    class Records:
        def __getitems__(self, indices):
            if 7 in indices:
                raise SyntaxError("broken PNG file")
            return [{"image": np.zeros((4, 4, 1), np.uint8)} for _ in indices]

    records = tfds._Records("faces train", Path(), Records(), (4, 4, 1), (), COLUMNS)
    assert gather(records, np.array([1, 2]))[0].shape == (2, 4, 4, 1)
    message = r"record 7 of faces train cannot be decoded \(broken PNG file\)"
    with pytest.raises(OSError, match=message):
        gather(records, np.array([1, 7, 2]))


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output"), MemoryError()])
def test_a_machine_that_fails_makes_no_record_corrupt(error):
    class Records:
        def __getitems__(self, indices):
            raise error

    records = tfds._Records("faces train", Path(), Records(), (4, 4, 1), (), COLUMNS)
    with pytest.raises(type(error)) as raised:
        gather(records, np.array([1, 7, 2]))
    assert raised.value is error


def test_a_folder_names_the_file(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    source = folder(tmp_path, 4, channels=1)
    (tmp_path / "a.png").unlink()
    with pytest.raises(OSError, match=f"cannot read {tmp_path}/a.png any more"):
        source[0]


# Data that are others


@pytest.fixture
def pictures(tmp_path):
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(8):
            pixels = random.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{i}.png")
    return tmp_path / "set"


def of_pictures(place, *changes):
    data = {"name": "folder", "path": str(place), "batch_size": 8}
    return small(f"data={data}", "network.num_classes=2", *changes)


def test_a_run_knows_its_data(pictures, tmp_path, capsys):
    """They may move, but not change."""
    longer, workdir = "train.num_steps=8", tmp_path / "run"
    (pictures / "cat" / "notes.txt").touch()
    assert fit(of_pictures(pictures), workdir) == 0
    said = capsys.readouterr().out
    assert "16 images, 2 classes: cat, dog; 1 file passed over: 1 .txt" in said
    call(sample, "--workdir", workdir, "--num", 2, "--out", tmp_path / "drawn")
    record = json.loads((tmp_path / "drawn" / drawings.RECORD).read_text())
    assert record["classes"] == ["cat", "dog"]
    assert load.from_run(workdir).origin["classes"] == ["cat", "dog"]
    moved = pictures.rename(tmp_path / "moved")
    damaged = tmp_path / "copy"
    shutil.copytree(moved, damaged)
    (damaged / "dog" / "3.png").unlink()
    with pytest.raises(ConfigError, match="there are 15 images, and were 16; put"):
        fit(of_pictures(damaged, longer), workdir)
    shutil.rmtree(damaged / "cat")
    with pytest.raises(ConfigError, match="class 0 is dog, and was cat"):
        fit(of_pictures(damaged, longer), workdir)
    assert fit(of_pictures(moved, longer), workdir) == 0
    assert int(final_state(workdir).step) == 8


def test_a_run_without_a_record_of_its_data_goes_on_and_gets_one(pictures, tmp_path):
    workdir = tmp_path / "run"
    assert fit(of_pictures(pictures), workdir) == 0
    record = workdir / "data.json"
    written = record.read_text()
    record.unlink()
    assert fit(of_pictures(pictures, "train.num_steps=7"), workdir) == 0
    assert record.read_text() == written
    record.write_text("{")
    with pytest.raises(ConfigError, match="data.json is damaged .*: delete it"):
        fit(of_pictures(pictures, "train.num_steps=8"), workdir)
    # One whose classes had other numbers before they were counted as people do.
    record.unlink()
    (pictures / "cat").rename(pictures / "10")
    (pictures / "dog").rename(pictures / "9")
    with pytest.raises(ConfigError, match="alphabetically, now they are 9, 10"):
        fit(of_pictures(pictures, "train.num_steps=8"), workdir)


# What comes after a step


def test_a_step_is_saved_before_its_picture_is_drawn(tmp_path, monkeypatch):
    def killed(*given):
        raise SystemExit

    monkeypatch.setattr(train.online.images, "save_png", killed)
    with pytest.raises(SystemExit):
        fit(small("train.sample_every=2"), tmp_path)
    assert int(final_state(tmp_path).step) == 2


@pytest.mark.parametrize("processes, goes_on", [(1, True), (2, False)])
def test_a_defect_beside_training_is_named(monkeypatch, processes, goes_on):
    """Of several processes, only what fails on all of them may be passed over."""
    said = Mock()
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    expected = contextlib.nullcontext() if goes_on else pytest.raises(KeyError)
    with expected, loop._late("picture", 3, said):
        raise KeyError("a defect")
    if goes_on:
        (line,) = said.line.call_args.args
        assert line.startswith("no picture of step 3 (KeyError: 'a defect'); training")
    with loop._late("picture", 3, said):
        raise OSError("no room")


def test_pictures_scores_and_records_that_fail_end_no_training(
    tmp_path, monkeypatch, capsys
):
    def scorer(*given):
        def score(params):
            raise ValueError("features are not finite")

        return score

    monkeypatch.setattr(train.online, "make_scorer", scorer)
    (tmp_path / "samples").write_text("in the way")
    full = OSError(28, "No space left on device", "metrics.jsonl")
    monkeypatch.setattr(train.Tracker, "metrics", Mock(side_effect=full))
    settings = small("train.sample_every=2", "evaluation.every=2", "train.log_every=2")
    assert fit(settings, tmp_path) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "goes on" in line]
    for what, why in (
        ("record", "metrics.jsonl: No space left"),
        ("picture", "samples: File exists"),
        ("score", "features are not finite"),
    ):
        lines = [line for line in said if line.startswith(f"no {what} of step")]
        assert lines and all(why in line for line in lines), said
    assert int(final_state(tmp_path).step) == settings["train"]["num_steps"]


# What is not finite

DIVERGING = (
    "optimizer.learning_rate=1e30",
    "optimizer.warmup_steps=0",
    "optimizer.clip_norm=None",
)


def test_a_loss_that_is_not_finite_stops_at_once(tmp_path):
    """Nothing of it reaches a checkpoint."""
    settings = small(*DIVERGING, "train.save_every=1")
    message = r"(nan|inf) at step 2; the last checkpoint is of step 1: run again"
    with pytest.raises(DivergedError, match=message):
        fit(settings, tmp_path)
    assert int(final_state(tmp_path).step) == 1


def test_a_bounded_number_of_such_steps_may_change_nothing(tmp_path, capsys):
    settings = small(*DIVERGING, "train.save_every=1", "train.max_skipped=2")
    with pytest.raises(
        DivergedError, match=r"at step 4, after 2 skipped; .* of step 3"
    ):
        fit(settings, tmp_path)
    said = capsys.readouterr().out
    assert re.search(r"step 2 changed nothing: .* is (nan|inf) \(1 of at most 2", said)
    assert re.search(r"step 3 changed nothing: .* is (nan|inf) \(2 of at most 2", said)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        like = final_state(tmp_path)
        one, three = checkpoints.restore(like, 1), checkpoints.restore(like, 3)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(three), strict=True):
        counts = np.issubdtype(a.dtype, np.integer)  # of steps: the learning rate's
        np.testing.assert_array_equal(a + 2 if counts else a, b)


# What hangs

HANGING = """
import time
from ddpm_jax import train
from ddpm_jax.experiment import build, config
train.devices.parallel_steps = lambda *args: lambda *args: time.sleep(1000)
settings = config.read_config("configs/digits.py", {changes})
train.train(build.build(settings), {workdir!r})
"""


def test_what_hangs_is_ended_with_a_message(tmp_path):
    changes = (*SMALL, "train.timeout=2")
    script = HANGING.format(changes=changes, workdir=str(tmp_path))
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 75
    *stacks, said = result.stderr.strip().splitlines()
    assert said.startswith(
        "error: nothing has moved for 2 seconds since the start: a de"
    )
    assert any("in train" in line for line in stacks)  # where it hangs


def test_the_watchdog_lets_what_moves_or_rests_go_on():
    import time

    with Watchdog(0.5) as watchdog:
        for step in range(10):
            watchdog.heartbeat(f"step {step}")
            time.sleep(0.1)
        with watchdog.paused():
            time.sleep(1)
