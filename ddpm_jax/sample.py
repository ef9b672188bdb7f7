"""Draws samples from a trained model.

  python -m ddpm_jax.sample --workdir runs/digits --num 100 --out digits.png
  python -m ddpm_jax.sample --workdir runs/cifar --sampler ddim --steps 50 --out a.npz
  python -m ddpm_jax.sample --pretrained google/ddpm-cifar10-32 --num 16

What is not said is as the model's config says. Image i is the same for any --num.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax import cli, experiment, models
from ddpm_jax.config import ConfigError
from ddpm_jax.data import images
from ddpm_jax.training import parallel


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the arguments of this main."""
    models.add_arguments(parser)
    add = parser.add_argument
    add("--num", type=int, default=64, help="how many images (default: 64)")
    add("--out", default="samples.png", help=".png grid, .npz, or a folder of PNGs")
    add("--seed", type=int, default=0, help="default: 0")
    add("--labels", metavar="0,1,2", help="classes, repeated to fill --num")
    add("--guidance_scale", type=float, help="0 unconditional, 1 conditional, or more")
    add("--sampler", help="ddpm or ddim")
    add("--steps", type=int, help="how many network calls")
    add("--timesteps", help="trailing, leading, linspace or quadratic")
    add("--eta", type=float, help="of ddim: 0 deterministic, 1 as ddpm")
    add("--variance", help="of ddpm: fixed_small, fixed_large or learned_range")
    add("--batch_size", type=int, default=64, help="images at a time (default: 64)")
    return parser


def change(config: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Returns the model's config with what the arguments change in its sections."""
    sampler = {"name": args.sampler, "eta": args.eta, "variance": args.variance}
    if args.sampler not in (None, config["sampler"]["name"]):
        config = {**config, "sampler": {}}  # the settings were another sampler's
    changes = {
        "sampler": sampler,
        "timesteps": {"name": args.timesteps, "num_steps": args.steps},
        "denoiser": {"guidance_scale": args.guidance_scale},
    }
    for section, values in changes.items():
        given = {key: value for key, value in values.items() if value is not None}
        config = {**config, section: config.get(section, {}) | given}
    return config


def sample(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray | None]:
    """Draws as the arguments say.

    Returns:
      uint8 images [num, height, width, channels], and their labels [num] or None.

    Raises:
      ConfigError: for whatever the user can mend.
    """
    if args.num < 1 or args.batch_size < 1:
        raise ConfigError("--num and --batch_size must be at least 1")
    if not 0 <= args.seed < 2**63:
        raise ConfigError("--seed must be a whole number from 0 to 2**63 - 1")
    model = models.from_args(args)
    run = experiment.build(change(model.config, args))
    params = model.load_params(run)
    labels = experiment.sample_labels(run.num_classes, args.num, _labels(args, run))
    sample_fn = parallel.parallel_map(run.sample_fn, min(args.batch_size, args.num))
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
        partial = out.with_name(f".{out.name}.partial.npz")
        np.savez(partial, **arrays)
        partial.replace(out)
    else:
        images.save_folder(out, pictures, labels)


def _labels(args, run):
    if args.labels is None:
        return None
    if not run.num_classes:
        raise ConfigError("--labels: this model has no classes")
    try:
        labels = [int(label) for label in args.labels.split(",")]
    except ValueError as error:
        raise ConfigError("--labels must be whole numbers, as in 0,1,2") from error
    if not all(0 <= label < run.num_classes for label in labels):
        raise ConfigError(f"--labels must be within 0 ... {run.num_classes - 1}")
    return labels


def main(args: argparse.Namespace) -> None:
    """Draws samples and writes them."""
    out = Path(args.out)
    check_out(out)
    pictures, labels = sample(args)
    write(out, pictures, labels)
    print(f"wrote {len(pictures)} images to {out}")


if __name__ == "__main__":
    cli.run(main, cli.parse(add_arguments(cli.parser(__doc__))))
