"""Checksums of a folder's files, kept beside them: what is read is what was written."""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path

_NAME = "checksums.json"


class DamagedError(OSError):
    """Files are not those that were written."""


def write(folder: Path) -> None:
    """Writes the CRC-32 of all files of a folder into one of its own."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    sums = {path.relative_to(folder).as_posix(): _sum(path) for path in files}
    (folder / _NAME).write_text(json.dumps(sums))


def check(folder: Path, parts: Iterable[str]) -> None:
    """Compares the files in some sub-folders with what was written.

    Raises:
      DamagedError: saying what is not as it was.
      OSError: if a file that is there cannot be read now.
    """
    try:
        sums = json.loads((folder / _NAME).read_text())
        changed = [
            name
            for name, value in sums.items()
            if name.partition("/")[0] in parts and _sum(folder / name) != value
        ]
    except FileNotFoundError as error:
        name = Path(error.filename).relative_to(folder)
        raise DamagedError(f"{name} is missing") from error
    except (ValueError, AttributeError) as error:
        raise DamagedError(f"{_NAME} cannot be read") from error
    if changed:
        raise DamagedError(f"{changed[0]} is not as it was saved")


def _sum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while part := file.read(2**20):
            total = zlib.crc32(part, total)
    return total
