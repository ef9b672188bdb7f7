"""Several processes do what one does, and none outlives the others.

Two processes of two fake devices each, joined over loopback.
"""

import json
import shutil
import signal
import socket
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jobs import Job, final_state, run, training

from ddpm_jax.training import processes


def metrics(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Six steps of two processes, with a grid of samples at the end."""
    folder = tmp_path_factory.mktemp("processes")
    arguments = training(folder / "run", "train.sample_every=6")
    said = run(folder, [arguments] * 2, devices=2)
    assert "on 4 devices of 2 processes" in said
    return folder / "run"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Eight steps of one process with one device."""
    folder = tmp_path_factory.mktemp("alone")
    run(folder, [training(folder / "run", "train.num_steps=8")])
    return folder / "run"


@pytest.mark.parametrize("devices", [1, 4])
def test_what_two_trained_one_goes_on_with(workdir, alone, tmp_path, devices):
    """The same batches and noise, so the same losses as of one device throughout."""
    shutil.copytree(workdir, tmp_path / "resumed")
    resumed = training(tmp_path / "resumed", "train.num_steps=8")
    assert "going on from step 6" in run(tmp_path, [resumed], devices)
    together, one = metrics(tmp_path / "resumed"), metrics(alone)
    assert [record["step"] for record in together] == [*range(1, 9)]
    for a, b in zip(together, one, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3),
        final_state(tmp_path / "resumed"),
        final_state(alone),
    )


def test_two_go_on_bit_for_bit(workdir, tmp_path):
    halves = tmp_path / "halves"
    for steps in (3, 6):
        run(tmp_path, [training(halves, f"train.num_steps={steps}")] * 2, devices=2)
    jax.tree.map(
        np.testing.assert_array_equal, final_state(halves), final_state(workdir)
    )


def test_two_sample_as_one(workdir, tmp_path):
    """Five samples, which four devices cannot share; scores are in test_evaluate."""
    drawn = []
    for name, count, devices in (("one", 1, 1), ("two", 2, 2)):
        out = tmp_path / f"{name}.npz"
        given = ["sample", "--workdir", workdir, "--num", 5, "--out", out]
        run(tmp_path, [given] * count, devices)
        drawn.append(np.load(out)["images"].astype(int))
    assert drawn[0].shape[0] == 5 and np.abs(drawn[0] - drawn[1]).max() <= 1


LONG = ("train.num_steps=100000", "train.save_every=10", "train.log_every=1000")


@pytest.mark.parametrize("killed", [0, 1])
def test_one_that_is_killed_brings_the_other_down(tmp_path, killed):
    workdir = tmp_path / "run"
    with Job(tmp_path, [training(workdir, *LONG)] * 2, devices=2) as job:
        job.wait_for(workdir / "checkpoints" / "00000010")
        job.processes[killed].kill()
        codes = job.wait(timeout=60)
        assert codes[killed] == -signal.SIGKILL
        # 75 where the collective fails, SIGABRT where JAX misses the heartbeat.
        assert codes[1 - killed] in (processes.TRY_AGAIN, -signal.SIGABRT)
        said = job.processes[1 - killed].error.read_text()
        assert "another process" in said or "another task died" in said


def test_a_signal_to_one_stops_all_at_the_same_step(tmp_path):
    workdir = tmp_path / "run"
    with Job(tmp_path, [training(workdir, *LONG)] * 2, devices=2) as job:
        job.wait_for(workdir / "checkpoints" / "00000010")
        job.processes[1].send_signal(signal.SIGINT)
        assert job.wait() == [128 + signal.SIGTERM, 128 + signal.SIGINT], job.said()
        assert f"stopped at step {int(final_state(workdir).step)};" in job.said()


def test_other_commands_are_refused_by_all(tmp_path):
    each = [training(tmp_path / "run", f"seed={seed}") for seed in (0, 1)]
    with Job(tmp_path, each) as job:
        assert job.wait() == [1, 1]
        for process in job.processes:
            said = process.error.read_text().strip().splitlines()[-1]
            assert said.startswith("error: --config.seed is 0 on process 0 and 1 on p")
    assert not (tmp_path / "run").exists()


