"""A run that lives in a bucket: trained in a folder here, and sent there meanwhile.

Checkpoints, records and pictures are written to a folder of this machine, as ever, and
a thread sends them. So a bucket that is away stops nothing but the sending, and a run
goes on from the newest of both.
"""

import contextlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpm_jax.buckets import open_bucket
from ddpm_jax.buckets.base import AwayError, ChangedError, Patient
from ddpm_jax.buckets.lease import HeldError, Lease
from ddpm_jax.buckets.mirror import DamagedError, Mirror
from ddpm_jax.errors import one_line
from ddpm_jax.places import place

_POLL = 2.0  # seconds between looks for a new checkpoint
_EVERY = 60.0  # seconds between sending what grows
_SECONDS = 60.0  # for which a request is made again, while training goes on
_PATIENCE = 300.0  # seconds for sending all in the end
# And checkpoints/, and code/.
_NEEDED = ("config.json", "data.json", "metrics.jsonl", "run_id")
_DATA = "data.json"  # which is deleted to go on with other data
_KEPT = ("damaged", "wandb")  # put aside; sent by its own program
_PINNED = ".sending"  # the folder of checkpoints under way
_RUN = ".run"  # the file that says of which run a folder is


class Uploads(contextlib.AbstractContextManager):
    """A run in a bucket, while it trains.

    Attributes:
      folder: its place on this machine.
      notes: what to say of what was found.
    """

    def __init__(
        self,
        address: str | os.PathLike,
        keep: int,
        every: int,
        say: Callable[[str], Any],
        stop: Callable[[], Any],
    ):
        """Prepares, and asks for nothing yet.

        Args:
          address: of the folder in the bucket.
          keep: how many of the latest checkpoints stay there, beside those here.
          every: steps between checkpoints that are sent; scored ones are sent too, and
            the last.
          say: told what is sent, and what is not.
          stop: called where another has taken the run.
        """
        bucket, name = open_bucket(address)
        self.folder, self.notes = place(address, "runs"), []
        self._address, self._keep, self._every = str(address), keep, every
        self._say, self._stop = say, stop
        self._prefix = f"{name}/" if name else ""
        lease = f"{self._prefix}.lease.json"
        self._lease = Lease(Patient(bucket, 10), lease, say=say)
        self._bucket = Patient(bucket, say=say)
        self._mirror = Mirror(self._bucket, name, self.folder)
        self._done, self._failed, self._said = threading.Event(), None, None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "Uploads":
        """Takes the run, and brings here what is newer there.

        Raises:
          HeldError: if another trains it.
          OSError: if the bucket cannot be read or written.
        """
        try:
            self._lease.__enter__()
        except HeldError as error:
            raise HeldError(
                f"another run is training in {self._address} ({error})"
            ) from error
        try:
            self._bring()
        except BaseException:
            self._lease.__exit__()
            raise
        self._bucket.seconds, self._bucket.say = _SECONDS, lambda text: None
        self._thread.start()
        return self

    def _bring(self):
        mirror, mark = self._mirror, self.folder / _RUN
        mirror.look()
        if mirror.run:
            mirror.sweep("checkpoints")
        else:  # so that what is here is of this run, whatever comes
            mirror.push({})
        if mark.is_file() and mark.read_text() != mirror.run:
            aside = self.folder.with_name(f"{self.folder.name}.{uuid.uuid4().hex[:8]}")
            self.folder.rename(aside)
            self.notes.append(f"another run had this name: what was here is in {aside}")
        self.folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(mirror.run)
        shutil.rmtree(self.folder / _PINNED, ignore_errors=True)  # of one that died
        self._heed_deletion()
        groups = _groups(mirror.files)
        here = max(map(_step, self._here()), default=-1)
        newer = [group for group in groups if _step(group) > here]
        for name in mirror.files:
            is_needed = name in _NEEDED or name.startswith("code/")
            if is_needed and (newer or not (self.folder / name).is_file()):
                mirror.pull([name])
        for group in sorted(newer):
            last = f"{group}/checksums.json"  # makes it whole
            try:
                mirror.pull(name for name in groups[group] if name != last)
                mirror.pull([last])
            except (DamagedError, FileNotFoundError) as error:
                shutil.rmtree(self.folder / group, ignore_errors=True)
                self.notes.append(f"{group} in the bucket is left out ({error})")

    def _heed_deletion(self):
        """Lets go of what says of the data, where people deleted it in the bucket."""
        wanted = self._prefix + _DATA
        there = (found.name for found in self._bucket.list(wanted))
        if _DATA in self._mirror.files and wanted not in there:
            self._mirror.push({}, [_DATA])
            (self.folder / _DATA).unlink(missing_ok=True)

    def _work(self):
        sent = -_EVERY
        while not self._done.wait(_POLL):
            now = time.monotonic()
            try:
                if self._waiting() or now - sent > _EVERY:
                    self._send(last=False)
                    sent = now
                    if self._said:
                        self._say("the bucket answers again")
                    self._said = None
            except AwayError as error:
                if not self._said:
                    self._say(
                        f"{one_line(error)}: training goes on, and what it saves is in "
                        f"{self.folder} until it can be sent"
                    )
                self._said = "away"
                with contextlib.suppress(OSError):  # a write may have been done
                    self._mirror.look()
            except (ChangedError, HeldError) as error:
                self._failed = error
                self._stop()
                return
            except OSError as error:
                if str(error) != self._said:
                    self._say(f"{one_line(error)}: what is saved is in {self.folder}")
                self._said = str(error)

    def _send(self, last):
        self._lease.check()
        waiting = self._waiting()
        if last:
            waiting.append(max(self._here(), key=_step, default=""))
        else:  # the newest first: there may be more than can be sent
            waiting = sorted(waiting, key=_step)[-1:]
        pinned = {group: names for group in waiting if (names := self._pin(group))}
        here = _groups(self._files())
        others = {group: names for group, names in here.items() if _step(group) < 0}
        there = {g: n for g, n in _groups(self._mirror.files).items() if _step(g) >= 0}
        latest = sorted({*there, *pinned}, key=_step)[-self._keep :]
        gone = there.keys() - {*latest} - here.keys()
        try:
            sent = self._mirror.push(
                {**others, **pinned},
                [name for group in gone for name in there[group]],
                self._lease.check,
                dict.fromkeys(pinned, self.folder / _PINNED),
            )
        finally:
            shutil.rmtree(self.folder / _PINNED, ignore_errors=True)
        for group in sent:
            if _step(group) >= 0:
                self._say(f"step {_step(group)} is saved in {self._address}")

    def _pin(self, group):
        """Keeps a checkpoint's files by a second name, whatever becomes of the first.

        Else none might ever arrive where checkpoints are soon replaced by others.

        Returns:
          Their names; none where it is being replaced, and not whole any more.
        """
        pinned = self.folder / _PINNED
        try:
            shutil.copytree(self.folder / group, pinned / group, copy_function=os.link)
            listed = json.loads((pinned / group / "checksums.json").read_text())
        except (OSError, shutil.Error):
            return []
        files = (path for path in (pinned / group).rglob("*") if path.is_file())
        names = [path.relative_to(pinned).as_posix() for path in files]
        is_whole = {f"{group}/{name}" for name in listed} <= {*names}
        return names if is_whole else []

    def _waiting(self):
        """The checkpoints here that are to be in the bucket, or their scores."""

        def is_waiting(group):
            scores = f"{group}/metrics/metrics"
            is_scored = (self.folder / scores).is_file()
            if f"{group}/checksums.json" in self._mirror.files:
                return is_scored and scores not in self._mirror.files
            return is_scored or _step(group) % self._every == 0

        return [group for group in self._here() if is_waiting(group)]

    def _here(self):
        """The complete checkpoints of this machine."""
        found = self.folder.glob("checkpoints/*/checksums.json")
        names = [path.parent.relative_to(self.folder).as_posix() for path in found]
        return [name for name in names if _step(name) >= 0]

    def _files(self):
        """What of the folder is sent: nothing hidden, unfinished or kept here."""
        for folder, folders, names in os.walk(self.folder):
            within = Path(folder).relative_to(self.folder)
            folders[:] = [
                name
                for name in folders
                if not name.startswith(".")
                and "orbax-checkpoint-tmp" not in name
                and (within / name).as_posix() not in _KEPT
            ]
            for name in names:
                if not name.startswith("."):
                    yield (within / name).as_posix()

    def finish(self) -> None:
        """Sends all that is there.

        Raises:
          OSError: if it cannot be sent, saying where it is.
        """
        self._end()
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                if self._failed is not None:
                    raise self._failed
                self._mirror.look()
                return self._send(last=True)
            except OSError as error:
                if isinstance(error, AwayError) and time.monotonic() < end:
                    time.sleep(_POLL)
                    continue
                raise OSError(
                    f"{one_line(error)}: what was trained is in {self.folder}, and the "
                    "same command on this machine goes on from it"
                ) from error

    def _end(self):
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def __exit__(self, *exception):
        self._end()
        if exception[0] is not None and self._failed is None:
            with contextlib.suppress(OSError):  # what went wrong is being said
                self._send(last=True)
        self._lease.__exit__()


def _groups(names):
    """Names by what they are part of: a checkpoint, or themselves."""
    groups = {}
    for name in names:
        parts = name.split("/")
        group = "/".join(parts[:2]) if parts[0] == "checkpoints" else name
        if parts[0] != "checkpoints" or _step(group) >= 0:
            groups.setdefault(group, []).append(name)
    return groups


def _step(group: str) -> int:
    """The step of a checkpoint; -1 of all else."""
    folder, _, step = group.partition("/")
    return int(step) if folder == "checkpoints" and step.isdigit() else -1
