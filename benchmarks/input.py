"""Times the input of training: images a second of each kind, and how soon they begin.

  python benchmarks/input.py --data_dir ~/tensorflow_datasets

CIFAR-10 (ArrayRecord) in memory, in a decoded cache on the disk, and decoded for each
batch; and a folder of JPEGs at 64x64, whose start is timed as a process of its own,
from the command to the first batch. Nothing is trained: batches are taken as fast as
they come. What was computed in a second of a core says more where others use the
machine. The folder and the caches lie in a temporary folder, which is removed.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
from PIL import Image
from tqdm import tqdm

from ddpm_jax import train  # noqa: F401, what a training imports is in its start
from ddpm_jax.experiment.dataset import Dataset


def feed_of(image_shape, **data):
    """Opens the input as training does."""
    return Dataset({"flip": True, **data}, image_shape).feed()


def rate(feed, first, steps, seconds):
    """Returns the images a second, and a second of a core, for so long at most."""
    began, cpu, count = time.perf_counter(), time.process_time(), 0
    with closing(feed.ahead(first, first + steps)) as batches:
        for _ in batches:
            count += feed.batch_size
            if time.perf_counter() - began > seconds:
                break
    took = time.perf_counter() - began, time.process_time() - cpu
    return [count / each for each in took]


def rates(feed, num_images, seconds):
    """Returns the rates of the first epoch (all of it, if kept) and of the next."""
    steps = -(-num_images // feed.batch_size)
    first = rate(feed, 0, steps, math.inf if feed.first_pass else seconds)
    return *first, *rate(feed, steps, steps, seconds)


def write_folder(path, num, side):
    """Writes JPEGs that look like pictures: smooth, with some noise."""
    path.mkdir()
    draw = np.random.default_rng(0)
    for i in tqdm(range(num), "writing JPEGs", leave=False, disable=None):
        small = Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8))
        smooth = np.asarray(small.resize((side, side), Image.BICUBIC), np.int16)
        noisy = smooth + draw.integers(-6, 7, (side, side, 1))
        picture = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
        picture.save(path / f"{i:06}.jpg", quality=90)


def start(folder):
    """Returns the seconds of a new process until its first batch, and of its core."""
    began, cpu = time.perf_counter(), os.times()
    subprocess.run([sys.executable, __file__, "--first_batch", folder], check=True)
    took, now = time.perf_counter() - began, os.times()
    used = now.children_user + now.children_system
    return took, used - cpu.children_user - cpu.children_system


def say(what, *values):
    """Prints a row."""
    print(f"{what:<52}" + "".join(f"{value:>11,.4g}" for value in values), flush=True)


def time_cifar(args, tmp):
    """Prints the rows of CIFAR-10."""
    data = {"name": "tfds", "dataset": "cifar10", "batch_size": 128}
    data |= {"data_dir": args.data_dir, "cache": str(tmp / "decoded")}
    print(f"{'images a second':<52}{'first epoch':>11}{'of a core':>11}", end="")
    print(f"{'later':>11}{'of a core':>11}")
    for what, settings in {
        "CIFAR-10, in memory": {},
        "CIFAR-10 with max_memory_gb=0.1: decoded cache": {"max_memory_gb": 0.1},
        "the same, cache=False: decoded for each batch": {
            "max_memory_gb": 0.1,
            "cache": False,
        },
    }.items():
        feed = feed_of((32, 32, 3), **{**data, **settings})
        say(what, *rates(feed, 50_000, args.seconds))


def time_folder(args, tmp):
    """Prints the rows of a folder."""
    for side, num in ((64, args.num), (256, args.num // 20)):
        folder = tmp / f"jpeg{side}"
        write_folder(folder, num, side)
        if side == 64:
            for what in "first", "second":
                say(f"{num:,} JPEGs, {what} start: seconds", *start(folder))
        data = {"name": "folder", "path": str(folder), "batch_size": 128}
        for draft in (False, True)[: 1 + (side > 64)]:
            feed = feed_of((64, 64, 3), **data, draft=draft)
            what = f"{num:,} JPEGs of {side}x{side} at 64x64" + ", draft" * draft
            say(what, *rates(feed, num, args.seconds))


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", help="of CIFAR-10 (default: tfds' own)")
    parser.add_argument("--num", type=int, default=20_000, help="files of the folder")
    parser.add_argument("--seconds", type=float, default=10, help="for each figure")
    parser.add_argument("--first_batch", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.first_batch:
        data = {"name": "folder", "path": args.first_batch, "batch_size": 128}
        next(feed_of((64, 64, 3), **data).ahead(0, 10))
        return
    print(f"{os.cpu_count()} CPU cores")
    with tempfile.TemporaryDirectory() as tmp:
        os.environ["XDG_CACHE_HOME"] = tmp
        time_cifar(args, Path(tmp))
        time_folder(args, Path(tmp))


if __name__ == "__main__":
    main()
