"""A lease of a folder in a bucket: one holder at a time, and no dead one for long.

It is an object that its holder writes anew time and again, each time in place of its
own last one; who finds it unchanged for long enough takes it, in place of that one. No
clock is compared with another's.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpm_jax.buckets.base import AwayError, Bucket, ChangedError

NAME = ".lease.json"


class HeldError(OSError):
    """Another holds the lease."""


class Lease(contextlib.AbstractContextManager):
    """Holds a lease while it is entered."""

    def __init__(
        self,
        bucket: Bucket,
        name: str,
        seconds: float = 60,
        say: Callable[[str], Any] = lambda text: None,
    ):
        """Asks for nothing yet.

        Args:
          bucket: where the lease is.
          name: of its object.
          seconds: after which a lease that was not renewed may be taken.
          say: told where it must be waited for.
        """
        self._bucket, self._name = bucket, name
        self._seconds, self._say = seconds, say
        self._version, self._lost, self._until = "", None, 0.0
        self._me, self._beats = {**_self(), "token": uuid.uuid4().hex}, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> "Lease":
        """Takes the lease.

        Raises:
          HeldError: if another has it, and renews it.
          OSError: if the bucket cannot be read or written.
        """
        for is_last in (False, False, True):
            holder, self._version = self._read()
            if "token" in holder and not _is_dead(holder):
                self._watch(holder)
            try:
                self._write(self._me)
                break
            except ChangedError as error:  # maybe by what a dead one still had sent
                if is_last:
                    raise HeldError(f"{self._name}: another takes it") from error
        self._thread.start()
        return self

    def check(self) -> None:
        """Raises where the lease may be another's by now.

        Raises:
          HeldError: if another has taken it.
          AwayError: if it could not be renewed for too long.
        """
        if self._lost is not None:
            raise HeldError(self._lost)
        if time.monotonic() > self._until:
            raise AwayError(f"{self._name} could not be renewed")

    def __exit__(self, *exception):
        self._done.set()
        self._thread.join()
        if self._lost is None:
            with contextlib.suppress(OSError):  # it expires
                self._write({})

    def _watch(self, holder):
        """Waits until a lease is known to be renewed no more."""
        who = f"process {holder.get('process')} of {holder.get('host')}"
        self._say(f"waiting whether {who} is still there")
        end = time.monotonic() + self._seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, self._seconds / 20))
            found, version = self._read()
            if version == self._version:
                continue
            if "token" in found:
                raise HeldError(f"{self._name} is held by {who}")
            self._version = version
            return

    def _renew(self):
        while not self._done.wait(self._seconds / 5):
            with contextlib.suppress(OSError):  # said by who sends something
                try:
                    self._write(self._me)
                except ChangedError:  # also by ourselves, where nothing was heard of it
                    found, version = self._read()
                    if found.get("token") == self._me["token"]:
                        self._version = version
                        continue
                    by = f"process {found.get('process')} of {found.get('host')}"
                    self._lost = f"{self._name} was not renewed, and taken by {by}"
                    return

    def _write(self, holder):
        begun = time.monotonic()
        self._beats += 1
        content = json.dumps({**holder, "beat": self._beats}).encode()
        self._version = self._bucket.write(self._name, content, self._version)
        # Others wait from when they saw it written, which is later than it was begun.
        self._until = begun + 0.8 * self._seconds

    def _read(self):
        try:
            content, version = self._bucket.read(self._name)
        except FileNotFoundError:
            return {}, ""
        try:
            found = json.loads(content)
        except ValueError:
            return {}, version
        return (found if isinstance(found, dict) else {}), version


def _self() -> dict[str, Any]:
    """Who this process is, as others of its machine can tell."""
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "machine": _machine(),
        "started": _started(os.getpid()),
    }


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine that is no more."""
    machine = _machine()
    if machine is None or holder.get("machine") != machine:
        return False
    return _started(holder.get("process")) != holder.get("started")


def _machine() -> str | None:
    """This boot of this machine, and which of its processes are seen."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def _started(process: int | None) -> str | None:
    """When a process began, in ticks since the boot; None where there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
