"""What hangs is ended, and what moves or rests is not."""

import subprocess
import sys

from jobs import SMALL, environment

from ddpm_jax.training.watchdog import Watchdog

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
