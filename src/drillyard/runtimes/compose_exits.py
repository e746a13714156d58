"""Who wanted which end: the daemon's records and the deployment's journal, read together.

Rules: a *run* of a container is its id and start time. A stop of ours is in the journal with the run that it ends, so
an end is known as asked or not whoever looks and whenever. A start of ours is there with the end that came before it,
so an end that somebody else made good (a restart policy, `docker restart`) is told from one that we made good. Times of
the daemon are compared with each other only, never with this machine's clock. Pure but for reading the journal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from drillyard.runtimes import journal
from drillyard.runtimes.abilities import EventKind, Exit, MemberEvent
from drillyard.runtimes.docker import KILLED_CODE, Container, DockerEvent

JOURNAL = "journal.jsonl"
UP, DOWN, ADOPTED = "up", "down", "adopted"  # what the journal holds of the whole
STARTED, STOPPING = "started", "stopping"  # and of a member
ENDING_SIGNALS = {"2", "3", "6", "9", "15"}  # as an event tells them; others are no wish that a container end


@dataclass(frozen=True, slots=True)
class Book:
    """What the journal says since the latest start of the whole."""

    up_at: float | None = None
    is_down: bool = True  # nothing was started since it was taken down
    asked: Mapping[str, str] = field(default_factory=dict)  # a run whose end was asked for -> by what
    starts: Mapping[str, int] = field(default_factory=dict)  # of each member, by us
    started_at: Mapping[str, float] = field(default_factory=dict)
    restarts: Mapping[str, int] = field(default_factory=dict)  # by a policy, before our latest start of the member
    known_ends: Mapping[str, str] = field(default_factory=dict)  # when it had ended last, as it was when we started it
    kinds: Mapping[str, str] = field(default_factory=dict)  # member -> "real" or "emulated"

    @classmethod
    def read(cls, directory: Path) -> Book:
        up_at: float | None = None
        is_down = True
        asked: dict[str, str] = {}
        starts: dict[str, int] = {}
        started_at: dict[str, float] = {}
        restarts: dict[str, int] = {}
        known_ends: dict[str, str] = {}
        kinds: dict[str, str] = {}
        for record in journal.read(directory / JOURNAL):
            what, member = record["what"], str(record.get("member", ""))
            if what in (UP, ADOPTED):
                up_at = float(record["at"]) if what == UP else None
                is_down, starts, started_at, restarts = False, {}, {}, {}
                known_ends = dict(record.get("ends", {}))
                kinds |= record.get("kinds", {})
            elif what == DOWN:
                is_down = True
            elif what == STARTED:
                is_down = False
                starts[member] = starts.get(member, 0) + 1
                started_at[member] = float(record["at"])
                restarts[member] = restarts.get(member, 0) + int(record.get("restarts", 0))
                known_ends[member] = str(record.get("ended", ""))
            elif what == STOPPING:
                asked[str(record["run"])] = str(record["by"])
        return cls(up_at, is_down, asked, starts, started_at, restarts, known_ends, kinds)

    def knows_end(self, member: str, container: Container) -> bool:
        """Whether its latest end was there already when we last started it."""
        return bool(container.ended_text) and self.known_ends.get(member) == container.ended_text


@dataclass(frozen=True, slots=True)
class RecentEnd:
    """How a container ended last, by the events that the daemon still remembers. `signal` was sent through Docker."""

    code: int
    is_oom: bool = False
    signal: str = ""


def is_worth_asking(member: str, container: Container, book: Book) -> bool:
    """Whether the daemon's events may tell more about its latest end than its record does."""
    if container.finished_at is None or book.knows_end(member, container):
        return False
    return container.is_running or container.run not in book.asked


def recent_ends(events: Iterable[DockerEvent]) -> dict[str, RecentEnd]:
    """The latest end of each container, by id."""
    found: dict[str, RecentEnd] = {}
    oom: set[str] = set()
    signals: dict[str, str] = {}
    for event in events:
        one = event.container_id
        if event.action == "oom":
            oom.add(one)
        elif event.action == "kill" and event.signal in ENDING_SIGNALS:
            signals[one] = event.signal
        elif event.action == "start":
            signals.pop(one, None)
        elif event.action == "die" and event.exit_code is not None:
            is_oom = one in oom and event.exit_code == KILLED_CODE
            found[one] = RecentEnd(event.exit_code, is_oom, signals.pop(one, ""))
            oom.discard(one)
    return found


