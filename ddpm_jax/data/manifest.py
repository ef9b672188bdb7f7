"""Which files of a folder were read and found whole, remembered between starts.

A file counts as known while its stamp stays, its size and the time of its last change;
a start then asks the file system for these, and reads only what is new.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import PIL

from ddpm_jax import places
from ddpm_jax.data.base import in_parallel
from ddpm_jax.files import atomic_write, file_lock

# A file's size in bytes, and what changes with it: the nanoseconds of its last change,
# or its version in a bucket.
Stamp = tuple[int, int | str]


def check(
    root: str | os.PathLike,
    names: Sequence[str],
    stamps: Sequence[Stamp],
    fault_of: Callable[[str], str | None],
) -> list[str | None]:
    """Says what is wrong with each file of a folder, None where nothing is.

    Processes of one machine read each file once between them. What is known is kept in
    `ddpm_jax.places.cache_dir()`, also when the check is interrupted.

    Args:
        root: the folder, or its address.
        names: its files, relative to it.
        stamps: theirs.
        fault_of: reads the file of a name, and says what is wrong with it; it raises
            OSError where it cannot tell, which is raised here and not remembered.
    """
    found, failed = {}, []

    def read(index):
        try:
            fault = fault_of(names[index])
        except OSError as error:
            failed.append(error)
            raise
        found[names[index]] = (*stamps[index], fault)

    def unknown():
        return [
            index
            for index, (name, stamp) in enumerate(zip(names, stamps, strict=True))
            if found.get(name, ())[:2] != stamp
        ]

    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    place = places.cache_dir() / "folders" / name
    path = place / "manifest.json"
    try:
        found |= _read(path)
        if unknown():
            place.mkdir(parents=True, exist_ok=True)
            with file_lock(place):  # another process may be at it
                found |= _read(path)
                try:
                    in_parallel(read, unknown(), "checking images")
                finally:
                    present = found.keys() & {*names}
                    _write(path, root, {name: found[name] for name in present})
    except OSError as error:
        if failed:
            raise
        in_parallel(read, unknown(), "checking images")
        warnings.warn(
            f"cannot keep in {path} which images were found whole ({error}), so each "
            "start reads all of them: XDG_CACHE_HOME says where else",
            stacklevel=2,
        )
    return [found[name][2] for name in names]


def _read(path: Path) -> dict[str, tuple]:
    """What is known; nothing where the manifest is damaged or another Pillow's."""
    try:
        stored = json.loads(path.read_bytes())
        if stored["pillow"] == PIL.__version__:
            files = stored["files"].items()
            return {
                name: (size, change, fault) for name, (size, change, fault) in files
            }
    except (FileNotFoundError, ValueError, TypeError, LookupError, AttributeError):
        pass
    return {}


def _write(path: Path, root, found: dict[str, tuple]) -> None:
    stored = {"folder": str(root), "pillow": PIL.__version__, "files": found}
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(stored))
