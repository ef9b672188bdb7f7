"""Functions of files and packages: "file.py:function", "package.module:function".

What a file does when it is loaded is done with the rights of who loads it.
"""

import hashlib
import importlib
import json
import os
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpm_jax.errors import ConfigError, reason
from ddpm_jax.files import atomic_write

# In the folder of a run: the files that its config names, as they were.
_FOLDER, _INDEX = "code", "files.json"
# The keys of sections that name a function, or hold a dictionary whose `name` does.
NAMING = ("name", "guidance", "density", "weighting", "convention")


def named(text: str) -> Callable:
    """Returns the function that "file.py:function" or "package.module:function" names.

    Raises:
      ConfigError: if there is no such file, package or function, or it fails.
    """
    place, _, name = text.rpartition(":")
    if place.endswith(".py"):
        return function_of(place, name)
    try:
        function = getattr(importlib.import_module(place), name, None)
    except Exception as error:  # whatever the package does
        raise ConfigError(f"{text}: {reason(error)}") from error
    if not callable(function):
        raise ConfigError(f"{text}: {place} does not define a function {name}()")
    return function


def function_of(path: str, name: str) -> Callable:
    """Returns a function that a Python file defines; the same file is loaded once.

    Raises:
      ConfigError: if there is no such file, it fails, or does not define the function.
    """
    if not Path(path).is_file():
        raise ConfigError(f"no file {path!r}")
    try:
        function = getattr(_loaded(path), name, None)
    except Exception as error:  # whatever the file does
        raise ConfigError(explained(path, error)) from error
    if not callable(function):
        raise ConfigError(f"{path} does not define a function {name}()")
    return function


def explained(path: str, error: Exception) -> str:
    """What a file says is wrong; where it fails without a word to its user, where."""
    if isinstance(error, (ValueError, SyntaxError)) and str(error):
        return f"{path}: {error}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == path
    ]
    place = f"{path}, line {lines[-1]}" if lines else path
    return f"{place}: {traceback.format_exception_only(error)[-1].strip()}"


def _loaded(path):
    """The module of a file; of the modules, for dataclasses look for themselves there.

    It is named by what is in it, so that a file that was changed is loaded anew.
    """
    code = Path(path).read_bytes()
    name = f"{Path(path).stem}_{_digest(code + os.path.abspath(path).encode())}"
    if name not in sys.modules:
        module = sys.modules[name] = types.ModuleType(name)
        module.__file__ = path
        try:
            exec(compile(code, path, "exec"), vars(module))
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def keep(workdir: Path, config: dict[str, Any]) -> None:
    """Copies the files whose functions a config names into the folder of a run."""
    paths = {place for _, _, place, _ in _references(config)}
    if not paths:
        return
    folder = workdir / _FOLDER
    index = _index(workdir)
    for path in paths:
        content = Path(path).read_bytes()
        index[path] = f"{Path(path).stem}-{_digest(content)}.py"
        with atomic_write(folder / index[path]) as partial:
            partial.write_bytes(content)
    with atomic_write(folder / _INDEX) as partial:
        partial.write_text(json.dumps(index, indent=2) + "\n")


def kept(workdir: str | Path, config: dict[str, Any]) -> dict[str, Any]:
    """Returns the config of a run with its own copies of files that changed or left."""
    index, config = _index(workdir), dict(config)
    for section, key, place, name in [*_references(config)]:
        if place in index and not _is_still(place, index[place]):
            copy, values = Path(workdir, _FOLDER, index[place]), config[section]
            instead = f"{copy}:{name}"
            if isinstance(values[key], dict):
                instead = {**values[key], "name": instead}
            config[section] = {**values, key: instead}
    return config


def changed(workdir: str | Path, config: dict[str, Any]) -> list[str]:
    """Returns, in words, which files are not those that a run was begun with."""
    index = _index(workdir)
    return [
        f"{place} has changed since; as it was it is in {Path(workdir, _FOLDER)}"
        for place in sorted({place for _, _, place, _ in _references(config)})
        if place in index and not _is_still(place, index[place])
    ]


def _references(config):
    """Yields (section, key, file, function) of each "file.py:function"."""
    for section, values in config.items():
        for key, text in values.items() if isinstance(values, dict) else ():
            if isinstance(text, dict):
                text = text.get("name")
            if key in NAMING and isinstance(text, str):
                place, _, name = text.rpartition(":")
                if place.endswith(".py"):
                    yield section, key, place, name


def _is_still(place, copy):
    """Whether a file is there, and as it was when it was copied."""
    return Path(place).is_file() and _digest(Path(place).read_bytes()) in copy


def _index(workdir):
    """The names of copies by the paths that configs give."""
    path = Path(workdir, _FOLDER, _INDEX)
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}): restore it") from error


def _digest(content):
    return hashlib.sha256(content).hexdigest()[:12]
