"""One member's durable storage: a RocksDB, opened by one process at a time, with group commit.

Rules
- Nothing is acknowledged before it is durable. Batches are written unsynced on the loop; one syncer thread makes them
  durable, and the `when_durable` callbacks run on the loop afterwards, in the order in which they were asked for.
  What nobody waits for is written lazily: it is never synced for its own sake, but with the next batch that is.
- An fsync that failed is never tried again: the kernel may have dropped the very pages it could not write. Any error
  of the storage ends it: `on_failure` gets the named cause, and from then on every call raises.
- Keys that begin with 0x01 belong to this module (Raft logs); all others belong to its caller.
- Reads go through bare iterators whose status is asked for at the end: rocksdict's `items()` stops at a damaged block
  as if the data ended there.
- One thread (the loop's) writes. A `View` may be read on another.

Write-ahead log: RocksDB replays it up to the first record that does not check out, and says nothing about the rest.
After a power cut that is right for the unsynced tail and wrong for anything before it. So the sequence number of the
last sync is noted in a small file, soon after it (and that file is not synced itself: an old number only makes the
check weaker), and a database that comes back with less than that is refused as corrupted.

Full disk: RocksDB cannot go on after a failed write, and cannot even open without room for its own files. So a
reserve file is kept, and released only when there is too little room to open; `is_almost_full` tells the member early
enough to refuse writes by name.

What it does not do: it knows no regions, no Raft rules (`RaftLog` only stores what a `Ready` says) and no network.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

import rocksdict
from msgspec import Struct

from drillyard.emulator import raft_codec
from drillyard.emulator.data_directory import (
    Cause,
    DataDirectory,
    Kind,
    StorageFailed,
    StorageRefused,
    failure_of,
    free_bytes,
    refusal_of,
)
from drillyard.emulator.raft.types import Entry, HardState, Ready
from drillyard.emulator.rocksdb_logs import find_end, find_snare, intact_length

__all__ = [
    "Batch",
    "Cause",
    "LoadedLog",
    "RaftLog",
    "Storage",
    "StorageFailed",
    "StorageOptions",
    "StorageRefused",
    "View",
]

Pair = tuple[bytes, bytes]

SLOW_SYNC_S = 1.0  # etcd complains of its own syncs from here on
_DATABASE = "db"
_MIB = 1 << 20
_WALK_PAIRS = 64  # read at a time, and no more after so many bytes
_WALK_BYTES = 256 << 10
_SPACE_AGE_S = 0.05  # how old an answer about free space may be
_NOTE_AGE_S = 0.1  # how old the note of the last sync may be
_TABLES_S = 1.0  # after a sync RocksDB may go on to write tables out, each time for less than this

Order = tuple[int, list[Callable[[], None]]]


class StorageOptions(Struct, frozen=True):
    memtable_bytes: int = 8 * _MIB
    cache_bytes: int = 4 * _MIB
    reserve_bytes: int = 32 * _MIB  # enough for RocksDB to write out every memtable's log when it opens
    low_water_bytes: int = 64 * _MIB  # below this much free space `is_almost_full` holds
    on_synced: Callable[[Mapping[str, int]], None] | None = None  # told, on the syncer thread, after each sync and
    # before anything is acknowledged: the bytes of each write-ahead log file that are durable at least


class LoadedLog(Struct, frozen=True):
    """What `Restored` needs of a group's log."""

    hard_state: HardState
    entries: tuple[Entry, ...]
    snapshot_index: int
    snapshot_term: int


class Batch:
    """Writes that take effect together or not at all. It can be written once."""

    __slots__ = ("raw",)

    def __init__(self) -> None:
        self.raw: Any = rocksdict.WriteBatch(raw_mode=True)

    def put(self, key: bytes, value: bytes) -> None:
        self.raw.put(key, value)

    def delete(self, key: bytes) -> None:
        self.raw.delete(key)

    def delete_range(self, start: bytes, end: bytes) -> None:
        """Deletes start <= key < end. Cheap to write, dear to read around: not for what is deleted all the time."""
        if start < end:
            self.raw.delete_range(start, end)

    def __len__(self) -> int:
        return int(self.raw.len())

    @property
    def size_bytes(self) -> int:
        return int(self.raw.size_in_bytes())


