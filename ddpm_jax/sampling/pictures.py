"""What `sample` leaves: images in a folder, one by one, or files of all of them."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.data import images
from ddpm_jax.diffusion.timesteps import Timesteps
from ddpm_jax.distributed import devices, multihost
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import config
from ddpm_jax.files import atomic_write
from ddpm_jax.places import readable
from ddpm_jax.sampling.partial import PartialResults

# What each output may be, by suffix and in words.
KINDS = {
    "out": ((".png", ".npz", ""), "a .png, an .npz, or a folder"),
    "gif": ((".gif",), "a .gif"),
    "trajectory": ((".png",), "a .png"),
}
# What the images of a folder are drawn by, in the folder.
RECORD = ".samples.json"


class Order(NamedTuple):
    """What is to be drawn.

    Attributes:
      draw: (params, keys, labels, given) -> `Drawn`, images by themselves.
      params: of the network.
      examples: the keys, the classes or None, and what each image is drawn from, arrays
        [num, ...].
      times: the times visited, [steps + 1].
      protocol: what decides image i, whatever `num` is, as JSON has it.
    """

    draw: Callable
    params: Any
    examples: tuple
    times: Timesteps
    protocol: dict[str, Any]

    @property
    def labels(self) -> np.ndarray | None:
        """The class of each image."""
        return self.examples[1]


class Drawn(NamedTuple):
    """What was drawn.

    Attributes:
      pictures: uint8 [num, height, width, channels].
      walk: None, or x_t at all times, uint8 [num, steps + 1, height, width, channels].
      predicted: None, or the x_0 predicted at all times but the last.
    """

    pictures: np.ndarray
    walk: np.ndarray | None = None
    predicted: np.ndarray | None = None


def check_out(args: argparse.Namespace) -> None:
    """Refuses, before any work, what cannot be written; makes the parent folders.

    Raises:
      ConfigError: saying what to give.
      OSError: if a parent folder cannot be made.
    """
    given = {"out": args.out, "gif": args.gif, "trajectory": args.trajectory}
    paths = {name: Path(path) for name, path in given.items() if path is not None}
    for name, path in paths.items():
        if path.suffix.lower() not in KINDS[name][0] or path == Path():
            raise ConfigError(f"--{name} {path}: give {KINDS[name][1]}")
        if path.suffix and path.is_dir():
            raise ConfigError(f"--{name} {path}: there is a folder of that name")
    if len({path.resolve() for path in paths.values()}) < len(paths):
        raise ConfigError("--out, --gif and --trajectory must be different files")
    for name, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise ConfigError(f"--{name} {path}: {path.parent} cannot be written to")
    out = paths["out"]
    is_other = out.is_file() or out.is_dir() and any(out.iterdir())
    if not out.suffix and is_other and not (out / RECORD).is_file():
        raise ConfigError(
            f"--out {out}: it is there already; give a new or empty folder"
        )


def fill(args: argparse.Namespace, order: Order) -> None:
    """Draws images into a folder, batch by batch, from the first that is not there.

    Raises:
      ConfigError: if it holds images of another command.
    """
    out, labels = Path(args.out), order.labels
    with multihost.error_barrier():
        multihost.on_primary(lambda: _claim(out, order.protocol, args.num))
    classes = [None] * args.num if labels is None else labels
    files = (out / images.file_of(*numbered) for numbered in enumerate(classes))
    missing = (i for i, path in enumerate(files) if not path.is_file())
    first = int(multihost.all_gather(str(next(missing, args.num)))[0])
    if first and jax.process_index() == 0:
        print(readable(f"{first} of {args.num} images are in {out} already"))
    batches = devices.map_batches(
        order.draw, order.params, order.examples, args.batch_size, first=first
    )
    for pictures, *_ in batches if first < args.num else ():
        end = first + len(pictures)
        own = None if labels is None else labels[first:end]
        if jax.process_index() == 0:
            images.save_folder(out, pictures, own, first)
        first = end


def _claim(folder, protocol, num):
    """Writes what a folder's images are drawn by, or compares it and their number."""
    path, protocol = folder / RECORD, json.loads(json.dumps(protocol, default=str))
    if not path.is_file():
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(protocol, indent=2) + "\n")
        return
    try:
        changed = config.differences(json.loads(path.read_text()), protocol)
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({error}): give a new folder") from error
    said = [
        f"{key} is {old} there and {new} here" for key, (old, new) in changed.items()
    ]
    if said:
        raise ConfigError(
            f"--out {folder}: it holds samples of another command ({'; '.join(said)}): "
            "give a new folder"
        )
    there = sum(1 for _ in folder.rglob("*.png"))
    if there > num:
        raise ConfigError(
            f"--out {folder}: it holds {there:,} images already, more than --num "
            f"{num}: give --num {there}, or a new folder"
        )


def draw(args: argparse.Namespace, order: Order) -> None:
    """Draws all images, then writes all that is asked for."""
    out, protocol = Path(args.out), dict(order.protocol)
    if not out.suffix:
        with multihost.error_barrier():
            multihost.on_primary(lambda: _claim(out, order.protocol, args.num))
    for name in ("num", "batch_size", "gif", "trajectory"):
        protocol[name] = getattr(args, name)
    partial = PartialResults(out.with_name(f".{out.name}.parts"), protocol, Drawn)
    batches = devices.map_batches(
        order.draw, order.params, order.examples, args.batch_size, cache=partial
    )
    drawn = devices.joined(batches)
    if jax.process_index():
        return
    write(out, drawn.pictures, order.labels, args.interpolate)
    if drawn.walk is not None:
        write_steps(args, order.times, drawn)
    partial.clear()


def write(
    out: Path, pictures: np.ndarray, labels: np.ndarray | None, columns: int | None
) -> None:
    """Writes a grid (.png), arrays (.npz), or a folder of PNGs."""
    if out.suffix.lower() == ".png":
        images.save_png(out, images.grid(pictures, columns))
    elif out.suffix.lower() == ".npz":
        arrays = {"images": pictures} | ({} if labels is None else {"labels": labels})
        with atomic_write(out) as partial:
            np.savez(partial, **arrays)
    else:
        images.save_folder(out, pictures, labels)


def write_steps(args: argparse.Namespace, times: Timesteps, drawn: Drawn) -> None:
    """Writes what --gif and --trajectory ask for."""
    walk, predicted = drawn.walk, drawn.predicted
    down = np.flatnonzero(np.diff(times) < 0)  # what goes up predicts nothing

    def choose(most):
        return down[np.unique(np.linspace(0, len(down) - 1, most).astype(int))]

    if args.gif:
        shown = [*choose(50), -1]
        frames = [images.grid(walk[:, i], args.interpolate) for i in shown]
        images.save_gif(args.gif, np.stack(frames))
        print(readable(f"wrote {len(frames)} steps to {args.gif}"))
    if args.trajectory:
        shown = choose(12)
        rows = np.stack([walk[:8, shown], predicted[:8, shown]], axis=1)
        tiles = rows.reshape(-1, *rows.shape[3:])
        images.save_png(args.trajectory, images.grid(tiles, len(shown)))
        print(readable(f"wrote the steps of {len(rows)} images to {args.trajectory}"))
