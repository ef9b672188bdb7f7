"""What the mains share: processes, cached programs, and errors that people can read.

Exit codes, for what starts them: 0 done; 1 a mistake, said in one line; 2 wrong usage;
75 a process, device or bucket was lost, so start again; 130 and 143 stopped by Ctrl-C
and by SIGTERM, with all that was done saved.
"""

import argparse
import contextlib
import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax

from ddpm_jax import buckets, places
from ddpm_jax.buckets.base import AwayError
from ddpm_jax.compiled.topologies import LIBTPU_FLAGS, with_flags
from ddpm_jax.distributed import multihost
from ddpm_jax.errors import ConfigError, one_line
from ddpm_jax.experiment import config
from ddpm_jax.places import check_scheme
from ddpm_jax.training.meter import DivergedError
from ddpm_jax.version import VERSION


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
        help="the recipe, a Python file such as configs/digits.py; where there is none "
        "of this name, that which comes with the package",
    )
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        help="the run's folder, or its address in a bucket, as in gs://bucket/runs/a "
        "(default: runs/<config name>)",
    )
    parser.set_defaults(as_given=("workdir",))
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


def run(
    main: Callable[[argparse.Namespace], int | None],
    args: argparse.Namespace,
    before: Callable[[argparse.Namespace], None] = lambda args: None,
) -> NoReturn:
    """Runs a main and exits with its code, or with that of what went wrong.

    Args:
      main: what to run.
      args: its arguments.
      before: called with them first, before JAX looks for devices.
    """
    try:
        _find_places(args)
        collect_rarely()
        tell_compilers()
        before(args)
        _join(args)
        _find_devices()
        _cache_programs()
        multihost.assert_equal({"ddpm_jax": VERSION, **_shared(sys.argv[1:])})
        for path, later in config.undone(args.overrides):
            told = f"warning: --config.{path} has no effect: --config.{later} follows"
            multihost.on_primary(lambda told=told: print(told))
        if file := config.recipe(getattr(args, "config", None) or ""):
            multihost.on_primary(lambda: print(f"recipe: {file}"))
        code = main(args)
    except KeyboardInterrupt:
        code = _failed("interrupted", 130)
    except BrokenPipeError as error:
        unread = _is_unread("\n")  # what could not be written is gone: a flush passes
        said = ("", 141) if unread else (f"error: {one_line(error)}", _code_of(error))
        code = _failed(*said)
    except (ConfigError, OSError, DivergedError, multihost.RemoteError) as error:
        code = _failed(f"error: {one_line(error)}", _code_of(error))
    except jax.errors.JaxRuntimeError as error:
        code = _failed(*_of_device(error))
    except Exception:  # a defect: no process must wait for this one
        if jax.process_count() == 1:
            raise
        code = _failed(traceback.format_exc(), 1)
    _is_unread()  # what is done is done
    sys.exit(code)


def _is_unread(text: str = "") -> bool:
    """Prints, and returns whether nobody reads it, as where `| head` has its lines.

    That is no error: a program ends then, in silence, as by the signal SIGPIPE.
    """
    try:
        print(end=text, flush=True)
    except BrokenPipeError:  # so that nothing is said of the last flush, at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _code_of(error: Exception) -> int:
    """Returns the code to exit with; a bucket that is away may be there later."""
    is_away = isinstance(error, AwayError) or isinstance(error.__cause__, AwayError)
    return multihost.EXIT_RETRY if is_away else 1