class View:
    """The storage as it was at one moment. Close it: it keeps RocksDB from dropping what it shows.

    It is one iterator, which shows the moment in which it was made; rocksdict's own snapshots iterate over the present.
    It may be read on another thread than the loop's, but on one thread at a time.
    """

    def __init__(self, cursor: Any, failed: Callable[[Exception], NoReturn]) -> None:
        self._cursor = cursor
        self._failed = failed

    def get(self, key: bytes) -> bytes | None:
        found = self.scan(key, key + b"\0", 1)
        return found[0][1] if found else None

    def scan(
        self, start: bytes, end: bytes | None, limit: int, *, reverse: bool = False, keys_only: bool = False
    ) -> list[Pair]:
        """Up to `limit` pairs with start <= key < end (None: no end), from the end backwards if `reverse`."""
        return self._read(_Range(start, end, limit, reverse), keys_only=keys_only)

    def _read(self, wanted: _Range, *, keys_only: bool = False) -> list[Pair]:
        try:
            return _read(self._cursor, wanted, keys_only)
        except Exception as error:  # rocksdict raises bare Exception
            self._failed(error)

    def walk(self, start: bytes, end: bytes | None) -> Iterator[Pair]:
        """All pairs with start <= key < end, read as they are asked for: the caller decides where a slice ends."""
        while pairs := self._read(_Range(start, end, _WALK_PAIRS, max_bytes=_WALK_BYTES)):
            yield from pairs
            start = pairs[-1][0] + b"\0"

    def close(self) -> None:
        self._cursor = None


class _Range(Struct, frozen=True):
    start: bytes
    end: bytes | None
    limit: int
    reverse: bool = False
    max_bytes: int = 1 << 62  # of values; the pair that reaches it is the last


def _read(cursor: Any, wanted: _Range, keys_only: bool) -> list[Pair]:
    found: list[Pair] = []
    start, end, limit = wanted.start, wanted.end, wanted.limit
    if limit <= 0 or (end is not None and start >= end):
        return found
    if not wanted.reverse:
        cursor.seek(start)
    elif end is None:
        cursor.seek_to_last()
    else:
        cursor.seek_for_prev(end)
        if cursor.valid() and cursor.key() == end:
            cursor.prev()
    step = cursor.prev if wanted.reverse else cursor.next
    room = wanted.max_bytes
    while len(found) < limit and room > 0 and cursor.valid():
        key = cursor.key()
        if key < start or (end is not None and key >= end):
            break
        value = b"" if keys_only else cursor.value()
        found.append((key, value))
        room -= len(value)
        step()
    cursor.status()
    return found


