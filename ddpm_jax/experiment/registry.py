"""The parts that a config names: ours, and functions of files and packages."""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax.data import SOURCES
from ddpm_jax.data.base import Source
from ddpm_jax.diffusion.losses import LOSSES
from ddpm_jax.diffusion.samplers import SAMPLERS, Sampler
from ddpm_jax.diffusion.schedules import SCHEDULES, Schedule
from ddpm_jax.diffusion.timesteps import TIMESTEPS
from ddpm_jax.errors import ConfigError, unknown
from ddpm_jax.experiment import code
from ddpm_jax.experiment.sections import call, check
from ddpm_jax.networks import NETWORKS, Network


class Family(NamedTuple):
    """What there is to choose from in a section.

    Attributes:
      known: our constructors by name.
      kind: what they return.
    """

    known: Mapping[str, Callable]
    kind: type


FAMILIES = {
    "schedule": Family(SCHEDULES, Schedule),
    "network": Family(NETWORKS, Network),
    "loss": Family(LOSSES, Callable),
    "sampler": Family(SAMPLERS, Sampler),
    "timesteps": Family(TIMESTEPS, np.ndarray),
    "data": Family(SOURCES, Source),
}


def find(place: str, name: str, known: Mapping[str, Any]) -> Any:
    """Returns what a config or a flag names.

    Args:
      place: where it does, for the message: "config.network".
      name: one of `known`, "file.py:function", or "package.module:function".
      known: what we have by name.

    Raises:
      ConfigError: for a name that is none of these.
    """
    if ":" in str(name):
        try:
            return code.named(name)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from error
    if name not in known:
        raise ConfigError(f"{place}: {unknown('name', str(name), known)}")
    return known[name]


def choose(config: dict[str, Any], section: str) -> Callable:
    """Returns the constructor that a section names.

    Raises:
      ConfigError: see `find`.
    """
    name = config.get(section, {}).get("name")
    return find(f"config.{section}", name, FAMILIES[section].known)


def make(config: dict[str, Any], section: str, *given):
    """Calls the constructor that a section names, with the rest of the section.

    Args:
      config: the config.
      section: the section.
      *given: its first arguments, which a config does not hold.

    Raises:
      ConfigError: for an unknown name or key, for what the constructor refuses, and for
        one that returns something else.
    """
    constructor = choose(config, section)
    settings = {k: v for k, v in config[section].items() if k != "name"}
    made = call(settings, section, constructor, *given)
    kind = FAMILIES[section].kind
    if not isinstance(made, kind):
        raise ConfigError(
            f"config.{section}: {config[section]['name']} must return a "
            f"{kind.__name__}, and returned a {type(made).__name__}"
        )
    return made


def same(make: Callable, config: dict[str, Any]):
    """Returns make(config), and for an equal config what it returned before.

    So equal configs have the same functions, and what JAX traced and compiled of them
    is found again. Not where files of others are named, which may have changed.
    """
    if ":" in json.dumps(config, separators=(",", "")):
        return make(config)
    return _same(make, json.dumps(config), jax.config.jax_enable_x64)


@functools.lru_cache(maxsize=64)
def _same(make, text, precise):
    return make(json.loads(text))


def bound(
    config: dict[str, Any], section: str, key: str, known, first: int = 0
) -> Callable | None:
    """Returns the function that a key of a section names, with its settings.

    The value is a name, or a dictionary of `name` and further arguments, as in
    {"name": "min_snr", "gamma": 5}.

    Args:
      config: the config.
      section: the section.
      key: the key, which need not be there: then there is no function.
      known: what we have by name.
      first: how many of the function's first arguments are no settings.

    Raises:
      ConfigError: see `find`; and for a setting that the function does not have.
    """
    value = config.get(section, {}).get(key)
    if value is None:
        return None
    settings = dict(value) if isinstance(value, dict) else {"name": value}
    place = f"{section}.{key}"
    function = find(f"config.{place}", str(settings.pop("name", None)), known)
    check(settings, place, function, first)
    return functools.partial(function, **settings)


def resolved(config: dict[str, Any], section: str, key: str, known) -> dict[str, Any]:
    """Returns a section of which one key names a function, with that function.

    Names of ours stay, for what the section is given to knows them.

    Raises:
      ConfigError: see `find`.
    """
    settings = config.get(section, {})
    if ":" not in str(settings.get(key)):
        return settings
    return {**settings, key: find(f"config.{section}.{key}", settings[key], known)}
