"""Deployments that live no longer than the program that made them.

The owner holds the lock on the deployment's `owner.lock` and the writing end of a pipe that the keeper reads. When the
owner is gone, however it went, the kernel lets go of both: the keeper stops the members at once, and whoever looks for
orphans next finds the lock free and removes what is left.

Rules: the lock, not a pid, says whether the owner lives. It is taken under the home's planning lock, so that nobody
sees the file before it is locked, and the file is the last thing of a deployment that is removed. A child that an owner
forked and that runs no other program holds both on: then the deployment lives as long as the last of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from drillyard.runtimes.abilities import Busy

FILE = "owner.lock"


class Ownership:
    """A deployment that is this process's own, until released."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory = directory
        self._lock = os.open(directory / FILE, os.O_RDWR | os.O_CREAT, 0o600)
        if not _is_taken(self._lock):
            os.close(self._lock)
            raise Busy(f"deployment {directory.name!r} is another program's", "use another name")
        self.lifeline, self._writer = os.pipe()  # the reading end is the keeper's

    def release(self) -> None:
        """Own it no longer: what is still there stays."""
        (self.directory / FILE).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # there is more in it, or it is gone
            self.directory.rmdir()
        for handle in (self._lock, self.lifeline, self._writer):
            os.close(handle)


class Orphan:
    """A deployment whose owner is gone. Its lock is ours until closed, so that nobody else takes it up too."""

    def __init__(self, directory: Path, lock: int) -> None:
        self.name = directory.name
        self._directory = directory
        self._lock = lock

    def close(self) -> None:
        os.close(self._lock)

    def forget(self) -> None:
        """It never came to be, or all but this is removed already."""
        (self._directory / FILE).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._directory.rmdir()


def orphan_in(directory: Path) -> Orphan | None:
    """The deployment, if it had an owner and that is gone."""
    try:
        lock = os.open(directory / FILE, os.O_RDWR)
    except FileNotFoundError:
        return None
    if not _is_taken(lock):
        os.close(lock)
        return None
    return Orphan(directory, lock)


def _is_taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