class Storage:
    """The open storage. Made by `open`; used on one loop; closed once."""

    def __init__(self, directory: DataDirectory, database: Any, options: StorageOptions) -> None:
        self.on_failure: Callable[[Exception], None] = _nobody_listens
        self.on_sync: Callable[[float], None] = _nobody_listens  # on the loop, with the seconds it took
        self.on_slow_sync: Callable[[float], None] = _nobody_listens
        self.reserve_released = directory.reserve_released
        self.found_format = directory.found_format  # older than the present one if the directory was just upgraded
        self._directory = directory
        self._database = database
        self._options = options
        self._failure: StorageFailed | None = None
        self._closed = False
        self._home = threading.get_ident()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._manifest: Path | None = None
        self._manifest_length = 0  # that is noted
        self._written = 0  # batches
        self._durable = 0
        self._waiting: list[Callable[[], None]] = []
        self._futures: set[asyncio.Future[None]] = set()
        self._is_syncing = False  # from the hand-over to the syncer until its report has been taken on the loop
        self._orders: SimpleQueue[Order | None] = SimpleQueue()
        self._synced = 0  # RocksDB's sequence number that the last sync made durable,
        self._noted = 0  # and the one that is noted,
        self._noted_at = 0.0  # and when that was
        self._available = (0, 0.0)  # bytes, and when they were asked for
        self._syncer = threading.Thread(target=self._sync_forever, name="storage-sync", daemon=True)
        self._syncer.start()

    @classmethod
    def open(cls, path: Path | str, kind: Kind, options: StorageOptions = StorageOptions()) -> Storage:
        """Opens the directory, or raises StorageRefused and leaves it as it was."""
        directory = DataDirectory(Path(path))
        directory.claim(kind, 2 * options.memtable_bytes)  # opening writes the log out as tables
        try:
            _check_manifest(directory)
            database = _open_database(directory.path, options)
            try:
                directory.check_synced(database.latest_sequence_number())
                directory.finish_upgrade()
                directory.keep_reserve(options.reserve_bytes, options.low_water_bytes)
            except StorageRefused:
                database.close()
                raise
        except BaseException:
            directory.release()
            raise
        return cls(directory, database, options)

    # Reading

    def get(self, key: bytes) -> bytes | None:
        self._ensure_alive()
        try:
            value: bytes | None = self._database.get(key)
        except Exception as error:  # rocksdict raises bare Exception
            self._give_up(error)
        return value

    def scan(
        self, start: bytes, end: bytes | None, limit: int, *, reverse: bool = False, keys_only: bool = False
    ) -> list[Pair]:
        """Up to `limit` pairs with start <= key < end (None: no end), from the end backwards if `reverse`."""
        self._ensure_alive()
        try:
            return _read(self._cursor_until(end), _Range(start, end, limit, reverse), keys_only)
        except Exception as error:  # rocksdict raises bare Exception
            self._give_up(error)

    def view(self) -> View:
        self._ensure_alive()
        try:
            return View(self._database.iter(), self._give_up)
        except Exception as error:  # rocksdict raises bare Exception
            self._give_up(error)

    # Writing

    def write(self, batch: Batch, *, lazily: bool = False) -> None:
        """Writes the batch; it can be read at once, and is durable when a later `when_durable` says so.

        `lazily`: nobody is promised it. It is durable at the latest with the next batch that is, for the log is one.
        """
        self._ensure_alive()
        try:
            self._database.write(batch.raw)
        except Exception as error:  # rocksdict raises bare Exception
            self._give_up(error)
        if not lazily:
            self._written += 1

    def when_durable(self, call: Callable[[], None]) -> None:
        """Runs `call` on the loop once every batch written before this moment is durable; never if that fails."""
        self._ensure_alive()
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        if self._durable == self._written and not self._waiting and not self._is_syncing:
            loop.call_soon(call)
            return
        self._waiting.append(call)
        if len(self._waiting) == 1 and not self._is_syncing:
            # Not at once: what else this turn of the loop writes shares the sync.
            loop.call_soon(self._hand_over)

    async def durable(self) -> None:
        """Returns when every batch written before is durable; raises StorageFailed if the storage breaks first."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        self.when_durable(lambda: None if future.done() else future.set_result(None))
        await future

    def sync(self) -> None:
        """Makes all batches durable before it returns. It blocks: for the moments before the member serves."""
        self._ensure_alive()
        written = self._written
        try:
            self._sync_once()
            self._note()
        except Exception as error:  # rocksdict raises bare Exception
            self._give_up(error)
        self._durable = max(self._durable, written)

    # Space

    @property
    def capacity(self) -> int:
        space = os.statvfs(self._directory.path)
        return space.f_frsize * space.f_blocks

    @property
    def available(self) -> int:
        """Free space, asked for anew when the last answer is older than an instant."""
        now = time.monotonic()
        if now - self._available[1] > _SPACE_AGE_S:
            self._available = (free_bytes(self._directory.path), now)
        return self._available[0]

    @property
    def used_bytes(self) -> int:
        used = 0
        for file in os.scandir(self._directory.path / _DATABASE):
            with contextlib.suppress(FileNotFoundError):  # RocksDB drops files as it likes
                used += file.stat().st_size
        return used

    def is_almost_full(self) -> bool:
        """Whether the member should refuse what makes the data grow."""
        return self.available < self._options.low_water_bytes

    # The end

    @property
    def failure(self) -> StorageFailed | None:
        return self._failure

    def close(self) -> None:
        """Makes everything durable and lets go. Callbacks that wait are not called. After a failure it only lets go."""
        if self._closed:
            return
        self._closed = True
        self._orders.put(None)
        self._syncer.join()
        try:
            if self._failure is None:
                self._sync_once()
                self._note()
                self._database.close()
            else:
                # Its own last flush cannot succeed either, and says what is already known.
                with contextlib.suppress(Exception):
                    self._database.close()
        finally:
            self._directory.release()

    def _cursor_until(self, end: bytes | None) -> Any:
        if end is None:
            return self._database.iter()
        bounds = rocksdict.ReadOptions()
        # Keeps it from looking through what is deleted behind the end. The lower bound of rocksdict sets the upper one.
        bounds.set_iterate_upper_bound(end)
        return self._database.iter(bounds)

    def _ensure_alive(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise RuntimeError("the storage is closed")

    def _give_up(self, error: Exception) -> NoReturn:
        raise self._fail(error) from error

    def _fail(self, error: Exception) -> StorageFailed:
        """On any thread; what follows from it happens on the loop's."""
        if self._failure is None:
            self._failure = failure_of(error, self._directory.path)
            if threading.get_ident() == self._home:
                self._announce(self._failure)
            else:
                self._tell_loop(self._announce, self._failure)
        return self._failure

    def _announce(self, failure: StorageFailed) -> None:
        self._waiting.clear()
        for future in tuple(self._futures):
            if not future.done():
                future.set_exception(failure)
        self.on_failure(failure)

    # Group commit. The loop hands all that wait to the syncer, one hand-over at a time; the syncer reports back.

    def _hand_over(self) -> None:
        if self._is_syncing or not self._waiting or self._failure is not None or self._closed:
            return
        self._is_syncing = True
        self._orders.put((self._written, self._waiting))
        self._waiting = []

    def _sync_forever(self) -> None:
        """The loop is told first, what is noted comes after: each system call of this thread lets go of the
        interpreter, and may wait for a busy loop until it has it back."""
        try:
            while (order := self._next_order()) is not None:
                began = time.monotonic()
                self._sync_once()
                self._tell_loop(self._report, time.monotonic() - began, *order)
        except Exception as error:  # rocksdict raises bare Exception
            self._fail(error)

    def _next_order(self) -> Order | None:
        """Meanwhile notes what was synced, and looks at the MANIFEST until it grows no more."""
        if self._noted != self._synced:
            due_s = self._noted_at + _NOTE_AGE_S - time.monotonic()
            with contextlib.suppress(Empty):
                return self._orders.get(timeout=max(0.0, due_s))
            self._note()
            is_growing = True
            while is_growing:
                with contextlib.suppress(Empty):
                    return self._orders.get(timeout=_TABLES_S)
                is_growing = self._note_manifest()
        return self._orders.get()

    def _tell_loop(self, call: Callable[..., object], *arguments: object) -> None:
        if self._loop is None:  # nothing was ever asked for: the next call on the loop's thread raises
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody is left to be told
            self._loop.call_soon_threadsafe(call, *arguments)

    def _report(self, took_s: float, written: int, calls: list[Callable[[], None]]) -> None:
        self.on_sync(took_s)
        if took_s >= SLOW_SYNC_S:
            self.on_slow_sync(took_s)
        self._take_report(written, calls)

    def _take_report(self, written: int, calls: list[Callable[[], None]]) -> None:
        self._is_syncing = False
        if self._failure is not None or self._closed:
            return
        assert self._loop is not None
        self._durable = max(self._durable, written)
        for call in calls:
            self._loop.call_soon(call)  # one that raises must not keep the others from running
        if self._waiting:
            self._loop.call_soon(self._hand_over)  # after them: what they write shares the next sync

    def _sync_once(self) -> None:
        """On either thread. What is measured before the sync is certainly durable after it."""
        sequence = self._database.latest_sequence_number()
        observer = self._options.on_synced
        lengths = _log_lengths(self._directory.path / _DATABASE) if observer is not None else {}
        self._database.flush_wal(True)
        if observer is not None:
            observer(lengths)
        self._synced = sequence

    def _note(self) -> None:
        self._directory.note_synced(self._synced)
        self._note_manifest()
        self._noted, self._noted_at = self._synced, time.monotonic()

    def _note_manifest(self) -> bool:
        """It grows with each table that is made or merged; its growth is made durable before it is counted on.

        Whether it has grown since the last time.
        """
        if self._manifest is None or not self._manifest.exists():  # RocksDB may begin another one
            self._manifest = _manifest_of(self._directory.path / _DATABASE)
        with self._manifest.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            if length == self._manifest_length:
                return False
            os.fsync(file.fileno())
        self._directory.note_manifest(_number_of(self._manifest), length)
        self._manifest_length = length
        return True


