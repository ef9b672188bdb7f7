"""Several processes do what one does, and none outlives the others.

Two processes of two fake devices each, joined over loopback. What ends by itself is run
by the same two; where an end is what matters, or a kill, there are others.
"""

import contextlib
import json
import shutil
import signal
import socket
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jobs import SMALL, Job, final_state, run_several, training
from tiny import call, fit

from ddpm_jax import sample
from ddpm_jax.distributed import multihost
from ddpm_jax.experiment import config
from ddpm_jax.files import read_arrays


def metrics(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


CALLS = ("train.save_every=3", "train.steps_per_call=4")
DIVERGING = ("optimizer.learning_rate=1e30", "optimizer.clip_norm=None")
DIVERGING += ("optimizer.warmup_steps=0", "train.save_every=1")


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """A folder in which two processes ran what is tested below, and what they said."""
    folder = tmp_path_factory.mktemp("joined")
    places = [folder / "0", folder / "1"]
    for seed, place in enumerate(places):
        place.mkdir()
        text = Path("configs/digits.py").read_text()
        (place / "digits.py").write_text(text)
        (place / "mine.py").write_text(text.replace("seed=0", f"seed={seed}"))
    images = np.zeros((20, 8, 8, 1), np.uint8)
    np.savez(places[0] / "a.npz", images=images, labels=np.zeros(20, np.int32))
    data = "data={'name': 'arrays', 'path': 'a.npz', 'batch_size': 8}"
    run, halves, new = (folder / name for name in ("run", "halves", "new"))
    sampled = ["--workdir", run, "--num", 5, "--out", folder / "two.npz"]
    commands = {
        "six": (None, *training(run, *CALLS, "train.sample_every=6")),
        "three": (None, *training(halves, *CALLS, "train.num_steps=3")),
        "three more": (None, *training(halves, *CALLS)),
        "samples": (None, "sample", *sampled),
        "other configs": (places, *training(new, config="mine.py")),
        "no data": (places, *training(new, data, config="digits.py")),
        "diverging": (None, *training(folder / "diverging", *DIVERGING)),
        "bad name": (None, "sample", "--workdir", run, "--out", folder / "a.bad"),
    }
    said = run_several(folder, [*commands.values()])
    return folder, dict(zip(commands, said, strict=True))


@pytest.fixture(scope="module")
def workdir(joined):
    """Six steps of two processes with two devices each, in calls of three."""
    folder, said = joined
    texts, codes = said["six"]
    assert codes == (0, 0), texts
    assert "on 4 cpu devices of 2 processes" in texts[0] and texts[1] == ""
    assert (folder / "run" / "samples" / "step_00000006.png").exists()
    return folder / "run"


def test_what_two_trained_one_goes_on_with(workdir, tmp_path):
    """The same batches and noise, so the same losses as of one process throughout."""
    shutil.copytree(workdir, tmp_path / "resumed")
    settings = config.read_config("configs/digits.py", (*SMALL, "train.num_steps=8"))
    for name in ("resumed", "alone"):
        assert fit(settings, tmp_path / name) == 0
    together, one = metrics(tmp_path / "resumed"), metrics(tmp_path / "alone")
    assert [record["step"] for record in together] == [*range(1, 9)]
    for a, b in zip(together, one, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3),
        final_state(tmp_path / "resumed"),
        final_state(tmp_path / "alone"),
    )


def test_two_go_on_bit_for_bit(workdir, joined):
    folder, said = joined
    assert "going on from step 3" in said["three more"][0][0]
    jax.tree.map(
        np.testing.assert_array_equal,
        final_state(folder / "halves"),
        final_state(workdir),
    )


def test_two_sample_as_one(workdir, joined, tmp_path):
    """Five samples, which no devices share equally; scores are in test_evaluate."""
    folder, said = joined
    assert said["samples"][1] == (0, 0), said["samples"]
    out = tmp_path / "one.npz"
    call(sample, "--workdir", workdir, "--num", 5, "--out", out)
    one, two = (
        read_arrays(path)["images"].astype(int) for path in (out, folder / "two.npz")
    )
    assert one.shape[0] == 5 and np.abs(one - two).max() <= 1


LONG = ("train.num_steps=100000", "train.save_every=10", "train.log_every=1000")


