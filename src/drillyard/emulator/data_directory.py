"""The directory around a member's database: whose it is, who has it open, and its reserve of space.

Rules
- A directory that is not empty and not ours is never touched. Whose it is stands in an identity record: the kind of
  member and the number of the on-disk format. It is written before the database, whole or not at all.
- One process at a time: an flock, which ends with its process, with the owner's pid for the message.
- Every refusal says why and what the owner can do about it.
- A directory of a former format is upgraded when its database has been opened: whoever opens it rewrites what has to be
  rewritten, if anything (see `version`), and the identity record gets the new number last.
- The reserve is space set aside for a full disk. It is released only where there is too little room to open.

What it does not do: it knows nothing of what the database holds, and never repairs or deletes data.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import struct
import zlib
from enum import Enum
from pathlib import Path
from typing import Literal

from drillyard.emulator.version import ON_DISK_FORMAT

Kind = Literal["pd", "tikv"]

_IDENTITY = "drillyard.json"
_LOCK = "drillyard.lock"
_SYNCED = "drillyard.synced"
_RESERVE = "drillyard.reserve"
_MIB = 1 << 20
_SYNCED_RECORD = struct.Struct(">QI")  # sequence number, crc32 of its eight bytes
_MANIFEST_RECORD = struct.Struct(">QQI")  # number and length of the MANIFEST, crc32 of both
_MANIFEST_PLACE = 16  # in the same file, behind the other


class Cause(Enum):
    """Why a storage was refused, or failed."""

    FOREIGN = "foreign directory"
    OTHER_KIND = "another kind of member"
    NEWER_FORMAT = "newer format"
    CORRUPTED = "corrupted"
    IN_USE = "in use"
    NOT_WRITABLE = "not writable"
    DISK_FULL = "disk full"
    BROKEN_DISK = "input/output error"


class StorageRefused(Exception):
    """The directory cannot be opened: why, and what its owner can do about it."""

    def __init__(self, cause: Cause, reason: str, mend: str) -> None:
        super().__init__(f"{reason}; {mend}")
        self.cause = cause
        self.reason = reason
        self.mend = mend


class StorageFailed(Exception):
    """The storage broke while it was open, and is dead from then on."""

    def __init__(self, cause: Cause, reason: str, mend: str) -> None:
        super().__init__(f"{reason}; {mend}")
        self.cause = cause
        self.reason = reason
        self.mend = mend


_MENDS = {
    Cause.FOREIGN: "name an empty directory with --data-dir",
    Cause.OTHER_KIND: "check --data-dir: each member needs its own",
    Cause.NEWER_FORMAT: "start it with the version that wrote it, or name an empty directory with --data-dir",
    Cause.CORRUPTED: "move it away and let the member come back empty: a PD member must be removed and joined again, "
    "a store deleted in PD first",
    Cause.IN_USE: "stop that process, or name another directory with --data-dir",
    Cause.NOT_WRITABLE: "give this user the right to write there, or name another directory with --data-dir",
    Cause.DISK_FULL: "free some space there and start the member again",
    Cause.BROKEN_DISK: "look at the disk's health in the kernel's log, then start the member again",
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SIGNS = (  # of what RocksDB says, first match first
    ("No space left on device", Cause.DISK_FULL),
    ("Disk quota exceeded", Cause.DISK_FULL),
    ("File too large", Cause.DISK_FULL),
    ("Out of space", Cause.DISK_FULL),
    ("lock hold by current process", Cause.IN_USE),
    ("While lock file", Cause.IN_USE),
    ("Read-only file system", Cause.NOT_WRITABLE),
    ("Permission denied", Cause.NOT_WRITABLE),
    ("Corruption", Cause.CORRUPTED),
)


class DataDirectory:
    """One data directory, from `claim` to `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reserve_released = False
        self.found_format = ON_DISK_FORMAT
        self._kind: Kind = "pd"
        self._lock: int | None = None
        self._synced: int | None = None

    def claim(self, kind: Kind, needed_bytes: int) -> None:
        """Makes sure that it is ours, and of no other process; raises StorageRefused and lets go otherwise."""
        try:
            self._prepare()
            self._refuse_foreign()
            self._take_lock()
            self._make_room(needed_bytes)
            self._check_identity(kind)
            self._synced = os.open(self.path / _SYNCED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self.release()
            raise refusal_of(error, self.path) from error
        except StorageRefused:
            self.release()
            raise

    def finish_upgrade(self) -> None:
        """From now on no former version opens the directory. Nothing happens to one of the present format."""
        if self.found_format == ON_DISK_FORMAT:
            return
        try:
            self._write_identity(self.path / _IDENTITY, self._kind)
        except OSError as error:
            raise refusal_of(error, self.path) from error

    def release(self) -> None:
        for descriptor in (self._synced, self._lock):
            if descriptor is not None:
                os.close(descriptor)
        self._synced = self._lock = None

    def note_synced(self, sequence: int) -> None:
        """Remembers how far the database is durable. Not synced: after a power cut an older number may be found."""
        number = sequence.to_bytes(8, "big")
        assert self._synced is not None
        os.pwrite(self._synced, _SYNCED_RECORD.pack(sequence, zlib.crc32(number)), 0)

    def note_manifest(self, number: int, length: int) -> None:
        """Remembers how much of the database's MANIFEST is durable."""
        assert self._synced is not None
        fields = _MANIFEST_RECORD.pack(number, length, 0)[:16]
        os.pwrite(self._synced, fields + struct.pack(">I", zlib.crc32(fields)), _MANIFEST_PLACE)

    def noted_manifest(self) -> tuple[int, int] | None:
        assert self._synced is not None
        record = os.pread(self._synced, _MANIFEST_RECORD.size, _MANIFEST_PLACE)
        if len(record) != _MANIFEST_RECORD.size:
            return None
        number, length, checksum = _MANIFEST_RECORD.unpack(record)
        return (number, length) if zlib.crc32(record[:16]) == checksum else None

    def check_synced(self, recovered: int) -> None:
        """Refuses a database that came back with less than was once durable."""
        assert self._synced is not None
        record = os.pread(self._synced, _SYNCED_RECORD.size, 0)
        if len(record) != _SYNCED_RECORD.size:
            return
        sequence, checksum = _SYNCED_RECORD.unpack(record)
        if zlib.crc32(sequence.to_bytes(8, "big")) != checksum or recovered >= sequence:
            return
        raise StorageRefused(
            Cause.CORRUPTED,
            f"{self.path} has lost acknowledged writes: its log ends at {recovered}, and was durable up to {sequence}",
            _MENDS[Cause.CORRUPTED],
        )

    def keep_reserve(self, size: int, margin: int) -> None:
        """Sets the reserve aside if `margin` stays free beside it; on a fuller disk the next start tries again."""
        reserve = self.path / _RESERVE
        if size == 0 or (reserve.exists() and reserve.stat().st_size == size):
            return
        if free_bytes(self.path) < size + margin:
            return
        try:
            _allocate(reserve, size)
        except OSError as error:
            reserve.unlink(missing_ok=True)
            if error.errno not in _FULL:
                raise refusal_of(error, self.path) from error

    def _prepare(self) -> None:
        if not self.path.exists():
            self.path.mkdir(mode=0o700, parents=True)
        if not self.path.is_dir():
            raise StorageRefused(Cause.FOREIGN, f"{self.path} is not a directory", _MENDS[Cause.FOREIGN])

    def _refuse_foreign(self) -> None:
        names = {entry.name for entry in os.scandir(self.path)}
        if _IDENTITY in names:
            return
        strangers = sorted(names - {_LOCK, _IDENTITY + ".new", "lost+found"})
        if strangers:
            some = ", ".join(strangers[:3])
            raise StorageRefused(
                Cause.FOREIGN,
                f"{self.path} is not empty and is no data directory of an emulated member (it holds {some})",
                _MENDS[Cause.FOREIGN],
            )

    def _take_lock(self) -> None:
        lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._lock = lock
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            owner = os.pread(lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise StorageRefused(Cause.IN_USE, f"{self.path} is in use by pid {owner}", _MENDS[Cause.IN_USE]) from error
        self.path.chmod(0o700)
        with contextlib.suppress(OSError):  # a full disk must not keep the member from starting; only the name is lost
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)

    def _make_room(self, needed: int) -> None:
        reserve = self.path / _RESERVE
        if free_bytes(self.path) < needed and reserve.exists():
            reserve.unlink()
            self.reserve_released = True
        if (available := free_bytes(self.path)) < needed:
            raise StorageRefused(
                Cause.DISK_FULL,
                f"the disk under {self.path} is full: {available:,} bytes are free, and {needed:,} are needed to open",
                _MENDS[Cause.DISK_FULL],
            )

    def _check_identity(self, kind: Kind) -> None:
        file = self.path / _IDENTITY
        self._kind = kind
        if not file.exists():
            self._write_identity(file, kind)
            return
        try:
            identity = json.loads(file.read_bytes())
            found_kind, found_format = str(identity["kind"]), int(identity["format"])
        except (ValueError, KeyError, TypeError) as error:
            raise StorageRefused(
                Cause.CORRUPTED, f"the identity record {file} cannot be read", _MENDS[Cause.CORRUPTED]
            ) from error
        if found_format > ON_DISK_FORMAT:
            raise StorageRefused(
                Cause.NEWER_FORMAT,
                f"{self.path} has on-disk format {found_format}; this version reads up to {ON_DISK_FORMAT}",
                _MENDS[Cause.NEWER_FORMAT],
            )
        if found_kind != kind:
            raise StorageRefused(
                Cause.OTHER_KIND,
                f"{self.path} holds the data of a {found_kind} member, and this is {kind}",
                _MENDS[Cause.OTHER_KIND],
            )
        self.found_format = found_format

    def _write_identity(self, file: Path, kind: Kind) -> None:
        """Whole or not at all: a crash here leaves a directory that still counts as empty."""
        fresh = file.with_name(file.name + ".new")
        with fresh.open("w") as out:
            json.dump({"kind": kind, "format": ON_DISK_FORMAT}, out)
            out.flush()
            os.fsync(out.fileno())
        fresh.rename(file)
        parent = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)


def cause_of(error: Exception) -> Cause:
    if isinstance(error, ValueError):  # a record that cannot be read
        return Cause.CORRUPTED
    if isinstance(error, OSError):
        if error.errno in _FULL:
            return Cause.DISK_FULL
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return Cause.NOT_WRITABLE
        return Cause.BROKEN_DISK
    text = str(error)
    return next((cause for sign, cause in _SIGNS if sign in text), Cause.BROKEN_DISK)


def refusal_of(error: Exception, path: Path) -> StorageRefused:
    cause = cause_of(error)
    return StorageRefused(cause, f"{path} cannot be opened ({cause.value}): {error}", _MENDS[cause])


def failure_of(error: Exception, path: Path) -> StorageFailed:
    cause = cause_of(error)
    return StorageFailed(cause, f"the storage in {path} failed ({cause.value}): {error}", _MENDS[cause])


def free_bytes(path: Path) -> int:
    space = os.statvfs(path)
    return space.f_frsize * space.f_bavail


def _allocate(file: Path, size: int) -> None:
    """Real blocks, not a hole."""
    with file.open("wb") as out:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(out.fileno(), 0, size)
            return
        for _ in range(0, size, _MIB):  # macOS
            out.write(b"\0" * _MIB)
        out.truncate(size)
