"""launch/local.sh: several processes on one machine."""

import re
import signal
import time

import pytest
from stubs import MAIN, SAVES, assert_one_line, both, make_fake

fake = pytest.fixture(make_fake)


def test_local_processes_share_a_free_port_and_all_else_differs(fake):
    fake.main('echo "$JAX_PLATFORMS $XLA_FLAGS" >"$FAKE/env.$ME"')
    ports = []
    for _ in range(2):
        assert fake.run("local.sh", 3, *MAIN, DEVICES=4).returncode == 0
        lines = (fake.root / "mains").read_text().splitlines()
        (fake.root / "mains").unlink()
        assert all(line.startswith("-m " + " ".join(MAIN)) for line in lines)
        assert sorted(line.split("--process_id ")[1] for line in lines) == [*"012"]
        (port,) = {re.search(r"localhost:(\d+) --num_processes 3", x)[1] for x in lines}
        ports.append(port)
    assert ports[0] != ports[1]
    platform, *flags = (fake.root / "env.1").read_text().split()
    assert platform == "cpu" and "--xla_force_host_platform_device_count=4" in flags
    printed = fake.run("local.sh", 2, *MAIN, PORT=4711, DRY_RUN=1).stdout
    assert "localhost:4711" in printed


@pytest.mark.parametrize("number", [(), (1,)])
def test_local_is_one_process_that_joins_none(fake, number):
    fake.main(
        'echo "$XLA_FLAGS" >"$FAKE/flags"; echo "$CUDA_VISIBLE_DEVICES" >"$FAKE/s"'
    )
    given = {"ME": 0, "CUDA_VISIBLE_DEVICES": "all"}
    assert fake.run("local.sh", *number, *MAIN, DEVICES=4, **given).returncode == 0
    assert (fake.root / "mains").read_text() == "-m " + " ".join(MAIN) + "\n"
    assert "device_count=4" in (fake.root / "flags").read_text()
    (fake.root / "gpus").write_text("GPU 0\nGPU 1\n")
    assert fake.run("local.sh", *number, *MAIN, XLA_FLAGS="", **given).returncode == 0
    assert (fake.root / "flags").read_text() == "\n", "no fake devices"
    assert (fake.root / "s").read_text() == "all\n", "it sees what there is to see"


@pytest.mark.parametrize("gpus, seen", [(2, ["0", "1"]), (5, ["0,1", "2,3"])])
def test_local_processes_have_an_equal_share_of_the_gpus(fake, gpus, seen):
    fake.main('echo "$CUDA_VISIBLE_DEVICES" >"$FAKE/gpu.$ME"')
    (fake.root / "gpus").write_text("".join(f"GPU {i}\n" for i in range(gpus)))
    assert fake.run("local.sh", 2, *MAIN).returncode == 0
    assert [(fake.root / f"gpu.{i}").read_text().strip() for i in "01"] == seen
    if gpus == 2:
        assert_one_line(fake.run("local.sh", 3, *MAIN), "3 processes need 3 GPUs")


def test_local_one_that_fails_stops_the_others(fake):
    fake.main(f'[ "$ME" = 0 ] || {{ sleep 0.2; exit 77; }}\n{SAVES}')
    result = fake.run("local.sh", 2, *MAIN)
    assert result.returncode == 77 and "code 77" in result.stderr
    assert (fake.root / "saved.0").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_a_signal_on_once_and_waits(fake, number):
    fake.main(SAVES)
    with fake.start("local.sh", 2, *MAIN, MAX_RESTARTS=3) as process:
        fake.wait(both(fake, "ready"))
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert both(fake, "saved")() and fake.runs(0) == fake.runs(1) == 1
    told = {(fake.root / f"told.{me}").read_text() for me in "01"}
    assert told == {signal.Signals(number).name.removeprefix("SIG") + "\n"}


def test_local_kills_what_does_not_answer(fake):
    deaf = 'trap "" TERM; touch "$FAKE/deaf"; for i in {1..1000}; do sleep 0.02; done'
    wait = 'until [ -e "$FAKE/deaf" ]; do sleep 0.02; done'
    fake.main(f'[ "$ME" = 0 ] && {{ {wait}; exit 9; }}; {deaf}')
    began = time.time()
    assert fake.run("local.sh", 2, *MAIN, GRACE=1).returncode == 9
    assert 1 <= time.time() - began < 20


@pytest.mark.parametrize(
    "code, most, runs", [(75, 2, 2), (134, 1, 2), (134, 0, 1), (1, 2, 1), (143, 2, 1)]
)
def test_local_restarts_what_is_worth_it(fake, code, most, runs):
    fake.main(f"[ $N -gt 1 ] || exit {code}")
    result = fake.run("local.sh", *MAIN, MAX_RESTARTS=most, ME=0)
    assert result.returncode == (code if runs == 1 else 0)
    assert fake.runs(0) == runs
