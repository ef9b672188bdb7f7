"""Makes the statistics of real images that samples are compared with.

  python -m ddpm_jax.reference --config configs/cifar.py --out cifar_train.npz
  python -m ddpm_jax.reference --images my_images --out mine.npz

The file says what it is of and how it was made, and other tools read its mu and sigma.
`python -m ddpm_jax.evaluate` makes and keeps those of a model's own data by itself.
"""

import argparse
from pathlib import Path

import jax

from ddpm_jax.cli import arguments, command
from ddpm_jax.errors import ConfigError
from ddpm_jax.evaluation import image_sets, references
from ddpm_jax.experiment.config import read_config
from ddpm_jax.experiment.dataset import make_dataset, open_images
from ddpm_jax.metrics import statistics
from ddpm_jax.places import readable


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the arguments of this main."""
    add = parser.add_argument
    add("--config", metavar="FILE.py", help="the recipe whose data they are of")
    add("--split", help="of these data (default: train)")
    add("--images", metavar="PATH", help="a folder of images of one size, or an .npz")
    arguments.add_features(parser)
    add("--num", type=int, help="how many images, evenly spread (default: all)")
    add(
        "--num_features",
        type=int,
        default=references.NUM_KEPT,
        help="features kept for kid, pr and dc (default: 50000)",
    )
    arguments.add_batch_size(parser)
    add("--out", required=True, metavar="FILE.npz", help="where they are written")
    return parser


def main(args: argparse.Namespace) -> None:
    """Makes and writes them."""
    out = Path(args.out)
    if out.suffix != ".npz":
        raise ConfigError(f"--out {out}: give the name of an .npz")
    if (args.config is None) == (args.images is None):
        raise ConfigError("give --config FILE.py or --images PATH, one of them")
    if args.batch_size < 1 or args.num_features < 0 or (args.num or 2) < 2:
        raise ConfigError(
            "--num must be at least 2, --batch_size 1 and --num_features 0"
        )
    if args.images is not None and args.split is not None:
        raise ConfigError("--split is of the data of --config, not of --images")
    dataset = None
    if args.config is not None:
        dataset = make_dataset(read_config(args.config, args.overrides))
        subject = references.from_split(dataset, args.split or "train", args.num)
    else:
        found = open_images(args.images)
        subject = image_sets.from_source("images", found, args.num)
    extractor = arguments.extractor(args, args.features or "inception", dataset)
    made = references.statistics_of(
        subject, extractor, args.batch_size, args.num_features
    )
    if jax.process_index() == 0:
        statistics.save(out, made)
        name = extractor.protocol["name"]
        print(readable(f"wrote {out}: {made.num} images, features of {name}"))


if __name__ == "__main__":
    command.run(main, command.parse(add_arguments(command.parser(__doc__))))
