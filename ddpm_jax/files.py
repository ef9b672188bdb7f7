"""Files: written whole or not at all, told apart, and arrays read from them."""

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ddpm_jax.places import lease, place, send


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a name to write to, which becomes `path` unless something fails.

    The folder is made if it is not there. The name ends as `path` does, for writers
    that go by that. What is written to the place of a bucket is sent there.
    """
    path = place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(
        f".{path.stem}.{uuid.uuid4().hex[:8]}.partial{path.suffix}"
    )
    try:
        yield partial
        partial.replace(path)
        send(path)
    finally:
        partial.unlink(missing_ok=True)


def stamp_of(path: Path) -> tuple[int, int]:
    """Returns a file's size in bytes and its last change in nanoseconds."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


@contextmanager
def file_lock(folder: Path) -> Iterator[None]:
    """Keeps others who ask for it out of a folder, which must be there."""
    if (held := lease(folder)) is not None:
        with held:
            yield
        return
    path = folder / ".ddpm_jax.lock"  # a file that is written: NFS locks no folders
    while True:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(path, file):
                continue  # who held it before has taken it away
            try:
                yield
            finally:
                path.unlink()
            return


def _is_at(path: Path, file) -> bool:
    """Whether an open file still has that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads an .npz.

    Raises:
      ValueError: if the file is damaged or another.
      OSError: if the machine cannot read it now.
    """
    try:
        with path.open("rb") as file, np.load(file) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # NumPy raises anything on corrupt bytes
        if of_machine(error):
            raise
        raise ValueError(f"{path} is no readable .npz of arrays ({error})") from error


def stand_in(path: Path) -> str | None:
    """Returns, in words, what lies in the place of a file, or None if it may be one."""
    with path.open("rb") as file:
        head = file.read(256)
    if not head:
        return "is empty, as after a full disk or a download that was stopped"
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file: fetch it with git lfs pull"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, as of a download that was refused: download it again"
    return None


def of_machine(error: BaseException) -> bool:
    """Whether reading a file failed for the machine, and says nothing of the file.

    So do a lack of memory and what the operating system refuses: rights, too many open
    files, a disk's fault.
    """
    refused = isinstance(error, OSError) and error.errno not in _OF_FILES
    return refused or isinstance(error, MemoryError)


# What readers raise themselves; where damaged bytes send them to before the beginning;
# what is not there, or no file.
_OF_FILES = (None, errno.EINVAL, errno.ENOENT, errno.EISDIR)