def collect_rarely() -> None:
    """Lets Python look for circles of garbage after 100,000 new objects, not 700.

    A traced network is a million objects that stay; to look through them time and again
    took a fifth of the time to the first step of the CIFAR-10 recipe. What has been
    imported stays, too.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


# What of the arguments is written; what else lies in a bucket is read.
_WRITTEN = ("out", "gif", "trajectory")
# What of a config may lie in a bucket.
_IN_BUCKETS = ("data.path", "data.data_dir", "init_from")


def _find_places(args) -> None:
    """Puts places of this machine for addresses of buckets, once they are brought.

    Raises:
      OSError: for the address of any other machine, which would become a folder of such
        a name; and if one cannot be read.
    """
    for text in args.overrides:
        key, _, value = text.partition("=")
        check_scheme(value)
        if buckets.is_address(value) and key not in _IN_BUCKETS:
            raise OSError(f"--config.{key}={value}: give a path of this machine")
    for name, value in vars(args).items():

        def found(text, name=name):
            if not isinstance(text, str):
                return text
            check_scheme(text)
            if name in getattr(args, "as_given", ()) or not buckets.is_address(text):
                return text
            take = places.place if name in _WRITTEN else places.bring
            return str(take(text))

        is_list = isinstance(value, list) and name != "overrides"
        setattr(args, name, [*map(found, value)] if is_list else found(value))


def _find_devices() -> None:
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS")
        said = one_line(error).partition(" (set JAX_PLATFORMS")[0]
        text = (
            f"JAX finds no device{f' with JAX_PLATFORMS={asked}' if asked else ''}"
            f"{f': {said}' if said else ''}; install '.[cuda]' or '.[tpu]' where there "
            "is one, or give JAX_PLATFORMS=cpu"
        )
        if jax.distributed.is_initialized():  # nothing else can be asked of JAX now
            print(f"error: {text}", file=sys.stderr, flush=True)
            os._exit(1)
        raise ConfigError(text) from error


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Says to who stops what is done within that it goes on later."""
    try:
        yield
    except KeyboardInterrupt:
        print("the same command goes on from what is drawn so far", file=sys.stderr)
        raise


def _join(args) -> None:
    try:
        multihost.initialize(args.coordinator, args.num_processes, args.process_id)
    except (ValueError, LookupError, RuntimeError) as error:
        raise ConfigError(f"cannot join the processes: {one_line(error)}") from error


def _shared(argv: list[str]) -> dict[str, str]:
    """The arguments that are to be the same on all processes, by name."""
    given, name = {}, "arguments"
    for text in argv:
        if text.startswith("--"):
            name, _, text = text.partition("=")
            given[name] = ""
        given[name] = f"{given.get(name, '')} {text}".strip()
    given.pop("--process_id", None)
    return given


def _failed(text: str, code: int) -> int:
    """Says what went wrong; one of several processes ends here and now."""
    try:
        if text:
            print(places.readable(text), file=sys.stderr)
    finally:  # also where nobody reads it any more
        if jax.distributed.is_initialized() and jax.process_count() > 1:
            multihost.exit_now(code)
    return code


def _of_device(error: jax.errors.JaxRuntimeError) -> tuple[str, int]:
    """What to say of an error of a device, and the code to exit with."""
    status = str(error).partition(":")[0]
    if status == "RESOURCE_EXHAUSTED":
        return (
            "error: the device has too little memory: make batches smaller (training: "
            "data.batch_size, or train.num_microbatches larger, or network.remat=True; "
            f"--plan tells what they take); {one_line(error)[:200]}",
            1,
        )
    if jax.process_count() > 1:
        return (
            "error: another process or a device was lost: start all of them again; "
            f"{one_line(error)[:200]}",
            multihost.EXIT_RETRY,
        )
    said = traceback.format_exc()
    if status not in _OF_MACHINES:
        return said, 1
    said += "error: a device failed: start the same command again"
    return said, multihost.EXIT_RETRY


# What is not the program's fault, among the states that XLA's errors begin with.
_OF_MACHINES = ("INTERNAL", "UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "DATA_LOSS")


# XLA for CPUs has convolutions of its own, which are faster than YNNPACK's.
_XLA_FLAGS = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"


def tell_compilers() -> None:
    """Tells XLA's compilers what suits us, where the environment says nothing of it.

    They read it when JAX looks for devices: that of TPUs is not to unroll what takes
    long to compile, that of CPUs to keep its convolutions.
    """
    for name, ours in (("LIBTPU_INIT_ARGS", LIBTPU_FLAGS), ("XLA_FLAGS", _XLA_FLAGS)):
        os.environ[name] = with_flags(os.environ.get(name, ""), ours)


def _cache_programs() -> None:
    """Keeps compiled programs between runs, unless the environment says where."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(places.cache_dir()))
