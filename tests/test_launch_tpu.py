"""launch/tpu_pod.sh and tpu_vm.sh: TPUs by queued resources."""

import json
import os
import shlex
import signal
import subprocess
import tarfile

import pytest
from stubs import MAIN, SAVES, assert_one_line, both, make_fake

fake = pytest.fixture(make_fake)


@pytest.mark.parametrize("verb", ["create", "run", "delete", "stop"])
def test_a_dry_run_prints_what_is_run(fake, verb):
    if verb != "create":
        fake.run("tpu_pod.sh", "create")
        fake.run("tpu_pod.sh", "setup")
        if verb == "stop":
            fake.main(SAVES)
            fake.run("tpu_pod.sh", "run", *MAIN)
            fake.wait(both(fake, "ready"))
        (fake.root / "calls").unlink()
    args = ("tpu_pod.sh", verb, *(MAIN if verb == "run" else ()))
    printed = fake.run(*args, DRY_RUN=1).stdout.splitlines()
    fake.run(*args)
    calls = [json.loads(line.removeprefix("gcloud ")) for line in fake.calls("gcloud")]
    looks = [call for call in calls if "tpu_worker.sh state" not in str(call)]
    assert [["gcloud", "--quiet", *call] for call in looks] == [
        shlex.split(line) for line in printed
    ]


def test_the_zone(fake):
    assert_one_line(fake.run("tpu_pod.sh", "create", ZONE=None), "ZONE")
    (fake.root / "zone").write_text("configured")
    assert fake.run("tpu_pod.sh", "create", ZONE=None).returncode == 0
    assert fake.calls("create", "--zone=configured")


def test_create_waits_and_is_not_asked_twice(fake):
    result = fake.run("tpu_pod.sh", "create", SPOT=1, NAME="mine")
    assert result.returncode == 0, result.stderr
    assert "CREATING" in result.stderr and "WAITING_FOR_RESOURCES" in result.stderr
    (call,) = fake.calls("queued-resources", "create")
    options = ("--accelerator-type=v6e-8", "--runtime-version=v2-alpha-tpuv6e")
    assert all(word in call for word in ("mine", "--spot", *options))
    assert fake.run("tpu_pod.sh", "create").returncode == 0
    assert len(fake.calls("create")) == 1


def test_create_says_what_is_missing_or_failed(fake):
    assert_one_line(fake.run("tpu_pod.sh", "create", ACCELERATOR=None), "ACCELERATOR")
    assert_one_line(fake.run("tpu_pod.sh", "create", ACCELERATOR="v99-8"), "RUNTIME")
    assert not fake.calls("create")
    for state, word in [("FAILED", "failed"), ("SUSPENDED", "preempted")]:
        fake.states("PROVISIONING", state)
        result = fake.run("tpu_pod.sh", "create")
        assert result.returncode == 1 and not fake.calls("create")
        assert result.stderr.splitlines()[-1].startswith("error: ")
        assert word in result.stderr.splitlines()[-1]


def test_gcloud_that_fails_is_quoted(fake):
    fake.stub("gcloud", "#!/bin/sh\necho 'ERROR: not logged in' >&2; exit 1")
    assert_one_line(fake.run("tpu_pod.sh", "create"), "not logged in")


def test_tpu_vm_is_a_single_host_by_default(fake):
    printed = fake.run("tpu_vm.sh", "create", ACCELERATOR=None, DRY_RUN=1).stdout
    assert "v5litepod-8" in printed and "v2-alpha-tpuv5-lite" in printed
    assert "v6e-8" in fake.run("tpu_vm.sh", "create", DRY_RUN=1).stdout


def test_setup_copies_tracked_files_as_they_are_and_mounts_first(fake):
    fake.run("tpu_pod.sh", "create")
    (fake.clone / "tracked.txt").write_text("as edited")
    (fake.clone / "untracked.txt").write_text("secret")
    result = fake.run("tpu_pod.sh", "setup", MOUNT='ls -a >"$HOME/mounted"')
    assert result.returncode == 0, result.stderr
    for me in "01":
        worker = fake.root / "worker" / me
        assert (worker / "ddpm_jax" / "tracked.txt").read_text() == "as edited"
        assert not (worker / "ddpm_jax" / "untracked.txt").exists()
        assert (worker / "ddpm_jax" / ".venv" / "bin" / "python").exists()
        assert ".venv" not in (worker / "mounted").read_text()
        with tarfile.open(worker / "ddpm_jax.tar.gz") as files:
            assert not any(".git/" in name for name in files.getnames())
    status = subprocess.run(
        ["git", "status", "--short"], cwd=fake.clone, capture_output=True, text=True
    )
    assert status.stdout == " M tracked.txt\n?? untracked.txt\n"
    failed = fake.run("tpu_pod.sh", "setup", MOUNT="false")
    assert failed.returncode != 0 and "MOUNT failed" in failed.stderr


def test_up_does_all_of_it(fake):
    result = fake.run("tpu_pod.sh", "up", *MAIN)
    assert result.returncode == 0, result.stderr
    assert len(fake.calls("create")) == 1 and fake.runs(0) == fake.runs(1) == 1
    lines = (fake.root / "mains").read_text().splitlines()
    assert lines == ["-m " + " ".join(MAIN)] * 2
    assert not fake.calls("delete")  # what was asked for by hand is given back so


