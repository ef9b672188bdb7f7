"""Draws samples from a trained model.

  python -m ddpm_jax.sample --workdir runs/digits --num 100 --out digits.png
  python -m ddpm_jax.sample --workdir runs/cifar --sampler ddim --steps 50 --out a.npz
  python -m ddpm_jax.sample --pretrained google/ddpm-cifar10-32 --num 16

What is not said is as the model's config says. Image i is the same for any --num.
"""

import argparse
from pathlib import Path

import numpy as np

from ddpm_jax import arguments, cli, experiment
from ddpm_jax.config import ConfigError
from ddpm_jax.data import images
from ddpm_jax.files import whole
from ddpm_jax.training import parallel


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the arguments of this main."""
    arguments.add_model(parser)
    arguments.add_sampling(parser)
    add = parser.add_argument
    add("--num", type=int, default=64, help="how many images (default: 64)")
    add("--out", default="samples.png", help=".png grid, .npz, or a folder of PNGs")
    add("--batch_size", type=int, default=64, help="images at a time (default: 64)")
    return parser


def sample(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray | None]:
    """Draws as the arguments say.

    Returns:
      uint8 images [num, height, width, channels], and their labels [num] or None.

    Raises:
      ConfigError: for whatever the user can mend.
    """
    if args.num < 1 or args.batch_size < 1:
        raise ConfigError("--num and --batch_size must be at least 1")
    model = arguments.model(args)
    run = experiment.build(arguments.sampling(model.config, args))
    params = model.load_params(run)
    labels = arguments.labels(args, run.num_classes, args.num)
    sample_fn = parallel.parallel_map(run.sample_fn, args.batch_size)
    keys = experiment.sample_keys(args.seed, args.num)
    return images.to_uint8(sample_fn(params, keys, labels)), labels


def check_out(out: Path) -> None:
    """Refuses, before any work, what cannot be written; makes the parent folder.

    Raises:
      ConfigError: saying what to give.
      OSError: if the parent folder cannot be made.
    """
    if out.suffix.lower() not in (".png", ".npz", "") or out == Path():
        raise ConfigError(f"--out {out}: give a .png, an .npz, or a folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.suffix and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"--out {out}: it is there already; give a new or empty folder"
        )


def write(out: Path, pictures: np.ndarray, labels: np.ndarray | None) -> None:
    """Writes a grid (.png), arrays (.npz), or a folder of PNGs."""
    if out.suffix.lower() == ".png":
        images.save_png(out, images.grid(pictures))
    elif out.suffix.lower() == ".npz":
        arrays = {"images": pictures} | ({} if labels is None else {"labels": labels})
        with whole(out) as partial:
            np.savez(partial, **arrays)
    else:
        images.save_folder(out, pictures, labels)


def main(args: argparse.Namespace) -> None:
    """Draws samples and writes them."""
    out = Path(args.out)
    check_out(out)
    pictures, labels = sample(args)
    write(out, pictures, labels)
    print(f"wrote {len(pictures)} images to {out}")


if __name__ == "__main__":
    cli.run(main, cli.parse(add_arguments(cli.parser(__doc__))))
