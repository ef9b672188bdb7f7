"""Kills training at random moments, again and again, and looks for what was lost.

  python benchmarks/soak.py --kills 50

A small model of digits is trained with a checkpoint every few steps. `kill -9` ends it
at a random moment, in the middle of a save as often as not; the same command starts it
again. In the end the run must equal, bit for bit, one that nobody interrupted. About
ten seconds a kill on a laptop. What else is given is given to the training, as in
`--config.train.keep=3`.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from ddpm_jax.experiment import build, run
from ddpm_jax.training.checkpoints import Checkpoints

SMALL = (
    "network.channels=8",
    "network.channel_mults=[1]",
    "network.num_groups=4",
    "optimizer.decay=constant",  # a rate that does not know how long the run will be
    "data.batch_size=8",
    "train.log_every=1",
    "train.sample_every=0",
    "train.keep=2",
)


def start(workdir, num_steps, save_every, given, output):
    """Starts training in a process of its own."""
    changes = *SMALL, f"train.num_steps={num_steps}", f"train.save_every={save_every}"
    return subprocess.Popen(
        [sys.executable, "-m", "ddpm_jax.train", "--config", "configs/digits.py"]
        + ["--workdir", str(workdir)]
        + [*(f"--config.{change}" for change in changes), *given],
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
    )


def reached(workdir):
    """The last step that was recorded, 0 if there is none."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    for line in reversed(lines):
        try:
            return json.loads(line)["step"]
        except ValueError:  # it was killed while writing
            continue
    return 0


def live_and_die(workdir, save_every, given, seconds):
    """Trains for so long beyond the first step; returns where it began and ended."""
    with tempfile.NamedTemporaryFile("w+") as output:
        process = start(workdir, 10**9, save_every, given, output)
        began = None
        deadline = time.monotonic() + 300
        while began is None or reached(workdir) <= began:
            said = Path(output.name).read_text()
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise SystemExit(f"it ended by itself, or does not begin:\n{said}")
            found = re.search(r"(training in|going on from step (\d+))", said)
            began = int(found[2] or 0) if found else None
            time.sleep(0.01)
        time.sleep(seconds)
        process.kill()
        process.wait()
        said = Path(output.name).read_text()
    if "damaged" in said:
        raise SystemExit(f"a checkpoint was not complete:\n{said}")
    return began, reached(workdir)


def finish(workdir, num_steps, save_every, given):
    """Trains to the end, and returns the state."""
    with tempfile.TemporaryFile("w+") as output:
        if start(workdir, num_steps, save_every, given, output).wait() != 0:
            output.seek(0)
            raise SystemExit(output.read())
    built = build.build(run.read_config(workdir))
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(built.abstract_state())


def soak(folder, kills, save_every, seconds, seed, given):
    """Returns the report, and whether the two runs are the same."""
    killed, whole = folder / "killed", folder / "whole"
    draw, began = random.Random(seed), time.monotonic()
    lost, in_save, last, restarts = [], 0, 0, 0
    for _ in tqdm(range(kills), "kills", disable=None):
        begin, end = live_and_die(killed, save_every, given, draw.uniform(0, seconds))
        lost.append(last - begin)
        restarts += begin > 0
        last = end
        in_save += any((killed / "checkpoints").glob("*orbax-checkpoint-tmp*"))
    num_steps = last + 10
    states = [finish(path, num_steps, save_every, given) for path in (killed, whole)]
    same = jax.tree.map(np.array_equal, *states)
    records = [(path / "metrics.jsonl").read_text() for path in (killed, whole)]
    losses = [re.findall(r'"step": \d+|"loss": [^,]+', text) for text in records]
    return {
        "kills": kills,
        "in the middle of a save": in_save,
        "restarts from a complete checkpoint": restarts,
        "steps": num_steps,
        "steps lost in all": sum(lost[1:]),
        "most steps lost at once": max(lost[1:], default=0),
        "seconds": round(time.monotonic() - began),
        "equal to the run without kills, bit for bit": all(jax.tree.leaves(same))
        and losses[0] == losses[1],
    }


def main():
    """Prints the report; the exit code is 1 where the runs differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--save_every", type=int, default=3, help="steps")
    parser.add_argument("--seconds", type=float, default=2, help="the longest life")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args, given = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        asked = args.kills, args.save_every, args.seconds, args.seed
        report = soak(Path(folder), *asked, given)
    for name, value in report.items():
        print(f"{name:<45}{value}")
    raise SystemExit(not report["equal to the run without kills, bit for bit"])


if __name__ == "__main__":
    main()