class RaftLog:
    """One group's log and hard state within a member's storage. `load` comes first, once."""

    def __init__(self, storage: Storage, group: int) -> None:
        self._storage = storage
        self._prefix = b"\x01" + group.to_bytes(8, "big")
        self._hard_state_key = self._prefix + b"h"
        self._start_key = self._prefix + b"s"
        self._entry_prefix = self._prefix + b"e"
        self._first = 1  # of the entries that are kept; first = last + 1 when there are none
        self._last = 0

    def load(self) -> LoadedLog:
        storage = self._storage
        try:
            hard_state = storage.get(self._hard_state_key)
            start = storage.get(self._start_key)
            index, term = raft_codec.decode_position(start) if start is not None else (0, 0)
            pairs = storage.scan(self._entry_key(index + 1), self._prefix + b"f", 1 << 40)
            entries = tuple(raft_codec.decode_entry(record) for _, record in pairs)
            for position, entry in enumerate(entries, index + 1):
                if entry.index != position:
                    raise raft_codec.MalformedRecord(f"log entry {position} is missing; {entry.index} is in its place")
            state = raft_codec.decode_hard_state(hard_state) if hard_state is not None else HardState()
        except raft_codec.MalformedRecord as error:
            raise storage._fail(error) from error
        self._first, self._last = index + 1, index + len(entries)
        return LoadedLog(state, entries, index, term)

    def stage(self, batch: Batch, ready: Ready, encode: Callable[[Entry], bytes] = raft_codec.encode_entry) -> None:
        """Adds step 1 of the Ready to the batch: hard state, the place of a snapshot, entries."""
        if ready.hard_state is not None:
            batch.put(self._hard_state_key, raft_codec.encode_hard_state(ready.hard_state))
        if ready.snapshot is not None:
            self._delete_entries(batch, self._first, self._last)
            batch.put(self._start_key, raft_codec.encode_position(ready.snapshot.index, ready.snapshot.term))
            self._first, self._last = ready.snapshot.index + 1, ready.snapshot.index
        if not ready.entries:
            return
        first, last = ready.entries[0].index, ready.entries[-1].index
        if not self._first <= first <= self._last + 1:
            raise ValueError(f"entries from {first} do not join a log of {self._first} to {self._last}")
        for entry in ready.entries:
            batch.put(self._entry_key(entry.index), encode(entry))
        self._delete_entries(batch, last + 1, self._last)  # the replaced tail may have been longer
        self._last = last

    def compact(self, batch: Batch, upto: int) -> None:
        """Forgets the entries up to and with `upto`, which must have been written."""
        if upto < self._first:
            return
        record = self._storage.get(self._entry_key(upto))
        if record is None:
            raise ValueError(f"cannot compact up to {upto}: the log is {self._first} to {self._last}")
        batch.put(self._start_key, raft_codec.encode_position(upto, raft_codec.decode_entry(record).term))
        # One by one: a range deletion would be looked through by every later read.
        self._delete_entries(batch, self._first, upto)
        self._first = upto + 1

    def destroy(self, batch: Batch) -> None:
        """Forgets the group altogether."""
        batch.delete_range(self._prefix, self._prefix + b"\xff")
        self._first, self._last = 1, 0

    def _entry_key(self, index: int) -> bytes:
        return self._entry_prefix + index.to_bytes(8, "big")

    def _delete_entries(self, batch: Batch, first: int, last: int) -> None:
        for index in range(first, last + 1):
            batch.delete(self._entry_key(index))