def test_other_configs_are_refused_by_all(tmp_path):
    """The same command, but files that differ."""
    places = [tmp_path / "0", tmp_path / "1"]
    for seed, place in enumerate(places):
        place.mkdir()
        text = Path("configs/digits.py").read_text()
        text = text.replace("seed=0", f"seed={seed}")
        (place / "mine.py").write_text(text)
    each = [training(tmp_path / "run", config="mine.py")] * 2
    with Job(tmp_path, each, places=places) as job:
        assert job.wait() == [1, 1]
        for process in job.processes:
            message = "error: seed is 0 on process 0 and 1 on process 1: start all"
            assert message in process.error.read_text()


def test_what_fails_on_one_fails_on_all(tmp_path):
    """Images that only process 0 has."""
    places = [tmp_path / "0", tmp_path / "1"]
    for place in places:
        place.mkdir()
    images = np.zeros((20, 8, 8, 1), np.uint8)
    np.savez(places[0] / "a.npz", images=images, labels=np.zeros(20, np.int32))
    shutil.copy("configs/digits.py", places[0])
    shutil.copy("configs/digits.py", places[1])
    data = "data={'name': 'arrays', 'path': 'a.npz', 'batch_size': 8}"
    arguments = training(tmp_path / "run", data, config="digits.py")
    with Job(tmp_path, [arguments] * 2, places=places) as job:
        assert job.wait() == [1, 1], job.said()
        first, second = (p.error.read_text() for p in job.processes)
        assert "error: process 1: " in first and "a.npz" in first
        assert "a.npz" in second and "Traceback" not in first + second


def test_a_loss_that_is_not_finite_ends_all_after_the_save(tmp_path):
    """Each says which checkpoint is the last, and it is there."""
    workdir = tmp_path / "run"
    diverging = "optimizer.learning_rate=1e30", "optimizer.clip_norm=None"
    changes = (*diverging, "optimizer.warmup_steps=0", "train.save_every=1")
    with Job(tmp_path, [training(workdir, *changes)] * 2) as job:
        assert job.wait() == [1, 1], job.said()
        for process in job.processes:
            assert "at step 2; the last checkpoint is of step 1" in (
                process.error.read_text()
            )
    assert int(final_state(workdir).step) == 1


def test_what_one_checks_for_all_fails_on_all(tmp_path):
    each = [["sample", "--workdir", tmp_path, "--out", tmp_path / "a.bad"]] * 2
    with Job(tmp_path, each) as job:
        assert job.wait() == [1, 1], job.said()
        for process in job.processes:
            assert "a.bad" in process.error.read_text()


def slurm(index, port):
    """The variables of a task; JAX derives the port from the number of the job."""
    return {
        "SLURM_JOB_ID": str(port % 4096),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
    }


def test_under_slurm_processes_find_each_other(tmp_path):
    arguments = training(tmp_path / "run", "train.num_steps=1")
    said = run(tmp_path, [arguments] * 2, cluster=slurm)
    assert "on 2 devices of 2 processes" in said


def test_process_arguments_belong_together():
    with pytest.raises(ValueError, match="belong together"):
        processes.initialize("localhost:1234", None, 0)
    with pytest.raises(ValueError, match="must be HOST:PORT, got 'localhost'"):
        processes.initialize("localhost", 2, 0)


def test_a_port_that_is_taken_is_named():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} is in use"):
            processes.initialize(f"localhost:{port}", 2, 0)


def test_alone_there_is_nothing_to_share():
    assert processes.gather("text") == ["text"]
    assert processes.all_agree(True) and not processes.all_agree(False)
    tree = {"a": np.array([-0.0, np.nan])}
    assert processes.of_first(tree) is tree
    assert processes.on_first(lambda: 3) == 3


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int8", "bool"])
def test_what_is_sent_arrives_bit_for_bit(monkeypatch, dtype):
    """The sum over processes, of which only the first gives more than zeros."""
    tree = {
        "a": np.array([[-0.0, 1.0, 3.7]]).astype(jnp.dtype(dtype)),
        "b": np.int32(7),
    }
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    add = lambda x: np.sum([x, np.zeros_like(x)], axis=0, dtype=x.dtype)
    monkeypatch.setattr(
        processes, "broadcast_one_to_all", lambda sent: jax.tree.map(add, sent)
    )
    received = processes.of_first(tree)
    assert received["b"] == 7 and received["b"].shape == ()
    assert received["a"].dtype == tree["a"].dtype
    assert received["a"].tobytes() == tree["a"].tobytes()
