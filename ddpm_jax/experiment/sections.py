"""Calling constructors with the sections of a config, and saying what does not fit.

A section is the keyword arguments of one constructor, which `registry` finds by `name`.
"""

import collections.abc
import inspect
import math
import types
import typing
from collections.abc import Callable

from ddpm_jax.errors import ConfigError, reason, unknown

# What a constructor may raise over a value that it was given.
REFUSALS = (ValueError, TypeError, ArithmeticError, LookupError, OSError)


def call(settings, section: str, constructor: Callable, *given, also=(), **fixed):
    """Calls a constructor with a section, whose keys must be its arguments.

    Args:
      settings: the section.
      section: its name.
      constructor: what to call.
      *given: first arguments that do not come from the section.
      also: keys of the section that are for something else, for the hint.
      **fixed: further arguments that do not come from the section.

    Raises:
      ConfigError: for an unknown key or a value of another type, naming the key, and
        for what the constructor refuses.
    """
    check(settings, section, constructor, len(given), {*also}, {*fixed})
    return attempt(section, constructor, *given, **settings, **fixed)


def check(settings, section: str, constructor: Callable, first=0, also=(), fixed=()):
    """Checks that the keys of a section are arguments of a constructor, of their types.

    Args:
      settings: the section.
      section: its name.
      constructor: what it is for.
      first: how many of its first arguments do not come from the section.
      also: keys of the section that are for something else, for the hint.
      fixed: further arguments that do not come from the section.

    Raises:
      ConfigError: naming the key.
    """
    parameters = signature(constructor).parameters
    is_open = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    accepted = {*list(parameters)[first:], *also} - {*fixed}
    for key, value in settings.items():
        if key in accepted:
            wanted = parameters[key].annotation
            if not _fits(value, wanted):
                raise ConfigError(
                    f"config.{section}.{key} must be {_spoken(wanted)}, got {value!r}"
                )
        elif not is_open:
            raise ConfigError(unknown(f"config.{section} key", key, accepted))


def signature(constructor: Callable) -> inspect.Signature:
    """Returns the signature of a constructor, its annotations no strings."""
    try:
        return inspect.signature(constructor, eval_str=True)
    except (NameError, AttributeError, TypeError, SyntaxError):  # of an annotation
        return inspect.signature(constructor)


def attempt(section: str, function: Callable, *args, **kwargs):
    """Calls a function; what it refuses is the fault of a section.

    Raises:
      ConfigError: one line, beginning with the section.
    """
    try:
        return function(*args, **kwargs)
    except REFUSALS as error:
        raise ConfigError(f"config.{section}: {reason(error)}") from error


def _fits(value, wanted) -> bool:
    """Whether a plain value is of an annotated type; any int is a float too."""
    if isinstance(wanted, types.UnionType):
        return any(_fits(value, each) for each in typing.get_args(wanted))
    if typing.get_origin(wanted) is collections.abc.Sequence:
        (each,) = typing.get_args(wanted)
        return isinstance(value, (list, tuple)) and all(_fits(v, each) for v in value)
    if wanted is inspect.Parameter.empty or not isinstance(wanted, type):
        return True  # checked by the constructor
    if isinstance(value, bool):
        return wanted is bool
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return isinstance(value, (int, float) if wanted is float else wanted)


def _spoken(wanted) -> str:
    if isinstance(wanted, types.UnionType):
        return " or ".join(_spoken(each) for each in typing.get_args(wanted))
    if typing.get_origin(wanted) is collections.abc.Sequence:
        return f"a list, as in {'a,b' if typing.get_args(wanted) == (str,) else '1,2'}"
    words = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "True or False",
        types.NoneType: "None",
        collections.abc.Callable: "a function",
    }
    return words.get(wanted, str(wanted))
