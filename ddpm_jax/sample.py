"""Draws samples from a trained model, or edits pictures with it.

  python -m ddpm_jax.sample --workdir runs/digits --num 100 --out digits.png
  python -m ddpm_jax.sample --workdir runs/cifar --sampler dpmpp_2m --steps 15
  python -m ddpm_jax.sample --pretrained google/ddpm-cifar10-32 --num 16 --gif a.gif
  python -m ddpm_jax.sample --workdir runs/cifar --init cat.png --strength 0.6
  python -m ddpm_jax.sample --workdir runs/cifar --inpaint cat.png --mask mask.png

What is not said is as the model's config says. Image i is the same for any --num. The
same command again goes on where it was stopped; a folder may be given a larger --num.
"""

import argparse
from pathlib import Path

import jax
import numpy as np

from ddpm_jax.cli import arguments, command
from ddpm_jax.data import images
from ddpm_jax.data.base import digest
from ddpm_jax.diffusion import inverse
from ddpm_jax.distributed import multihost
from ddpm_jax.errors import ConfigError
from ddpm_jax.metrics.features.base import fingerprint
from ddpm_jax.places import readable
from ddpm_jax.sampling import pictures, tasks
from ddpm_jax.sampling.draw import sample_keys
from ddpm_jax.sampling.pictures import Drawn, Order
from ddpm_jax.sampling.tasks import Task

