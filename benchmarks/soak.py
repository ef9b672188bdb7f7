"""Kills training at random moments, again and again, and looks for what was lost.

  python benchmarks/soak.py --kills 50
  python benchmarks/soak.py --kills 50 --bucket gs --faults 0.05 --seconds 8

A small model of digits is trained with a checkpoint every few steps. `kill -9` ends it
at a random moment, in the middle of a save as often as not; the same command starts it
again. In the end the run must equal, bit for bit, one that nobody interrupted. About
ten seconds a kill on a laptop.

With --bucket the run lives in one, of a server that is started on loopback; to --faults
of its requests something happens on the way; and every other time all that the machine
had of the run is lost with it, so that what was said to be saved must be in the bucket.

What else is given is given to the training, as in
`--config.train.keep=3`.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from ddpm_jax import places
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
    path = places.place(workdir, "runs") / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    for line in reversed(lines):
        try:
            return json.loads(line)["step"]
        except ValueError:  # it was killed while writing
            continue
    return 0


def live_and_die(workdir, save_every, given, seconds):
    """Trains for so long beyond the first step.

    Returns:
      Where it began, where it ended, the last step that it said was in the bucket,
      and all that it said.
    """
    with tempfile.NamedTemporaryFile("w+") as output:
        process = start(workdir, 10**9, save_every, given, output)
        began = None
        deadline = time.monotonic() + 300
        while began is None or reached(workdir) <= began:
            said = Path(output.name).read_text()
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise SystemExit(f"it ended by itself, or does not begin:\n{said}")
            found = re.search(r"(^training in|going on from step (\d+))", said, re.M)
            began = int(found[2] or 0) if found else None
            time.sleep(0.01)
        time.sleep(seconds)
        process.kill()
        process.wait()
        said = Path(output.name).read_text()
    if "damaged" in said or "left out" in said:
        raise SystemExit(f"a checkpoint was not complete:\n{said}")
    saved = [int(step) for step in re.findall(r"step (\d+) is saved in", said)]
    return began, reached(workdir), max(saved, default=0), said


def finish(workdir, num_steps, save_every, given):
    """Trains to the end, and returns the state."""
    with tempfile.TemporaryFile("w+") as output:
        if start(workdir, num_steps, save_every, given, output).wait() != 0:
            output.seek(0)
            raise SystemExit(output.read())
    folder = places.place(workdir, "runs")
    built = build.build(run.read_config(folder))
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.restore(built.abstract_state())


def soak(killed, whole, kills, save_every, seconds, seed, given):
    """Returns the report; it says whether the two runs are the same."""
    folder, is_remote = places.place(killed, "runs"), killed != str(Path(killed))
    draw, began = random.Random(seed), time.monotonic()
    lost, in_save, last, restarts, saved, moved = [], 0, 0, 0, 0, 0
    for kill in tqdm(range(kills), "kills", disable=None):
        life = draw.uniform(0, seconds)
        begin, end, told, said = live_and_die(killed, save_every, given, life)
        if begin < saved:
            raise SystemExit(f"step {saved} was said to be saved, but:\n{said}")
        saved = max(saved, told)
        lost.append(max(last - begin, 0))
        restarts += begin > 0
        last = end
        in_save += any((folder / "checkpoints").glob("*orbax-checkpoint-tmp*"))
        if is_remote and kill % 2:  # it goes on elsewhere
            shutil.rmtree(folder)
            last, moved = saved, moved + 1
    num_steps = end + 10
    states = [finish(path, num_steps, save_every, given) for path in (killed, whole)]
    same = jax.tree.map(np.array_equal, *states)
    records = [
        (places.place(path, "runs") / "metrics.jsonl").read_text()
        for path in (killed, whole)
    ]
    losses = [re.findall(r'"step": \d+|"loss": [^,]+', text) for text in records]
    return {
        "kills": kills,
        "in the middle of a save": in_save,
        "restarts from a complete checkpoint": restarts,
        "restarts on another machine": moved,
        "steps": num_steps,
        "steps lost in all": sum(lost[1:]),
        "most steps lost at once": max(lost[1:], default=0),
        "seconds": round(time.monotonic() - began),
        "equal to the run without kills, bit for bit": all(jax.tree.leaves(same))
        and losses[0] == losses[1],
    }


@contextlib.contextmanager
def bucket(scheme, rate, folder):
    """Yields the address of a run in a bucket; in the end says what happened to it."""
    sys.path.append("tests")
    import stores

    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    with stores.serving(scheme) as url, stores.Faults(url, rate) as faults:
        os.environ |= {**stores.ACCOUNT, stores.VARIABLES[scheme]: faults.url}
        yield f"{scheme}://{stores.BUCKET}/runs/killed"
        print(f"of {len(faults.requests)} requests: {faults.happened}")


def main():
    """Prints the report; the exit code is 1 where the runs differ."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--save_every", type=int, default=3, help="steps")
    parser.add_argument("--seconds", type=float, default=2, help="the longest life")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--bucket", choices=["gs", "s3"], help="where the run lives")
    parser.add_argument("--faults", type=float, default=0, help="of requests to it")
    args, given = parser.parse_known_args()
    asked = args.kills, args.save_every, args.seconds, args.seed
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        killed = str(folder / "killed")
        if args.bucket:
            killed = stack.enter_context(bucket(args.bucket, args.faults, folder))
        report = soak(killed, str(folder / "whole"), *asked, given)
    for name, value in report.items():
        print(f"{name:<45}{value}")
    raise SystemExit(not report["equal to the run without kills, bit for bit"])


if __name__ == "__main__":
    main()
