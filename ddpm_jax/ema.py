"""Reconstructs averages of a run's parameters that were not kept while it trained.

  python -m ddpm_jax.ema --workdir runs/cifar --sigma_rel 0.1 --out runs/cifar_0.1

The run must have stored snapshots of one or, better, two averages by power functions:

  --config.train.snapshot_every=5000 \\
  --config.train.averages.narrow="{'name': 'power', 'sigma_rel': 0.05}" \\
  --config.train.averages.wide="{'name': 'power', 'sigma_rel': 0.1}"

What is written is a run's folder, for --workdir of the other commands. To look for the
best width first, ddpm_jax.evaluate --sweep weights:0.05,0.1,0.15 needs no such folder.
"""

import argparse
from pathlib import Path

import jax

from ddpm_jax.cli import command
from ddpm_jax.errors import ConfigError
from ddpm_jax.experiment import config, load, run
from ddpm_jax.places import readable, send_folder


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the arguments of this main."""
    add = parser.add_argument
    add("--workdir", required=True, metavar="DIR", help="the folder of a run")
    add(
        "--sigma_rel",
        required=True,
        type=float,
        help="width of the average as a share of the training, such as 0.1",
    )
    add("--step", type=int, help="after which (default: that of the last snapshot)")
    add("--out", required=True, metavar="DIR", help="a new folder")
    return parser


def main(args: argparse.Namespace) -> None:
    """Reconstructs as the command line says."""
    if jax.process_count() > 1:
        raise ConfigError("an average is reconstructed by one process")
    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: it is there already; give a new folder")
    trained = load.from_run(args.workdir, args.sigma_rel, args.step)
    changed = config.override(trained.config, args.overrides)
    trained = load.read_otherwise(trained, changed)
    model = trained.model()
    run.write(out, model.config, trained.load_params(model))
    send_folder(out)
    step = trained.origin["step"]
    print(
        readable(
            f"wrote {out}, the average of sigma_rel {args.sigma_rel} at step {step}"
        )
    )


if __name__ == "__main__":
    command.run(main, command.parse(add_arguments(command.parser(__doc__))))
