"""Writes the whole sampler of a trained model as one file that needs JAX alone.

  python -m ddpm_jax.export --workdir runs/digits --sampler ddim --steps 50 \\
    --out sampler.stablehlo

Beside it, as sampler.json, lies what it is and the lines of Python that draw with it.
What is not said is as the model's config says.
"""

import argparse
import dataclasses
from pathlib import Path

import jax

from ddpm_jax.cli import arguments, command
from ddpm_jax.errors import ConfigError
from ddpm_jax.places import readable
from ddpm_jax.sampling import portable


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the arguments of this main."""
    arguments.add_model(parser)
    arguments.add_sampler(parser)
    add = parser.add_argument
    add("--out", default="sampler.stablehlo", help="default: sampler.stablehlo")
    add(
        "--platforms",
        nargs="+",
        choices=portable.PLATFORMS,
        default=portable.PLATFORMS,
        help="that it is to run on (default: all)",
    )
    add(
        "--batch_size",
        type=int,
        metavar="N",
        help="how many images it draws at a time; on one platform bit for bit what is "
        "drawn here then (default: any number, with other rounding)",
    )
    help_ = "the parameters in a .safetensors file beside it, not within"
    add("--apart", action="store_true", help=help_)
    return parser


def main(args: argparse.Namespace) -> None:
    """Exports as the command line says."""
    if jax.process_count() > 1:
        raise ConfigError("a sampler is exported by one process")
    out = Path(args.out)
    if out.suffix != ".stablehlo":
        raise ConfigError(f"--out {out}: give a file whose name ends in .stablehlo")
    if args.batch_size is not None and args.batch_size < 1:
        raise ConfigError("--batch_size must be at least 1")
    trained = arguments.trained(args)
    model = trained.model(arguments.sampling(args))
    model = dataclasses.replace(model, params=trained.load_params(model))
    origin = {k: v for k, v in trained.origin.items() if k != "workdir"}  # of here
    portable.write(out, model, args.apart, args.platforms, args.batch_size, origin)
    size = out.stat().st_size / 1e6
    said = f"wrote {out}, {size:.1f} MB; {out.with_suffix('.json')} says how to use it"
    print(readable(said))


if __name__ == "__main__":
    command.run(main, command.parse(add_arguments(command.parser(__doc__))))