MOST_WATCHED = 2**30  # bytes of all the steps that are kept
STRENGTH = 0.6


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the arguments of this main."""
    arguments.add_model(parser)
    arguments.add_sampling(parser)
    add = parser.add_argument
    add("--num", type=int, default=64, help="how many images (default: 64)")
    add("--out", default="samples.png", help=".png grid, .npz, or a folder of PNGs")
    arguments.add_batch_size(parser)
    add("--gif", metavar="FILE", help="also an animation of the images while drawn")
    add("--trajectory", metavar="FILE", help="also a picture of the steps: x_t and x_0")

    group = parser.add_argument_group(
        "pictures to begin with",
        "Repeated to fill --num. A model with classes is told nothing, unless --labels "
        "says what they show.",
    )
    begin = group.add_mutually_exclusive_group()
    several = {"nargs": "+", "metavar": "FILE"}
    begin.add_argument("--init", **several, help="make them anew, see --strength")
    begin.add_argument("--inpaint", **several, help="paint a part anew, see --mask")
    begin.add_argument(
        "--interpolate", type=int, metavar="N", help="none: rows of N, noise to noise"
    )
    add = group.add_argument
    add(
        "--mask",
        metavar="FILE",
        help="of --inpaint: white where to paint, black or transparent where not",
    )
    add(
        "--repaint",
        type=int,
        metavar="N",
        help="of --inpaint: go down each stretch N times (RePaint; default: 10)",
    )
    way = group.add_mutually_exclusive_group()
    way.add_argument(
        "--strength",
        type=float,
        help=f"of --init: how much is made anew, 0 to 1 (default: {STRENGTH})",
    )
    way.add_argument(
        "--upscale", type=int, metavar="N", help="--init is N times too small: enlarge"
    )
    way.add_argument(
        "--colourise", action="store_true", help="--init is grey: give it colours"
    )
    way.add_argument(
        "--denoise",
        type=float,
        nargs="?",
        const=True,
        metavar="STD",
        help="--init is noisy: clean it, of noise of this standard deviation, above 0, "
        "to 255 (default: estimated)",
    )
    return parser


def order(args: argparse.Namespace) -> Order:
    """Prepares what the arguments say to draw.

    Raises:
      ConfigError: for whatever the user can mend.
    """
    _check(args)
    trained = arguments.trained(args)
    _tell_nothing(args, trained)
    model = trained.model(arguments.sampling(args))
    watched = bool(args.gif or args.trajectory)
    shown = watched or Path(args.out).suffix.lower() != ".npz"
    if shown and model.image_shape[2] not in images.CHANNELS:
        raise ConfigError(
            f"images of {model.image_shape[2]} channels cannot be shown: give --out an "
            ".npz, and no --gif or --trajectory"
        )
    task, labels = _edit(args, model), _labels(args, model)
    kept = 2 * args.num * len(task.timesteps) * np.prod(model.image_shape)
    if watched and kept > MOST_WATCHED:
        raise ConfigError(
            f"--gif and --trajectory keep every step, here {kept / 2**30:.0f} GB: "
            "give a smaller --num, or fewer --steps"
        )
    params = trained.load_params(model)
    draw_fn = tasks.make_draw(model, task, watched)

    def draw(*given):
        drawn, steps = draw_fn(*given)
        return Drawn(drawn, *(steps or ()))

    keys = sample_keys(args.seed, args.num)
    protocol = model.protocol() | _way(args)
    protocol["params"] = fingerprint(params)
    if "classes" in trained.origin:
        protocol["classes"] = trained.origin["classes"]
    return Order(draw, params, (keys, labels, task.given), task.timesteps, protocol)


def _way(args):
    """What the arguments say beyond the config, with the contents of files."""
    files = {name: getattr(args, name) for name in ("init", "inpaint", "mask")}
    read = {
        name: digest(*(Path(path).read_bytes() for path in np.atleast_1d(paths)))
        for name, paths in files.items()
        if paths is not None
    }
    names = "seed labels interpolate strength upscale colourise denoise repaint"
    return read | {name: getattr(args, name) for name in names.split()}


def _check(args):
    if args.num < 1 or args.batch_size < 1:
        raise ConfigError("--num and --batch_size must be at least 1")
    if (args.mask is None) != (args.inpaint is None):
        raise ConfigError("--inpaint and --mask go together")
    for name, owner in (
        ("repaint", "inpaint"),
        ("strength", "init"),
        ("upscale", "init"),
        ("colourise", "init"),
        ("denoise", "init"),
    ):
        given = getattr(args, name)
        if given is not None and given is not False and getattr(args, owner) is None:
            raise ConfigError(f"--{name} belongs to --{owner}")


def _tell_nothing(args, trained):
    """Edits of pictures whose class is not given do without one."""
    given = args.init or args.inpaint
    if not (given and trained.num_classes and args.labels is None):
        return
    if not trained.has_null:
        raise ConfigError("--labels: this model must be told what the pictures show")
    if args.guidance_scale is None:
        args.guidance_scale = 0.0


def _edit(args, model) -> Task:
    """What the arguments say to draw."""
    height, width, channels = model.image_shape
    if args.interpolate is not None:
        ends = 2 * -(-args.num // max(args.interpolate, 1))
        noises = sample_keys(args.seed, ends)
        return tasks.interpolate(model, args.num, args.interpolate, noises)

    def read(paths, shape, fit=True):
        given = tasks.read(paths, shape, fit)
        return given[np.arange(args.num) % len(given)]

    if args.inpaint:
        mask = tasks.read_mask(args.mask, args.inpaint, model.image_shape)
        repeats = 10 if args.repaint is None else args.repaint
        return tasks.inpaint(
            model, read(args.inpaint, model.image_shape), mask, repeats
        )
    if not args.init:
        return tasks.generate(model)
    if args.upscale is not None:
        if args.upscale < 2 or height % args.upscale or width % args.upscale:
            raise ConfigError(
                f"--upscale {args.upscale}: give 2 or more that divides the size "
                f"of the model's images, {height}x{width}"
            )
        small = height // args.upscale, width // args.upscale, channels
        by = inverse.downsampled(args.upscale)
        return tasks.restore(model, read(args.init, small, fit=False), by)
    if args.colourise:
        if channels != 3:
            raise ConfigError("--colourise needs a model of colour images")
        grey = read(args.init, (height, width, 1))
        return tasks.restore(model, grey, inverse.grey())
    given = read(args.init, model.image_shape)
    if args.denoise is not None:
        std = args.denoise
        if std is True:
            std = tasks.noise_of(given[: len(args.init)])
        print(f"taking off noise of standard deviation {std:.1f} (of 255)")
        return tasks.denoise(model, given, std)
    strength = STRENGTH if args.strength is None else args.strength
    return tasks.img2img(model, given, strength)


def _labels(args, model):
    """A class for each image; for each row where they are interpolated."""
    length = args.interpolate or 1
    labels = arguments.labels(args, model.num_classes, -(-args.num // length))
    return None if labels is None else np.repeat(labels, length)[: args.num]


def main(args: argparse.Namespace) -> None:
    """Draws samples and writes them."""
    with multihost.error_barrier():
        multihost.on_primary(lambda: pictures.check_out(args))
    wanted = order(args)
    with command.resumable():
        at_once = Path(args.out).suffix or args.gif or args.trajectory
        (pictures.draw if at_once else pictures.fill)(args, wanted)
    if jax.process_index() == 0:
        print(readable(f"wrote {args.num} images to {args.out}"))


if __name__ == "__main__":
    command.run(main, command.parse(add_arguments(command.parser(__doc__))))