def exit_of(member: str, container: Container, book: Book, recent: RecentEnd | None = None) -> Exit | None:
    """How the member's latest run that is over ended; None when there was none that we did not know of."""
    is_known = book.knows_end(member, container)
    if not container.is_running and container.error and (container.finished_at is None or is_known):
        at = container.finished_at or book.started_at.get(member, 0.0)
        return Exit(container.exit_code, None, False, at, f"could not be started: {container.error}")
    if container.finished_at is None or is_known:
        return None
    if container.is_running:
        note = "started again by somebody else"
        if container.restarts:
            note = "restarted by its policy" + ("" if container.restarts == 1 else f" {container.restarts} times")
        if recent is None:
            return Exit(None, None, False, container.finished_at, note)
        return _exit(recent.code, False, container.finished_at, note, is_oom=recent.is_oom)
    by = book.asked.get(container.run, "")
    note = by or container.error or (_sent(recent.signal) if recent else "")
    if by in ("stop", "restart", "down") and container.exit_code == KILLED_CODE:
        note = f"{by}, killed after its grace"
    elif container.status == "restarting":
        note = "its policy will start it again"
    is_oom = container.is_oom or (recent is not None and recent.is_oom)  # the record learns it late
    return _exit(container.exit_code, bool(by), container.finished_at, note, is_oom=is_oom)


def removed(member: str, book: Book, *, is_adopted: bool) -> Exit | None:
    """The end of a member whose container is not there although it was and nobody took the whole down."""
    if book.is_down or not (is_adopted or book.starts.get(member)):
        return None
    return Exit(None, None, False, book.started_at.get(member, 0.0), "its container was removed")


class Watcher:
    """Turns the daemon's events into ours. It remembers each member's run, for an event does not tell it."""

    def __init__(self, deployment: str, directory: Path, members: Mapping[str, str], now: Iterable[Container]) -> None:
        """`members` gives the member of each service, `now` is how the containers are when the watch begins."""
        self._deployment = deployment
        self._directory = directory
        self._members = members
        self._containers = tuple(now)
        self._runs = {one.service: one.run for one in self._containers}
        self._signals: dict[str, str] = {}  # service -> the signal that it was last sent through Docker
        self._oom: set[str] = set()

    def replays(self) -> Iterable[MemberEvent]:
        book = Book.read(self._directory)
        for one in self._containers:
            member = self._members.get(one.service)
            if member is None:
                continue
            how = None if one.is_running else exit_of(member, one, book)
            if how is not None:
                yield MemberEvent(self._deployment, member, EventKind.EXITED, how.at, None, how, is_replay=True)
            elif one.is_running:
                kind = EventKind.PAUSED if one.status == "paused" else EventKind.STARTED
                yield MemberEvent(self._deployment, member, kind, one.started_at or 0.0, one.pid, is_replay=True)

    def see(self, event: DockerEvent, now: Container | None) -> MemberEvent | None:
        """What an event means; `now` is the container as it is after it, where that matters."""
        member = self._members.get(event.service)
        if member is None:
            return None
        kinds = {"pause": EventKind.PAUSED, "unpause": EventKind.RESUMED, "start": EventKind.STARTED}
        if event.action == "oom":
            self._oom.add(event.service)
        elif event.action == "kill" and event.signal in ENDING_SIGNALS:
            self._signals[event.service] = event.signal
        elif event.action == "die":
            how = self._exit(event, now)
            return MemberEvent(self._deployment, member, EventKind.EXITED, event.at, None, how)
        elif event.action in kinds:
            if event.action == "start" and now is not None:
                self._runs[event.service] = now.run
                self._signals.pop(event.service, None)
            return MemberEvent(self._deployment, member, kinds[event.action], event.at, now.pid if now else None)
        return None

    def _exit(self, event: DockerEvent, now: Container | None) -> Exit:
        service = event.service
        by = Book.read(self._directory).asked.get(self._runs.get(service, ""), "")
        is_oom = event.exit_code == KILLED_CODE and (service in self._oom or (now is not None and now.is_oom))
        self._oom.discard(service)
        note = by or _sent(self._signals.get(service, ""))
        return _exit(event.exit_code or 0, bool(by), event.at, note, is_oom=is_oom)


def _sent(signal: str) -> str:
    return f"signal {signal} through Docker" if signal else ""


def _exit(code: int, asked: bool, at: float, note: str, *, is_oom: bool) -> Exit:
    """Docker tells a signal as 128 + its number."""
    is_signal = 128 < code <= 128 + 64
    return Exit(None if is_signal else code, code - 128 if is_signal else None, asked, at, note, is_oom)
