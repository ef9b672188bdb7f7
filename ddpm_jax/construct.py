"""Calling constructors with the sections of a config, and saying what does not fit.

A section is the keyword arguments of one constructor, chosen by `name` from a module:
what the module defines with the right return type is what there is to choose from.
"""

import collections.abc
import inspect
import math
import types
import typing
from collections.abc import Callable

from ddpm_jax.config import ConfigError
from ddpm_jax.naming import unknown

# What a constructor may raise over a value that it was given.
REFUSALS = (ValueError, TypeError, ArithmeticError, LookupError, OSError)


def make(config, section: str, module: types.ModuleType, kind, *given, **wanted):
    """Calls the constructor that a section names.

    Args:
      config: the config.
      section: the section, whose `name` chooses and whose other keys are arguments.
      module: where the constructors are.
      kind: what they return, as annotated.
      *given: their first arguments, which a config does not hold.
      **wanted: arguments from elsewhere, for those that take them.

    Raises:
      ConfigError: for an unknown name or key, and for what the constructor refuses.
    """
    settings = dict(config.get(section, {}))
    name = settings.pop("name", None)
    known = {
        name: value
        for name, value in vars(module).items()
        if getattr(value, "__annotations__", {}).get("return") is kind
        and not name.startswith("_")
    }
    if name not in known:
        raise ConfigError(f"config.{section}: {unknown('name', str(name), known)}")
    parameters = inspect.signature(known[name]).parameters
    taken = {key: value for key, value in wanted.items() if key in parameters}
    return call({section: settings}, section, known[name], *given, **taken)


def call(config, section: str, constructor: Callable, *given, **fixed):
    """Calls a constructor with a section, whose keys must be its arguments.

    Raises:
      ConfigError: for an unknown key, and for what the constructor refuses.
    """
    settings = config.get(section, {})
    check(settings, section, constructor, len(given), fixed)
    return attempt(section, constructor, *given, **settings, **fixed)


def check(settings, section: str, constructor: Callable, num_given: int, fixed=()):
    """Checks the keys of a section, and the types of their values.

    Args:
      settings: the section.
      section: its name.
      constructor: what it is for.
      num_given: how many first arguments do not come from the section.
      fixed: names of further ones that do not.

    Raises:
      ConfigError: naming the key.
    """
    parameters = inspect.signature(constructor).parameters
    accepted = [name for name in list(parameters)[num_given:] if name not in fixed]
    is_open = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in settings.items():
        if key in accepted:
            wanted = parameters[key].annotation
            if not _fits(value, wanted):
                raise ConfigError(
                    f"config.{section}.{key} must be {_spoken(wanted)}, got {value!r}"
                )
        elif not is_open:
            raise ConfigError(unknown(f"config.{section} key", key, accepted))


def attempt(section: str, function: Callable, *args, **kwargs):
    """Calls a function; what it refuses is the fault of a section.

    Raises:
      ConfigError: one line, beginning with the section.
    """
    try:
        return function(*args, **kwargs)
    except REFUSALS as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"config.{section}: {reason}") from error


def _fits(value, wanted) -> bool:
    """Whether a plain value is of an annotated type; any int is a float too."""
    if isinstance(wanted, types.UnionType):
        return any(_fits(value, each) for each in typing.get_args(wanted))
    if typing.get_origin(wanted) is collections.abc.Sequence:
        (each,) = typing.get_args(wanted)
        return isinstance(value, (list, tuple)) and all(_fits(v, each) for v in value)
    if wanted is float:
        wanted = (int, float)
    is_bool = isinstance(value, bool) and wanted is not bool
    if not isinstance(wanted, (type, tuple)):
        return True  # not a plain type: the constructor's own affair
    if wanted is inspect.Parameter.empty:
        return True
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    return (
        isinstance(value, wanted)
        and not is_bool
        and (is_number or not isinstance(value, float))
    )


def _spoken(wanted) -> str:
    return getattr(wanted, "__name__", str(wanted).replace("collections.abc.", ""))
