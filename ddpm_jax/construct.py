"""Calling constructors with the sections of a config, and saying what does not fit.

A section is the keyword arguments of one constructor, chosen by `name` from a module:
what the module defines with the right return type is what there is to choose from.
"""

import inspect
import types
from collections.abc import Callable

from ddpm_jax.config import ConfigError
from ddpm_jax.naming import unknown

# What a config may hold where a constructor's argument is annotated so.
_PLAIN = {int: int, float: (int, float), bool: bool, str: str}


def make(config, section: str, module: types.ModuleType, kind, *given, wanted=None):
    """Calls the constructor that a section names.

    Args:
      config: the config.
      section: the section, whose `name` chooses and whose other keys are arguments.
      module: where the constructors are.
      kind: what they return, as annotated.
      *given: their first arguments, which a config does not hold.
      wanted: arguments by name from elsewhere, for those that take them.

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
    for key, value in (wanted or {}).items():
        if key in inspect.signature(known[name]).parameters:
            settings[key] = value
    return call({section: settings}, section, known[name], *given)


def call(config, section: str, constructor: Callable, *given):
    """Calls a constructor with a section, whose keys must be its arguments.

    Raises:
      ConfigError: for an unknown key, and for what the constructor refuses.
    """
    settings = config.get(section, {})
    parameters = inspect.signature(constructor).parameters
    accepted = list(parameters)[len(given) :]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in settings:
            if key not in accepted:
                raise ConfigError(unknown(f"config.{section} key", key, accepted))
    for key, value in settings.items():
        wanted = parameters[key].annotation if key in parameters else None
        if not isinstance(value, _PLAIN.get(wanted, object)) or (
            isinstance(value, bool) and wanted in (int, float)
        ):
            raise ConfigError(
                f"config.{section}.{key} must be {wanted.__name__}, got {value!r}"
            )
    return attempt(section, constructor, *given, **settings)


def attempt(section: str, function: Callable, *args, **kwargs):
    """Calls a function; what it refuses is the fault of a section.

    Raises:
      ConfigError: one line, beginning with the section.
    """
    try:
        return function(*args, **kwargs)
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(f"config.{section}: {error}") from error
