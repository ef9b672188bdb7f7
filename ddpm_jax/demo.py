"""Opens a page on this machine to play with a trained model.

  python -m ddpm_jax.demo --workdir runs/digits
  python -m ddpm_jax.demo --pretrained google/ddpm-cifar10-32 --port 8080

The page shows images while they are drawn, paints parts of pictures anew, and begins
with pictures of your own. Only browsers of this machine reach it; Ctrl-C ends it.
"""

import argparse

import jax

from ddpm_jax.cli import arguments, command
from ddpm_jax.errors import ConfigError
from ddpm_jax.sampling.server import Server
from ddpm_jax.sampling.streams import Streams


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds the arguments of this main."""
    arguments.add_model(parser)
    parser.add_argument(
        "--port",
        type=_port,
        default=8000,
        help="of this machine, 0 for any that is free (default: 8000)",
    )
    return parser


def main(args: argparse.Namespace) -> None:
    """Serves the page until it is interrupted."""
    if jax.process_count() > 1:
        raise ConfigError("the demo is one process")
    streams = Streams(arguments.trained(args))
    with Server(streams, args.port) as server:
        print(f"open {server.url} (Ctrl-C ends it)", flush=True)
        server.serve_forever()


def _port(text):
    if not (text.isascii() and text.isdigit()) or int(text) >= 2**16:
        raise argparse.ArgumentTypeError("must be a whole number from 0 to 65535")
    return int(text)


if __name__ == "__main__":
    command.run(main, command.parse(add_arguments(command.parser(__doc__))))
