"""What saving a large state to a bucket costs a training, and in memory of the host.

  python benchmarks/uploads.py --parameters 273e6 --bucket gs

The state is parameters, two moments and an average. A step takes as long as `--seconds`
says, in which the host does nothing, as while an accelerator works. The store is one
that is started on loopback, so it and its checksums take their time of the same cores.
"""

import argparse
import contextlib
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.step import TrainState
from ddpm_jax.training.uploads import Uploads

sys.path.append("tests")
import stores

LEAVES = 300


def state_of(num, step):
    """A state of so many parameters in leaves of one size, which cannot be packed."""
    size, random = int(num) // LEAVES, np.random.default_rng(0)

    def draw():
        leaves = (random.standard_normal(size, np.float32) for _ in range(LEAVES))
        return {f"leaf_{i:03}": jnp.array(leaf) for i, leaf in enumerate(leaves)}

    return TrainState(
        step=jnp.array(step, jnp.int32),
        params=draw(),
        averages={"ema": draw()},
        opt_state=({"mu": draw(), "nu": draw()},),
    )


def loop(seconds, until):
    """Takes steps until it is told; returns how long each took."""
    times = []
    while not until.is_set():
        begun = time.perf_counter()
        time.sleep(seconds)
        times.append(time.perf_counter() - begun)
    return np.array(times)


def memory():
    """The most that this process had, in 1e9 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(address, num, seconds):
    """Prints what a save takes; `address` is where the run lives."""
    state = jax.block_until_ready(state_of(num, 1))
    size = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e9
    begun = time.perf_counter()
    host = jax.tree.map(np.array, state)
    copied = time.perf_counter() - begun
    del host
    said, saved = [], threading.Event()

    def say(text):
        said.append(text)
        saved.set()

    before = memory()
    with Uploads(address, 3, 1, say, lambda: None) as uploads:
        with Checkpoints(uploads.folder / "checkpoints") as checkpoints:
            begun = time.perf_counter()
            checkpoints.save(state)
            call = time.perf_counter() - begun
            times = loop(seconds, saved)
            whole = time.perf_counter() - begun
        print(
            f"state                      {size:.2f} GB of {num / 1e6:.0f}M parameters"
        )
        print(f"copying it                 {copied:.2f} s")
        print(f"the call of save           {call:.2f} s")
        print(f"steps of {seconds} s meanwhile   {len(times)}")
        print(f"  beyond that, in all      {(times - seconds).sum():.2f} s")
        print(f"  the longest              {(times - seconds).max():.2f} s")
        print(f"until it is in the bucket  {whole:.1f} s")
        print(f"memory, at most            {before:.1f} -> {memory():.1f} GB")
        print(*said, sep="\n")


def main():
    """Parses, starts a store, and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=float, default=273e6)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a step")
    parser.add_argument("--bucket", choices=["gs", "s3"], default="gs")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        os.environ["XDG_CACHE_HOME"] = str(Path(folder, "cache"))
        url = stack.enter_context(stores.serving(args.bucket))
        os.environ |= {**stores.ACCOUNT, stores.VARIABLES[args.bucket]: url}
        address = f"{args.bucket}://{stores.BUCKET}/runs/large"
        measure(address, args.parameters, args.seconds)


if __name__ == "__main__":
    main()
