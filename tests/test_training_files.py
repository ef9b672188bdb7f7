"""What a run leaves on disk, and the numbers with which it does not go on."""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.journal import Journal
from ddpm_jax.training.meter import DivergedError, Meter
from ddpm_jax.training.step import TrainState


def state(step, value=1.0):
    return TrainState(
        step=jnp.array(step, jnp.int32),
        params={"layer": {"kernel": jnp.full((3, 2), value)}},
        averages={
            "ema": {"layer": {"kernel": jnp.full((3, 2), value / 3)}},
            "wide": {"layer": {"kernel": jnp.full((3, 2), value / 5)}},
        },
        opt_state=({"count": jnp.array(step)}, ()),
    )


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_checkpoints_come_back_bit_for_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.latest_step() is None
    for step in (1, 2, 3):
        checkpoints.save(state(step, 0.1 * step))
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.latest_step() == 3
    like = jax.eval_shape(lambda: state(0))
    assert_equal(checkpoints.restore(like), jax.device_get(state(3, 0.1 * 3)))
    assert_equal(checkpoints.restore(like, 2), jax.device_get(state(2, 0.2)))
    assert_equal(checkpoints.restore_ema(like.ema_params), state(3, 0.1 * 3).ema_params)
    wide = checkpoints.restore_ema(like.ema_params, 2, "wide")
    assert_equal(wide, state(2, 0.2).averages["wide"])
    with pytest.raises(FileNotFoundError, match="has no ema none: there is ema, wide"):
        checkpoints.restore_ema(like.ema_params, 2, "none")
    raw = checkpoints.restore(like).params
    assert_equal(raw, state(3, 0.1 * 3).params)
    with pytest.raises(
        FileNotFoundError, match="no checkpoint of step 1 in .* those of steps 2, 3"
    ):
        checkpoints.restore(like, 1)  # only two are kept
    checkpoints.close()


def test_a_step_is_saved_once(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(5, 1.0))
    checkpoints.save(state(5, 2.0))
    like = jax.eval_shape(lambda: state(0))
    assert_equal(checkpoints.restore(like).params, state(5, 1.0).params)
    checkpoints.close()


def test_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(FileNotFoundError, match="no checkpoint in .*; there is none"):
        checkpoints.restore(state(0))
    checkpoints.close()


def test_a_reader_leaves_a_save_under_way_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(5))
    checkpoints.close()
    unfinished = tmp_path / "00000007.orbax-checkpoint-tmp"
    unfinished.mkdir()
    like = jax.eval_shape(lambda: state(0))
    reader = Checkpoints(tmp_path, read_only=True)
    assert_equal(reader.restore(like), jax.device_get(state(5)))
    reader.close()
    assert unfinished.exists()
    Checkpoints(tmp_path).close()  # cleans up, in the background
    deadline = time.time() + 60
    while unfinished.exists():
        assert time.time() < deadline
        time.sleep(0.01)


def test_a_full_disk_is_noticed_before_it_is_filled(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(5))
    usage = shutil.disk_usage(tmp_path)._replace(free=20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match="needs 0.0 MB, 0.0 MB are free; .* of steps 5"):
        checkpoints.save(state(6))
    checkpoints.close()


def test_what_fails_in_the_background_is_said_in_a_line(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(5))

    def fail():
        raise ValueError("OUT_OF_RANGE: Error\n writing: No space left on device [28]")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "wait_until_finished", fail)
        message = r"cannot save .* \(No space left on device\); .* of steps 5$"
        with pytest.raises(OSError, match=message):
            checkpoints.close()
    checkpoints.close()


def test_a_damaged_checkpoint_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(5))
    checkpoints.close()
    for path in (tmp_path / "00000005").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:10])
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(OSError, match="checkpoint of step 5 .* is damaged") as caught:
        checkpoints.restore(jax.eval_shape(lambda: state(0)))
    assert "\n" not in str(caught.value)
    checkpoints.close()


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(5))
    like = {"layer": {"kernel": jnp.zeros((4, 2))}}
    with pytest.raises(OSError, match="kernel.* is .3, 2. there and .4, 2. in"):
        checkpoints.restore_ema(like)
    checkpoints.close()


