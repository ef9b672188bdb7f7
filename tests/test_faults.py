"""What goes wrong on long runs: kills, damaged checkpoints, a full disk."""

import random
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jobs import environment, final_state, small, training
from plain import NAME
from tiny import fit

from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.step import TrainState


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
        [sys.executable, "benchmarks/soak.py", "--kills", "1"]
        + [f"--config.network={{'name': '{NAME}'}}"],
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
        averages={"ema": {"layer": {"kernel": draw / 3, "bias": draw[1]}}},
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
    changes = "train.num_steps=2", "train.save_every=1", "network.channels=512"
    main, *args = training(workdir, *changes)
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
    assert fit(small(*changes), workdir) == 0
    assert "done: step 2" in capsys.readouterr().out
