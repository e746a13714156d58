"""The journal: what the keeper did and saw, one JSON object a line, durable before anything is told.

Rules: append only; a request to end a member is written before it is carried out; the state of the members is a fold
over the records, the same for the keeper that writes them and for a command that finds the keeper gone. A line torn by
a power cut is passed over. Standard library only: the keeper lives on this.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Record = dict[str, Any]

KEEPER_STARTED = "keeper-started"
KEEPER_STOPPED = "keeper-stopped"
KEEPER_LOST = "keeper-lost"  # written by the command that finds it gone
STARTED = "started"
STOPPING = "stopping"
ESCALATED = "escalated"
EXITED = "exited"
PAUSED = "paused"
RESUMED = "resumed"


class Journal:
    """The writing end. One keeper (or one sweeping command) holds it at a time; a lock elsewhere sees to that.

    When the disk refuses a record, it is kept in memory and goes out before the next one: the keeper must not end, and
    its members with it, because a disk is full.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._unwritten = b""
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            self._unwritten = b"\n"  # end the torn line, so that ours is whole

    def write(self, what: str, member: str = "", **more: object) -> Record:
        """Append one record, durable on return unless the disk refuses."""
        record: Record = {"at": time.time(), "what": what, **({"member": member} if member else {}), **more}
        self._unwritten += json.dumps(record).encode() + b"\n"
        with contextlib.suppress(OSError):
            while self._unwritten:
                self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]
            os.fsync(self._file)
        return record

    def close(self) -> None:
        os.close(self._file)


def read(path: Path) -> list[Record]:
    """Every whole record, oldest first; none when there is no journal yet."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "what" in record and "at" in record:
            records.append(record)
    return records


class State:
    """What the records say, since the latest start of a keeper."""

    __slots__ = ("is_closing", "keeper", "runs", "started_at")

    def __init__(self) -> None:
        self.keeper: Record | None = None  # its pid and identity; None when it is known to be gone
        self.started_at: float | None = None
        self.is_closing = False  # a living keeper is stopping everything; only it can say so
        self.runs: dict[str, Record] = {}

    def apply(self, record: Record) -> None:
        what = record["what"]
        if what == KEEPER_STARTED:
            self.keeper, self.started_at, self.runs = record, record["at"], {}
        elif what in (KEEPER_STOPPED, KEEPER_LOST):
            self.keeper = None
        elif "member" in record:
            self._apply_to_run(self.runs.setdefault(record["member"], new_run()), record)

    def _apply_to_run(self, run: Record, record: Record) -> None:
        what = record["what"]
        if what == STARTED:
            run.update(pid=record["pid"], identity=record["identity"], started_at=record["at"])
            run.update(starts=run["starts"] + 1, paused=False, stopping="", escalated=False)
        elif what == STOPPING:
            run["stopping"] = record["by"]
        elif what == ESCALATED:
            run["escalated"] = True
        elif what == EXITED:
            run.update(pid=None, identity=None, paused=False, stopping="", escalated=False, exit=record)
        elif what in (PAUSED, RESUMED):
            run["paused"] = what == PAUSED


def new_run() -> Record:
    return {
        "pid": None,
        "identity": None,
        "started_at": None,
        "starts": 0,
        "paused": False,
        "stopping": "",  # by what its end was asked for; empty while nobody did
        "escalated": False,
        "exit": None,
    }


def fold(records: Iterable[Record]) -> State:
    state = State()
    for record in records:
        state.apply(record)
    return state