def lines(tmp_path):
    text = (tmp_path / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_records_go_on_where_the_state_does(tmp_path):
    """What was recorded after the last checkpoint is taken out, torn lines too."""
    writer = Journal(tmp_path, 0, 10, ["tensorboard"])
    for step in (1, 2, 3):
        writer.metrics(step, {"loss": step / 2})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe\n{"step": 4, "lo')
    writer = Journal(tmp_path, 2, 10, ["tensorboard"])
    writer.metrics(3, {"loss": 9.0})
    writer.picture(3, "samples", np.zeros((4, 4, 1), np.uint8))
    writer.close()
    assert lines(tmp_path) == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": 9.0},
    ]
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_a_config_is_recorded_for_tensorboard(tmp_path):
    writer = Journal(tmp_path, 0, 10, ["tensorboard"])
    settings = {"image_shape": [8, 8, 1], "optimizer.name": "adam", "seed": 0}
    writer.settings(settings | {"loss.weighting": None, "network.remat": False})
    writer.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    content = path.read_bytes()
    for wanted in (
        b"_hparams_/session_start_info",
        b"_hparams_/experiment",
        b"| optimizer.name | adam |",
        b"| image_shape | [8, 8, 1] |",
        b"| loss.weighting | None |",
    ):
        assert wanted in content


def eight_a_step(seconds):
    return {"images_per_sec": 8 / seconds}


def test_the_meter_averages_each_interval():
    written = []
    meter = Meter(2, lambda step, values: written.append((step, values)), eight_a_step)
    for step in range(1, 6):
        meter.add(step, {"loss": jnp.array(float(step))})
    assert len(written) == 1  # steps 3 to 5 may still be under way
    meter.pause()
    assert [(step, values["loss"]) for step, values in written] == [(2, 1.5), (4, 3.5)]
    assert all(values["images_per_sec"] > 0 for _, values in written)


def test_the_meter_times_steps_only(monkeypatch):
    """Not the first, which compiles, and not what is done in a pause."""
    clock = iter([100.0, 101.0, 102.0, 203.0, 204.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    written = []
    meter = Meter(5, lambda step, values: written.append(values), eight_a_step)
    for step in range(1, 6):
        meter.add(step, {"loss": jnp.array(1.0)})
        if step == 3:
            meter.pause()
    meter.pause()
    assert written[0]["images_per_sec"] == 8  # three steps timed, a second each


def test_the_meter_takes_the_steps_of_a_call_apart(monkeypatch):
    """An interval may end within a call, and a call may be shorter than its arrays."""
    clock = iter([100.0, 103.0, 109.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    written, skipped = [], []
    meter = Meter(
        2,
        lambda step, values: written.append((step, values)),
        eight_a_step,
        max_skipped=1,
        skip=lambda *what: skipped.append(what),
    )
    losses = [[1.0, 2.0, 3.0], [4.0, 5.0, np.nan], [7.0, 9.0, 9.0]]
    rates = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 9.0, 9.0]]
    for step, count, loss, rate in zip(
        (3, 6, 7), (3, 3, 1), losses, rates, strict=True
    ):
        metrics = {"loss": jnp.array(loss), "learning_rate": jnp.array(rate)}
        meter.add(step, metrics, count)
    meter.write_rest(7)
    assert skipped == [(6, "loss is nan", 1)]
    assert [step for step, _ in written] == [2, 4, 6, 7]
    told = [values for _, values in written]
    np.testing.assert_allclose([v["loss"] for v in told], [1.5, 3.5, 5, 7])
    np.testing.assert_allclose([v["learning_rate"] for v in told], [0.2, 0.4, 0.6, 0.7])
    # No time of the first call, which compiles; a second, then six for each step.
    speeds = [v.get("images_per_sec") for v in told]
    np.testing.assert_allclose(speeds[1:], [8, 8, 8 / 6])
    assert speeds[0] is None


def test_the_meter_averages_what_is_of_some_examples():
    """Of each the examples count alike, whatever the steps they were in."""
    written = []
    meter = Meter(3, lambda step, values: written.append(values))
    shares = [(0.5, 0.25), (0.0, 0.0), (3.0, 0.75)]  # losses of 2 and 4
    for step, pair in enumerate(shares, 1):
        meter.add(step, {"late": pair, "never": (0.0, 0.0), "loss": jnp.array(1.0)})
    meter.pause()
    assert written == [{"late": (0.25 * 2 + 0.75 * 4) / 1, "loss": 1.0}]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_meter_refuses_what_is_not_finite(value):
    meter = Meter(10, None)
    meter.add(1, {"loss": jnp.array(1.0), "grad_norm": jnp.array(1.0)})
    meter.add(2, {"loss": jnp.array(1.0), "grad_norm": jnp.array(value)})
    with pytest.raises(DivergedError, match="grad_norm is (nan|inf) at step 2"):
        meter.pause()
    meter = Meter(10, None)
    meter.add(8, {"loss": jnp.array([1.0, value, 1.0, 1.0])}, 4)
    with pytest.raises(DivergedError, match="loss is (nan|inf) at step 6"):
        meter.pause()


def test_the_checkpoints_leave_the_logs_of_others_alone(tmp_path, caplog):
    """Only what Orbax says of its own is left out, while a folder is open."""
    script = (
        "from absl import logging as a; b = a.get_verbosity(); "
        "from ddpm_jax.training import checkpoints; assert a.get_verbosity() == b"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    logger = logging.getLogger("absl")
    of_orbax = f"{os.sep}orbax{os.sep}checkpoint.py"
    say = lambda place: logger.handle(
        logging.LogRecord("absl", logging.ERROR, place, 1, place, (), None)
    )
    with Checkpoints(tmp_path):
        say("mine.py")
        say(of_orbax)
    say(of_orbax)
    assert [record.msg for record in caplog.records] == ["mine.py", of_orbax]


def test_a_defect_is_not_blamed_on_the_disk(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        for error, expected in (
            (TypeError("a defect"), TypeError),
            (ValueError("RESOURCE: No space left on device"), OSError),
        ):
            with monkeypatch.context() as failing:
                manager = checkpoints._manager
                failing.setattr(manager, "save", Mock(side_effect=error))
                with pytest.raises(expected, match="defect|cannot save"):
                    checkpoints.save(state(1))