def test_up_wants_storage_that_outlives_the_tpu(fake):
    for args in (MAIN[:3], (*MAIN[:3], "--workdir", "runs/it")):
        assert_one_line(fake.run("tpu_pod.sh", "up", *args), "--workdir")
    assert not fake.calls()


@pytest.mark.parametrize("code", [143, 137])
def test_up_after_a_preemption(fake, code):
    fake.main(
        "[ $N -gt 1 ] || {\n"
        '[ $ME = 1 ] || printf "SUSPENDING\nSUSPENDING\nSUSPENDED" >"$FAKE/states"\n'
        f"exit {code}\n}}"
    )
    (fake.clone / "tracked.txt").write_text("as it began")
    with fake.start("tpu_pod.sh", "up", *MAIN, MAX_RESTARTS=0) as process:
        fake.wait(both(fake, "count"))
        (fake.clone / "tracked.txt").write_text("edited since")
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "was preempted" in said
    assert [len(fake.calls(verb)) for verb in ("create", "delete")] == [2, 1]
    assert fake.runs(0) == fake.runs(1) == 2
    copied = fake.root / "worker" / "1" / "ddpm_jax" / "tracked.txt"
    assert copied.read_text() == "as it began"


def test_up_after_a_preemption_while_it_waits(fake):
    fake.states("PROVISIONING", "PROVISIONING", "SUSPENDING", "SUSPENDED")
    result = fake.run("tpu_pod.sh", "up", *MAIN)
    assert result.returncode == 0, result.stderr
    assert [len(fake.calls(verb)) for verb in ("create", "delete")] == [1, 1]


@pytest.mark.parametrize("code", [75, 134, 137, 143])
def test_up_runs_again_on_the_same_tpu(fake, code):
    fake.main(f"[ $N -gt 1 ] || exit {code}")
    result = fake.run("tpu_pod.sh", "up", *MAIN)
    assert result.returncode == 0 and "restarting" in result.stderr
    assert len(fake.calls("create")) == 1 and fake.runs(0) == fake.runs(1) == 2


@pytest.mark.parametrize("me, code", [(0, 1), (1, 1), (0, 2), (0, 130)])
def test_up_does_not_repeat_a_mistake(fake, me, code):
    """Though the other worker, which was left alone, ends otherwise."""
    fake.main(f"[ $ME = {me} ] && exit {code}; exit 75")
    result = fake.run("tpu_pod.sh", "up", *MAIN)
    assert result.returncode == code and fake.runs(0) == fake.runs(1) == 1


def test_up_gives_up_in_the_end(fake):
    fake.main("exit 134")
    result = fake.run("tpu_pod.sh", "up", *MAIN, MAX_RESTARTS=2)
    assert result.returncode == 134 and fake.runs(0) == 3
    assert "MAX_RESTARTS" in result.stderr


def test_up_does_not_take_a_failed_request_for_a_preemption(fake):
    fake.states("FAILED")
    assert_one_line(fake.run("tpu_pod.sh", "up", *MAIN), "failed")
    assert not fake.calls()


def test_a_main_outlives_ssh_and_up_finds_it(fake):
    fake.main('for i in {1..3000}; do sleep 0.02; [ ! -e "$FAKE/end" ] || exit 0; done')
    for verb in ("create", "setup"):
        assert fake.run("tpu_pod.sh", verb).returncode == 0
    assert fake.run("tpu_pod.sh", "run", *MAIN).returncode == 0
    for me in "01":
        pid = fake.root / "worker" / me / "ddpm_jax" / ".launch" / "pid"
        os.kill(int(pid.read_text()), signal.SIGHUP)
    again = fake.run("tpu_pod.sh", "run", *MAIN)
    assert again.returncode != 0 and "running already" in again.stderr
    assert fake.run("tpu_pod.sh", "status").stdout.count("main: running\n") == 2
    with fake.start("tpu_pod.sh", "up", *MAIN) as process:
        assert "running: " in process.stderr.readline()
        (fake.root / "end").touch()
        process.communicate(timeout=60)
    assert process.returncode == 0 and fake.runs(0) == fake.runs(1) == 1


def test_stop_saves_and_up_does_not_start_again(fake):
    fake.main(SAVES)
    with fake.start("tpu_pod.sh", "up", *MAIN) as process:
        fake.wait(both(fake, "ready"))
        result = fake.run("tpu_pod.sh", "stop")
        assert result.returncode == 0 and both(fake, "saved")()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped by hand" in said
    assert fake.runs(0) == fake.runs(1) == 1


def test_stop_of_nothing(fake):
    assert_one_line(fake.run("tpu_pod.sh", "stop"), "no main is running")
    assert not fake.calls("stop")


def test_logs_are_of_one_worker(fake):
    printed = fake.run("tpu_pod.sh", "logs", WORKER=1, DRY_RUN=1).stdout
    assert "--worker=1" in printed
    fake.main('echo "step 1 of $ME"')
    fake.run("tpu_pod.sh", "up", *MAIN)
    log = fake.root / "worker" / "1" / "ddpm_jax" / ".launch" / "log"
    assert "step 1 of 1" in log.read_text()
