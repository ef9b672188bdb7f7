"""Configs: plain dictionaries, from a Python file, overridden on the command line.

A config file defines `get_config()`, or `get_config(variant)` for a family of recipes,
chosen as `configs/lsun.py:church`. Its sections are the keyword arguments of one
constructor each; `experiment.build` reads them, nothing below it does.
"""

import ast
import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ddpm_jax.errors import ConfigError, unknown
from ddpm_jax.experiment.code import explained, function_of

SECTIONS = (
    "schedule",
    "network",
    "loss",
    "optimizer",
    "denoiser",
    "sampler",
    "timesteps",
    "data",
    "train",
    "evaluation",
)
VALUES = ("image_shape", "seed", "init_from")
# Lists that may have one item, which can then be given as it is.
LISTS = (
    ("network", "channel_mults"),
    ("network", "attention_resolutions"),
    ("timesteps", "times"),
)
# The recipes that come with the package: within it where it was built, else beside it.
PACKAGE = Path(__file__).parents[1]
RECIPES = (PACKAGE / "configs", PACKAGE.parent / "configs")
# Lists of names, which can be given as in a,b.
NAMES = (("train", "trackers"),)


def read_config(spec: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Loads a config file and applies overrides.

    Args:
      spec: the path of a Python file, with `:variant` behind it where it asks for one.
        Where there is no file `digits.py` or `configs/digits.py`, the recipe of this
        name that comes with the package is read.
      overrides: such as "optimizer.learning_rate=1e-4", or a section anew, such as
        "sampler={'name': 'ddpm'}"; values are Python literals, anything else is text.

    Raises:
      ConfigError: if there is no such file or variant, or an override names no section.
    """
    path, _, variant = spec.partition(":")
    file = recipe(spec)
    if file is None and _may_be_recipe(path):
        raise ConfigError(f"no file {path!r} here; {_unknown(path)}")
    file = file or path
    get_config = function_of(file, "get_config")
    if bool(variant) != bool(inspect.signature(get_config).parameters):
        hint = f"takes no variant, but {variant!r} was given"
        if not variant:
            hint = f"is a family of recipes: choose one, as in {path}:NAME"
        raise ConfigError(f"{path} {hint}")
    try:
        config = get_config(variant) if variant else get_config()
    except Exception as error:  # whatever the file does
        raise ConfigError(explained(file, error)) from error
    return override(config, overrides)


def recipe(spec: str) -> str | None:
    """Returns the file of the package that a spec means; None where it means its own.

    Args:
      spec: see `read_config`.
    """
    path = spec.partition(":")[0]
    if not _may_be_recipe(path):
        return None
    files = (folder / Path(path).name for folder in RECIPES)
    return next((str(file) for file in files if file.is_file()), None)


def _may_be_recipe(path):
    """Whether there is no such file, and the name is as those of recipes are."""
    folder = Path(path).parent
    return folder in (Path(), Path("configs")) and not Path(path).exists()


def _unknown(path):
    names = {file.name for folder in RECIPES for file in folder.glob("*.py")}
    return unknown("recipe of ddpm_jax", Path(path).name, names)


def override(config: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Returns the config with some values changed, as plain JSON values.

    Raises:
      ConfigError: if an override is not of the form section.key=value.
    """
    config = _plain(config)
    for text in overrides:
        path, equals, value = text.partition("=")
        section, dot, key = path.partition(".")
        if not equals:
            raise ConfigError(f"--config.{path} needs a value: --config.{path}=VALUE")
        if section not in (SECTIONS if dot else (*SECTIONS, *VALUES)):
            raise ConfigError(unknown("config key", path, keys(config)))
        if dot:
            *above, last = key.split(".")
            _within(config.setdefault(section, {}), above, path)[last] = literal(value)
        else:
            config[section] = literal(value)
    _check(config)
    for section, key in LISTS:
        if type(config.get(section, {}).get(key)) is int:
            config[section][key] = [config[section][key]]
    for section, key in NAMES:
        if isinstance(names := config.get(section, {}).get(key), str):
            config[section][key] = [name for name in names.split(",") if name]
    return config


def _within(place, names, path):
    """The dictionary under these names; a part that is but named becomes one."""
    for name in names:
        inner = place.get(name)
        if not isinstance(inner, dict | str | None):
            raise ConfigError(f"config.{path}: {name} is {inner!r}, and has no keys")
        inner = {"name": inner} if isinstance(inner, str) else dict(inner or {})
        place[name] = inner
        place = inner
    return place


def undone(overrides: Iterable[str]) -> list[tuple[str, str]]:
    """Returns the paths of overrides that a later one undoes, each with the later's."""
    paths = [text.partition("=")[0] for text in overrides]
    return [
        (path, later)
        for i, path in enumerate(paths)
        for later in paths[i + 1 :]
        if f"{path}.".startswith(f"{later}.")
    ]


def keys(config: dict[str, Any]) -> list[str]:
    """Returns all keys of a config, as in "optimizer.learning_rate"."""
    return list(flat(config))


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple]:
    """Returns what differs between two configs, as {key: (old value, new value)}."""
    old, new = flat(old), flat(new)
    return {
        key: (old.get(key), new.get(key))
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    }


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of a config by their keys, as "optimizer.learning_rate"."""
    return {
        f"{name}.{key}" if isinstance(value, dict) else name: item
        for name, value in config.items()
        for key, item in (value.items() if isinstance(value, dict) else [("", value)])
    }


def without_places(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config without what says where something lies on this machine."""
    kept = {key: value for key, value in config.items() if key != "init_from"}
    if "data" in kept:
        places = ("path", "data_dir", "cache")
        kept["data"] = {k: v for k, v in kept["data"].items() if k not in places}
    return kept


def _plain(config):
    try:
        config = json.loads(json.dumps(config, default=lambda value: value.tolist()))
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"a config holds plain values only: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError("get_config() must return a dict of sections")
    return config


def _check(config):
    for name, value in config.items():
        if name not in (*SECTIONS, *VALUES):
            raise ConfigError(unknown("config section", name, (*SECTIONS, *VALUES)))
        if name in SECTIONS and not isinstance(value, dict):
            raise ConfigError(f"config.{name} must be a dict, got {value!r}")
    shape = config.get("image_shape")
    if not (
        isinstance(shape, list)
        and len(shape) == 3
        and all(type(side) is int and side > 0 for side in shape)
    ):
        raise ConfigError(
            f"config.image_shape must be (height, width, channels), got {shape!r}"
        )
    seed = config.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ConfigError(f"config.seed must be a whole number from 0, got {seed!r}")
    if not isinstance(config.get("init_from"), (str, type(None))):
        raise ConfigError("config.init_from must be the path of a trained model")


def literal(text: str) -> Any:
    """Reads a value of the command line: a Python literal, or else the text itself."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    return list(value) if isinstance(value, tuple) else value