def _nobody_listens(told: object) -> None:
    """Before the member has said whom to tell. A failure is told by the exception at the failed call too."""


def _log_lengths(database: Path) -> dict[str, int]:
    lengths = {}
    for file in os.scandir(database):
        if file.name.endswith(".log"):
            with contextlib.suppress(FileNotFoundError):  # dropped by RocksDB: its content is in tables
                lengths[file.name] = file.stat().st_size
    return lengths


def _manifest_of(database: Path) -> Path:
    """The one that is in use. Raises ValueError if CURRENT names none."""
    name = (database / "CURRENT").read_text(encoding="ascii").strip()
    if not name.startswith("MANIFEST-"):
        raise ValueError(f"CURRENT names {name!r}")
    return database / name


def _number_of(manifest: Path) -> int:
    return int(manifest.name.partition("-")[2])


def _check_manifest(directory: DataDirectory) -> None:
    """Refuses a database whose MANIFEST has lost what was once durable in it: it would open, without some tables."""
    noted, database = directory.noted_manifest(), directory.path / _DATABASE
    if noted is None:
        return
    try:
        manifest = _manifest_of(database)
        number, (noted_number, length) = _number_of(manifest), noted
        if number < noted_number or (number == noted_number and intact_length(manifest) < length):
            raise ValueError(f"{manifest.name} is damaged")
    except (OSError, ValueError) as error:  # files that are not there, and bytes that are no text, too
        damage = ValueError(str(error)) if isinstance(error, FileNotFoundError) else error
        raise refusal_of(damage, directory.path) from error


