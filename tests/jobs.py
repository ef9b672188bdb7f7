"""Mains as processes of their own, alone or joined over loopback."""

import json
import os
import re
import socket
import subprocess
import sys
import time

from plain import NAME

from ddpm_jax.experiment import build, config, run
from ddpm_jax.training.checkpoints import Checkpoints

# What is tested with it does not depend on the network.
SMALL = (
    f"network={{'name': '{NAME}', 'num_classes': 10, 'label_dropout': 0.1}}",
    "data.batch_size=8",
    "timesteps.num_steps=3",
    "train.num_steps=6",
    "train.log_every=1",
    "train.save_every=2",
    "train.sample_every=0",
    "train.num_samples=4",
)


def small(*changes):
    """The small model's config."""
    return config.read_config("configs/digits.py", (*SMALL, *changes))


def environment(devices=1):
    """Other devices than the eight of this process."""
    flags = re.sub(r"--xla_force_host\S+", "", os.environ["XLA_FLAGS"])
    flags += f" --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}


def training(workdir, *changes, config="configs/digits.py"):
    """The arguments that train the small model."""
    overrides = [f"--config.{change}" for change in (*SMALL, *changes)]
    return ["train", "--config", config, "--workdir", str(workdir), *overrides]


def final_state(workdir):
    """The state of a run's last checkpoint."""
    built = build.build(run.read_config(workdir))
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(built.abstract_state())


class Job:
    """Some processes that run one main; all are ended with the `with` block.

    Attributes:
      processes: the processes, of which `errors` holds the standard error.
    """

    def __init__(self, folder, each, devices=1, places=None, cluster=None):
        """Starts a process for each list of arguments.

        Each starts in its folder of `places`. `cluster(index, port)` gives variables by
        which it finds the others; else its arguments say where they are.
        """
        port = free_port()
        self._files = []
        self.processes = []
        for index, (main, *args) in enumerate(each):
            found = cluster(index, port) if cluster else {}
            if len(each) > 1 and not cluster:
                args += ["--coordinator", f"localhost:{port}"]
                args += ["--num_processes", str(len(each)), "--process_id", str(index)]
            out = (folder / f"out_{index}").open("w+")
            error = (folder / f"error_{index}").open("w+")
            self._files += [out, error]
            process = subprocess.Popen(
                [sys.executable, "-m", f"ddpm_jax.{main}", *map(str, args)],
                env={**environment(devices), "PYTHONPATH": os.getcwd(), **found},
                cwd=places[index] if places else None,
                stdout=out,
                stderr=error,
            )
            process.out, process.error = (folder / f"{n}_{index}" for n in _STREAMS)
            self.processes.append(process)

    def wait(self, timeout=240):
        """Returns the exit codes."""
        deadline = time.monotonic() + timeout
        return [p.wait(max(0, deadline - time.monotonic())) for p in self.processes]

    def wait_for(self, path, timeout=200):
        """Waits until a file is there, or one whose name is as a pattern says."""
        deadline = time.monotonic() + timeout
        while not any(path.parent.glob(path.name)):
            assert time.monotonic() < deadline, self.said()
            assert all(p.poll() is None for p in self.processes), self.said()
            time.sleep(0.01)

    def said(self):
        """What all of them wrote."""
        texts = [p.out.read_text() + p.error.read_text() for p in self.processes]
        return "\n---\n".join(texts)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for process in self.processes:
            process.kill()
            process.wait()
        for file in self._files:
            file.close()


_STREAMS = ("out", "error")


def free_port():
    """One that nobody listens on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def run_several(folder, commands, num=2, devices=2):
    """Runs mains one after another in processes that are started and joined once.

    Args:
      folder: where to.
      commands: of each the folders to start in, one for each process, or None for this
        one; then the main and its arguments.
      num: how many processes.
      devices: of each.

    Returns:
      For each command (what it wrote, its exit code) of each process.
    """
    here = [os.getcwd()] * num
    told = [
        [places or here, main, [*map(str, rest)]] for places, main, *rest in commands
    ]
    told = [[[*map(str, places)], *rest] for places, *rest in told]
    (folder / "commands.json").write_text(json.dumps(told))
    script = os.path.join(os.path.dirname(__file__), "several.py")
    where = [script, str(folder), f"localhost:{free_port()}", str(num)]
    env = {**environment(devices), "PYTHONPATH": os.getcwd()}
    started = [
        subprocess.Popen([sys.executable, *where, str(index)], env=env)
        for index in range(num)
    ]
    try:
        assert [process.wait(240) for process in started] == [0] * num
    finally:
        for process in started:
            process.kill()
            process.wait()
    each = [json.loads((folder / f"said_{i}.json").read_text()) for i in range(num)]
    return [[*zip(*of_one, strict=True)] for of_one in zip(*each, strict=True)]
