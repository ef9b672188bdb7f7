"""Places: those of this machine, and those of buckets, which have one here each.

What lies at an address such as gs://bucket/runs/a is worked on at its place here, a
path like any other: it is brought there to be read, and sent from there once written.
"""

import contextlib
import functools
import os
import re
import shutil
import time
import uuid
from pathlib import Path

from ddpm_jax import buckets
from ddpm_jax.buckets.base import Bucket, Patient
from ddpm_jax.buckets.lease import Lease
from ddpm_jax.buckets.mirror import Mirror, within

# What is large in the folder of a run, and is brought when it is asked for.
_LARGE = re.compile(r"checkpoints/\d+/(state|ema)|snapshots/|samples/|events\.")
_STALE = 3600  # seconds after which a checkpoint that the bucket dropped goes here too


def cache_dir() -> Path:
    """Returns where things made once are kept between runs; it may not exist.

    It is `$XDG_CACHE_HOME/ddpm_jax`, or `~/.cache/ddpm_jax`.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "ddpm_jax")


def check_scheme(path: str | os.PathLike) -> None:
    """Refuses the address of another machine, such as hdfs://host/run, but buckets.

    Raises:
      OSError: saying what to do.
    """
    is_other = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path))
    if is_other and not buckets.is_address(path):
        raise OSError(
            f"{path} is no place in the file system, and others are not supported but "
            f"{' and '.join(f'{name}://' for name in buckets.BUCKETS)}: give a folder "
            "of this machine, such as one where it is mounted"
        )


def place(path: str | os.PathLike, kind: str = "buckets") -> Path:
    """Returns the place here of an address, or a path as it is.

    Args:
      path: either.
      kind: "buckets" for what is read and written whole, "runs" for what is trained,
        "data" for what it is trained with.
    """
    if not buckets.is_address(path):
        return Path(path)
    return cache_dir() / kind / Path(*filter(None, buckets.split(path)))


def readable(text: str) -> str:
    """Returns a text with the addresses of places here, not their paths."""
    for kind in ("buckets", "runs", "data"):
        text = re.sub(
            rf"{re.escape(str(cache_dir() / kind))}/({'|'.join(buckets.BUCKETS)})/",
            r"\1://",
            text,
        )
    return text


def _address(path: Path) -> str | None:
    """The address whose place a path is; None where it is another."""
    told = readable(str(path)) if path.is_relative_to(cache_dir() / "buckets") else ""
    return told if buckets.is_address(told) else None


def bring(path: str | os.PathLike) -> Path:
    """Brings what lies at an address to its place here; of a path it does nothing.

    Of the folder of a run, what is large is left until `fetch` asks for it.

    Returns:
      The place.

    Raises:
      FileNotFoundError: if nothing lies there.
      OSError: if it cannot be read.
    """
    here = place(path)
    if not buckets.is_address(path):
        return here
    mirror, bucket, name = _open(path)
    if not mirror.files:
        bring_one(bucket, name, here)
        return here
    for name in mirror.files:
        within(here, name).parent.mkdir(parents=True, exist_ok=True)
    mirror.pull(name for name in mirror.files if not _LARGE.match(name))
    _drop_stale(here, mirror.files)
    return here


def fetch(path: Path) -> None:
    """Brings all that lies below a place of a bucket; of other paths it does nothing.

    Raises:
      FileNotFoundError: if it is there no more.
      OSError: if it cannot be read, or is not what was written.
    """
    if _address(path) is None:
        return
    for above in path.parents:
        if (address := _address(above)) is None:
            break
        mirror, _, _ = _open(address, listed=False)
        if mirror.run:
            below = f"{path.relative_to(above).as_posix()}/"
            mirror.pull(name for name in mirror.files if f"{name}/".startswith(below))
            return
    mirror, _, _ = _open(_address(path))
    mirror.pull(mirror.files)


def refresh(path: Path) -> None:
    """Brings a file as it now is to the place of a bucket, if it is there.

    Raises:
      OSError: if it cannot be read.
    """
    if (address := _address(path)) is not None:
        with contextlib.suppress(FileNotFoundError):
            bring_one(*bucket_of(address), path)


def send(path: Path) -> None:
    """Sends a file to the bucket whose place it has; of other paths it does nothing.

    Raises:
      OSError: if it cannot be sent.
    """
    address = _address(path)
    if address is not None and "/." not in address:  # what is hidden is of here
        bucket, name = bucket_of(address)
        bucket.upload(path, name)


def send_folder(path: Path) -> None:
    """Sends all files of a new folder to the bucket whose place it has, or none.

    Raises:
      OSError: if there is one of this name, or it cannot be sent.
    """
    if (address := _address(path)) is None:
        return
    mirror, _, _ = _open(address)
    if mirror.files:
        raise OSError(f"{address} is there already: give a new one")
    files = [file.relative_to(path).as_posix() for file in path.rglob("*")]
    mirror.push({"": [name for name in files if (path / name).is_file()]})


def lease(folder: Path) -> Lease | None:
    """Returns what keeps others out of a bucket's folder; None of other paths."""
    address = _address(folder)
    if address is None:
        return None
    bucket, name = bucket_of(address)
    return Lease(bucket, f"{name}/.lock.json", seconds=20)


def _open(address, listed=True):
    """The mirror of an address after a look, and its bucket and the name in it."""
    bucket, name = bucket_of(address)
    mirror = Mirror(bucket, name, place(address))
    mirror.look(listed)
    return mirror, bucket, name


def bucket_of(address: str | os.PathLike) -> tuple[Patient, str]:
    """Returns the bucket of an address, asked with patience, and the name in it."""
    scheme, name, within = buckets.split(address)
    return Patient(_client(scheme, name), say=print), within


@functools.lru_cache
def _client(scheme, name):
    return buckets.BUCKETS[scheme](name)


def bring_one(bucket: Bucket, name: str, here: Path) -> None:
    """Brings an object, whole or not at all."""
    here.parent.mkdir(parents=True, exist_ok=True)
    partial = here.with_name(f".{here.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        bucket.download(name, partial)
        partial.replace(here)
    finally:
        partial.unlink(missing_ok=True)


def _drop_stale(here, files):
    """Takes away checkpoints that the bucket has no more, unless they are in use."""
    steps = {name.split("/")[1] for name in files if name.startswith("checkpoints/")}
    for path in here.glob("checkpoints/*"):
        if path.name not in steps and time.time() - path.stat().st_mtime > _STALE:
            shutil.rmtree(path, ignore_errors=True)
