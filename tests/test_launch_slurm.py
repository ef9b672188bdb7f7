"""launch/slurm.sbatch: jobs of SLURM."""

import os
import signal
import time

import pytest
from stubs import LAUNCH, MAIN, SAVES, assert_one_line, make_fake

fake = pytest.fixture(make_fake)

JOB = {"SLURM_JOB_ID": 7, "SLURM_JOB_NUM_NODES": 2, "SLURM_GPUS_ON_NODE": 4}


def slurm_options():
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    first = next(i for i, x in enumerate(lines) if x and not x.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:])  # unread there
    options = [x.split(maxsplit=1)[1] for x in lines if x.startswith("#SBATCH")]
    return dict(option.removeprefix("--").partition("=")[::2] for option in options)


def test_slurm_tells_the_processes_in_time():
    options = slurm_options()
    what, seconds = options["signal"].split("@")
    assert what == "TERM" and int(seconds) >= 120  # not "B:", which is this shell only
    assert "requeue" in options and options["open-mode"] == "append"


@pytest.mark.parametrize(
    "given, gpus, tasks, devices",
    [
        ({}, 4, (2, 1), "0,1,2,3"),
        ({"PER_GPU": 1}, 4, (8, 4), ""),
        ({}, None, (2, 1), ""),
    ],
)
def test_slurm_runs_a_process_on_each_node(fake, given, gpus, tasks, devices):
    """Which has all its GPUs, where JAX by itself would take the first alone."""
    fake.main('echo "${JAX_LOCAL_DEVICE_IDS:-}" >"$FAKE/devices"')
    job = {**JOB, "SLURM_GPUS_ON_NODE": gpus, **given}
    assert fake.run("slurm.sbatch", *MAIN, **job).returncode == 0
    (call,) = fake.calls("srun")
    assert "--ntasks={} --ntasks-per-node={}".format(*tasks) in call
    assert "--gpu-bind=none" in call and call.endswith("python -m " + " ".join(MAIN))
    assert (fake.root / "devices").read_text() == devices + "\n"
    assert not fake.calls("scontrol")


@pytest.mark.parametrize(
    "code, before, again",
    [(143, 0, 1), (143, 99, 1), (75, 0, 1), (137, 9, 1), (137, 10, 0)]
    + [(code, 0, 0) for code in (0, 1, 2, 130)],
)
def test_slurm_queues_again(fake, code, before, again):
    fake.main(f"exit {code}")
    result = fake.run("slurm.sbatch", *MAIN, **JOB, SLURM_RESTART_COUNT=before)
    assert result.returncode == code
    assert fake.calls("scontrol") == ["scontrol requeue 7"] * again


def test_slurm_leaves_a_cancelled_job_alone(fake):
    fake.main(SAVES)
    with fake.start("slurm.sbatch", *MAIN, **JOB) as process:
        fake.wait((fake.root / "ready.0").exists)
        process.terminate()  # scancel tells the script and the processes
        time.sleep(0.2)
        assert process.poll() is None
        os.kill(int((fake.root / "pid").read_text()), signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 143 and (fake.root / "saved.0").exists()
    assert not fake.calls("scontrol")


def test_slurm_leaves_a_cancelled_job_alone_that_was_not_told(fake):
    fake.main('echo COMPLETING >"$FAKE/job"; exit 143')
    assert fake.run("slurm.sbatch", *MAIN, **JOB).returncode == 143
    assert not fake.calls("scontrol")


def test_slurm_from_another_folder(fake):
    (fake.clone / "launch" / "contract.sh").unlink()
    assert_one_line(fake.run("slurm.sbatch", *MAIN, **JOB), "root of the repository")