def _open_database(path: Path, options: StorageOptions) -> Any:
    _disarm(path)
    try:
        return rocksdict.Rdict(str(path / _DATABASE), _database_options(options))
    except Exception as error:  # rocksdict raises bare Exception
        raise refusal_of(error, path) from error


def _disarm(path: Path) -> None:
    """Keeps RocksDB away from damage that it would never come back from, or not see.

    A write-ahead log is cut where that begins, and those after it are emptied: nothing may come back without what was
    written before it. Whether anything acknowledged was there is checked after it has been opened, as after any other
    damage.
    """
    try:
        is_cut = False
        for log in sorted((path / _DATABASE).glob("*.log")):  # their numbers have leading zeros
            if (place := 0 if is_cut else find_end(log)) is not None:
                os.truncate(log, place)
                is_cut = True
        for manifest in (path / _DATABASE).glob("MANIFEST-*"):
            if find_snare(manifest) is not None:
                raise ValueError(f"the manifest {manifest.name} is damaged")
    except (OSError, ValueError) as error:
        raise refusal_of(error, path) from error


def _database_options(options: StorageOptions) -> Any:
    table = rocksdict.BlockBasedOptions()
    table.set_block_cache(rocksdict.Cache(options.cache_bytes))
    table.set_bloom_filter(10, False)
    database = rocksdict.Options(raw_mode=True)  # otherwise values are pickled
    database.create_if_missing(True)
    database.set_block_based_table_factory(table)
    database.set_write_buffer_size(options.memtable_bytes)
    database.set_max_write_buffer_number(4)  # a write never waits for the first memtable to be written out
    database.set_target_file_size_base(options.memtable_bytes)
    database.set_max_bytes_for_level_base(8 * options.memtable_bytes)
    database.set_max_background_jobs(2)
    database.set_bytes_per_sync(_MIB)  # a table's last fsync then has little left to do
    database.set_wal_recovery_mode(rocksdict.DBRecoveryMode.point_in_time())
    database.set_keep_log_file_num(2)
    database.set_max_log_file_size(_MIB)
    database.set_stats_dump_period_sec(0)
    database.set_stats_persist_period_sec(0)
    return database