def test_one_that_is_killed_brings_the_other_down(tmp_path):
    """Two jobs at once, which mostly wait."""
    with contextlib.ExitStack() as stack:
        jobs = []
        for killed in (0, 1):
            folder = tmp_path / str(killed)
            folder.mkdir()
            job = Job(folder, [training(folder / "run", *LONG)] * 2, devices=2)
            jobs.append(stack.enter_context(job))
        for killed, job in enumerate(jobs):
            # Any: the first may be gone by now.
            job.wait_for(tmp_path / str(killed) / "run" / "checkpoints" / "????????")
            job.processes[killed].kill()
        for killed, job in enumerate(jobs):
            codes = job.wait(timeout=120)
            assert codes[killed] == -signal.SIGKILL
            # 75 where the collective fails, SIGABRT where JAX misses the heartbeat.
            assert codes[1 - killed] in (multihost.EXIT_RETRY, -signal.SIGABRT)
            said = job.processes[1 - killed].error.read_text()
            assert "another process" in said or "another task died" in said


def test_a_signal_to_one_stops_all_at_the_same_step(tmp_path):
    workdir = tmp_path / "run"
    with Job(tmp_path, [training(workdir, *LONG)] * 2, devices=2) as job:
        job.wait_for(workdir / "checkpoints" / "????????")
        job.processes[1].send_signal(signal.SIGINT)
        assert job.wait() == [128 + signal.SIGTERM, 128 + signal.SIGINT], job.said()
        assert f"stopped at step {int(final_state(workdir).step)};" in job.said()


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


def test_under_slurm_other_commands_are_refused_by_all(tmp_path):
    """Processes find each other without arguments, and see where they differ."""
    each = [training(tmp_path / "run", f"seed={seed}") for seed in (0, 1)]
    with Job(tmp_path, each, cluster=slurm) as job:
        assert job.wait() == [1, 1]
        for process in job.processes:
            said = process.error.read_text().strip().splitlines()[-1]
            assert said.startswith("error: --config.seed is 0 on process 0 and 1 on p")
    assert not (tmp_path / "run").exists()


def test_other_configs_are_refused_by_all(joined):
    """The same command, but files that differ."""
    texts, codes = joined[1]["other configs"]
    message = "error: seed is 0 on process 0 and 1 on process 1: start all"
    assert codes == (1, 1) and all(message in text for text in texts)


def test_what_fails_on_one_fails_on_all(joined):
    """Images that only process 0 has."""
    (first, second), codes = joined[1]["no data"]
    assert codes == (1, 1) and "a.npz" in second
    assert "error: process 1: " in first and "a.npz" in first
    assert "Traceback" not in first + second


def test_a_loss_that_is_not_finite_ends_all_after_the_save(joined):
    """Each says which checkpoint is the last, and it is there."""
    folder, said = joined
    texts, codes = said["diverging"]
    assert codes == (1, 1), texts
    assert all("at step 2; the last checkpoint is of step 1" in text for text in texts)
    assert int(final_state(folder / "diverging").step) == 1


def test_what_one_checks_for_all_fails_on_all(joined):
    texts, codes = joined[1]["bad name"]
    assert codes == (1, 1) and all("a.bad" in text for text in texts), texts


def test_a_defect_on_one_frees_the_others(monkeypatch):
    """Each of two in turn: what fails tells, and is told of what failed elsewhere."""
    told = []
    answer = lambda text: told.append(text) or [text, "a defect"]
    monkeypatch.setattr(multihost, "all_gather", answer)
    with pytest.raises(ZeroDivisionError), multihost.error_barrier():
        1 / 0  # noqa: B018, it fails
    elsewhere = pytest.raises(multihost.RemoteError, match="process 1: a defect")
    with elsewhere, multihost.error_barrier():
        pass
    assert told == ["division by zero", ""]
    with pytest.raises(jax.errors.JaxRuntimeError), multihost.error_barrier():
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: a device is gone")
    assert len(told) == 2  # its peers are not asked over what may be broken


def test_process_arguments_belong_together():
    with pytest.raises(ValueError, match="belong together"):
        multihost.initialize("localhost:1234", None, 0)
    with pytest.raises(ValueError, match="must be HOST:PORT, got 'localhost'"):
        multihost.initialize("localhost", 2, 0)


def test_a_port_that_is_taken_is_named():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} is in use"):
            multihost.initialize(f"localhost:{port}", 2, 0)


def test_alone_there_is_nothing_to_share():
    assert multihost.all_gather("text") == ["text"]
    assert multihost.all_agree(True) and not multihost.all_agree(False)
    tree = {"a": np.array([-0.0, np.nan])}
    assert multihost.broadcast(tree) is tree
    assert multihost.on_primary(lambda: 3) == 3


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
        multihost, "broadcast_one_to_all", lambda sent: jax.tree.map(add, sent)
    )
    received = multihost.broadcast(tree)
    assert received["b"] == 7 and received["b"].shape == ()
    assert received["a"].dtype == tree["a"].dtype
    assert received["a"].tobytes() == tree["a"].tobytes()
