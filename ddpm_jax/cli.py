"""What the mains share: processes, cached programs, and errors that people can read."""

import argparse
import os
import sys
from collections.abc import Callable

import jax

from ddpm_jax import cache
from ddpm_jax.config import ConfigError
from ddpm_jax.training import parallel


def parser(description: str, **kwargs) -> argparse.ArgumentParser:
    """Makes an argument parser with the arguments of every main."""
    made = argparse.ArgumentParser(
        allow_abbrev=False,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **kwargs,
    )
    made.set_defaults(overrides=[])
    group = made.add_argument_group("several processes (all three, or none)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    group.add_argument("--num_processes", type=int, metavar="N")
    group.add_argument("--process_id", type=int, metavar="I")
    return made


def parse_config(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Adds --config and --workdir, and parses them with overrides.

    Returns:
      The arguments; see `parse`.
    """
    parser.add_argument(
        "--config",
        required=True,
        metavar="FILE.py[:VARIANT]",
        help="the recipe, a Python file such as configs/digits.py",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="the run's folder (default: runs/<config name>)",
    )
    return parse(parser)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Adds overrides --config.section.key=value, and parses.

    Returns:
      The arguments, with `overrides`, such as ["optimizer.learning_rate=1e-4"].
    """
    parser.add_argument(
        "--config.SECTION.KEY",
        dest="_",
        metavar="VALUE",
        help="change a value of the config, as in --config.data.batch_size=64",
    )
    args, rest = parser.parse_known_args(_joined(sys.argv[1:]))
    for text in rest:
        if not text.startswith(_OVERRIDE):
            parser.error(f"unrecognized argument: {text}")
    args.overrides = [text.removeprefix(_OVERRIDE) for text in rest]
    return args


_OVERRIDE = "--config."


def _joined(argv):
    """--config.key VALUE, written as two arguments, becomes --config.key=VALUE."""
    joined = []
    for text in argv:
        is_open = joined and joined[-1].startswith(_OVERRIDE) and "=" not in joined[-1]
        if is_open and not text.startswith("--"):
            joined[-1] += f"={text}"
        else:
            joined.append(text)
    return joined


def run(main: Callable[[argparse.Namespace], int | None], args) -> None:
    """Runs a main and exits: 0 for success, 1 and one line for a user's mistake."""
    try:
        _join(args)
        _cache_programs()
        code = main(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except (ConfigError, OSError) as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        code = 1
    sys.exit(code)


def _join(args) -> None:
    try:
        parallel.initialize(args.coordinator, args.num_processes, args.process_id)
    except (ValueError, LookupError, RuntimeError) as error:
        raise ConfigError(f"cannot join the processes: {error}") from error


def _cache_programs() -> None:
    """Keeps compiled programs between runs, unless the environment says where."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache.folder()))


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
