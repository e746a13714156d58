"""What a store knows of the other stores while replicas sleep: who is alive, and whether both agree on who sleeps.

A sleeping replica hears nothing from its group, so its store listens for it. Stores send each other a *pulse* each
heartbeat interval as long as sleeping replicas connect them: one for all regions together.

Rules:
- A store that was not heard (no pulse, no message) for an election timeout is *silent*. A connection to it that broke
  makes it doubtful: it is asked, and taken for silent after two heartbeat intervals without an answer.
- A pulse carries a digest of the sleeping regions that its sender leads. The receiver has a digest of those whose
  sleep it trusts to the sender. While the two differ, somebody sleeps under a leader that is awake, deposed or
  restarted; this is normal for moments. When they have not agreed for an election timeout, the store is asked which of
  the regions it does not lead, and those are to be woken. A restarted store, which leads nothing, denies them all.
- A pulse that speaks of replicas asleep where none is gets a pulse back: the leader may take a store for silent that
  holds nothing, has nobody to send pulses to, and is to be given a replica.
- A store that begins sends pulses to all for an election timeout, so that whoever sleeps without its peers wakes.
- Time is counted in this store's ticks. It knows regions by number and term only, and wakes nobody itself: `tick` says
  whom to.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from msgspec import Struct, field

from drillyard.emulator.raft.types import Options
from drillyard.emulator.store.region import scattered

DOUBT_INTERVALS = 2  # heartbeat intervals without a good pulse after a connection broke


class Pulse(Struct, frozen=True):
    """A sign of life from one store to another."""

    sender: int
    to: int
    digest: int  # of the sleeping regions that the sender leads and of which the receiver has a peer
    trusted: tuple[int, ...] = ()  # a question: which of these regions (their marks) does the receiver not lead?
    denied: tuple[int, ...] | None = None  # the answer


class Trouble(Enum):
    SILENT = "silent"  # the store is not heard any more
    DOWN = "down"  # it has been silent for so long that PD is to hear of it


class Alarm(Struct, frozen=True):
    """Sleeping regions that are concerned by the trouble of one store."""

    trouble: Trouble
    led_there: tuple[int, ...]
    led_here: tuple[int, ...]


class _Neighbour(Struct):
    heard: int
    agreed: int  # when a pulse had the same digest as we
    is_silent: bool = False
    doubted: int | None = None  # since when
    has_question: bool = False
    is_missing_us: bool = False  # it believes that replicas sleep here under it
    led_there: dict[int, int] = field(default_factory=dict)  # sleeping region -> its mark
    led_here: dict[int, int] = field(default_factory=dict)
    digest_there: int = 0
    digest_here: int = 0

    @property
    def is_connected(self) -> bool:
        return bool(self.led_there or self.led_here)


class Neighbours:
    def __init__(self, store_id: int, options: Options, down_ticks: int) -> None:
        self.ticks = 0
        self._store_id = store_id
        self.reconfigure(options, down_ticks)
        self._known: dict[int, _Neighbour] = {}
        self._stores_of: dict[int, tuple[int, ...]] = {}  # sleeping region -> the stores that it connects us with

    def reconfigure(self, options: Options, down_ticks: int) -> None:
        self._election_ticks = options.election_ticks
        self._heartbeat_ticks = options.heartbeat_ticks
        self._down_ticks = down_ticks

    # ---- signs of life ----

    def hear(self, store_id: int) -> tuple[int, ...]:
        """Something came from the store. If it had been silent: the regions that sleep here without its peers."""
        neighbour = self._neighbour(store_id)
        neighbour.heard = self.ticks
        if not neighbour.is_silent:
            return ()
        neighbour.is_silent = False
        neighbour.agreed = self.ticks
        return tuple(neighbour.led_here)

    def greet(self, store_ids: Iterable[int]) -> None:
        """This store has just begun, and those have replicas that may sleep without the ones here."""
        for store_id in store_ids:
            if store_id != self._store_id:
                self._neighbour(store_id)

    def take(self, pulse: Pulse) -> tuple[int, ...]:
        """A pulse came; the answer is as that of `hear`."""
        neighbour = self._neighbour(pulse.sender)
        if pulse.digest == neighbour.digest_there:
            neighbour.agreed = self.ticks
        elif not neighbour.is_connected:
            neighbour.is_missing_us = True
        if pulse.denied is not None:
            neighbour.agreed = self.ticks
            neighbour.doubted = None
        return self.hear(pulse.sender)

    def denied_by(self, pulse: Pulse) -> tuple[int, ...]:
        """The regions that sleep here in trust of the store, which says that it does not lead them."""
        if not pulse.denied:
            return ()
        denied = frozenset(pulse.denied)
        return tuple(region for region, mark in self._neighbour(pulse.sender).led_there.items() if mark in denied)

    def answer(self, pulse: Pulse, led: Iterable[tuple[int, int]]) -> Pulse:
        """To a question, by all regions that are led here, with their terms."""
        denied = frozenset(pulse.trusted) - {mark_of(region_id, term) for region_id, term in led}
        digest = self._neighbour(pulse.sender).digest_here
        return Pulse(self._store_id, pulse.sender, digest, denied=tuple(sorted(denied)))

    def doubt(self, store_id: int) -> None:
        """A connection to the store broke, or cannot be made."""
        neighbour = self._neighbour(store_id)
        if not neighbour.is_silent and neighbour.doubted is None:
            neighbour.doubted = self.ticks
            neighbour.has_question = True

    def silence(self, store_id: int) -> int:
        """For how many ticks the store has not been heard."""
        return self.ticks - self._neighbour(store_id).heard

    def is_silent(self, store_id: int) -> bool:
        return self._neighbour(store_id).is_silent

    def is_doubtful(self, store_id: int) -> bool:
        """Whether something speaks for the store being gone, though it is too early to say so."""
        neighbour = self._neighbour(store_id)
        late = self.ticks - neighbour.heard > DOUBT_INTERVALS * self._heartbeat_ticks
        return neighbour.is_silent or neighbour.doubted is not None or late

    def _neighbour(self, store_id: int) -> _Neighbour:
        neighbour = self._known.get(store_id)
        if neighbour is None:
            neighbour = self._known[store_id] = _Neighbour(self.ticks, self.ticks)
        return neighbour

    # ---- who sleeps ----

    def trust(self, region_id: int, term: int, leader_store: int) -> None:
        """A replica here sleeps, and a peer on that store leads."""
        neighbour = self._neighbour(leader_store)
        if not neighbour.led_there:
            neighbour.agreed = self.ticks
        mark = mark_of(region_id, term)
        neighbour.led_there[region_id] = mark
        neighbour.digest_there ^= mark
        self._stores_of[region_id] = (leader_store,)

    def lead(self, region_id: int, term: int, stores: Iterable[int]) -> None:
        """The leader here sleeps, and so do its peers on those stores, as far as they are alive."""
        mark = mark_of(region_id, term)
        self._stores_of[region_id] = tuple(store for store in stores if store != self._store_id)
        for store_id in self._stores_of[region_id]:
            neighbour = self._neighbour(store_id)
            neighbour.led_here[region_id] = mark
            neighbour.digest_here ^= mark

    def leave(self, region_id: int) -> None:
        """The replica here is awake, or gone."""
        for store_id in self._stores_of.pop(region_id, ()):
            neighbour = self._known[store_id]
            neighbour.digest_there ^= neighbour.led_there.pop(region_id, 0)
            neighbour.digest_here ^= neighbour.led_here.pop(region_id, 0)

    # ---- time ----

    def tick(self) -> list[Alarm]:
        self.ticks += 1
        return [alarm for neighbour in self._known.values() if (alarm := self._look_at(neighbour)) is not None]

    def _look_at(self, neighbour: _Neighbour) -> Alarm | None:
        silence = self.ticks - neighbour.heard
        if neighbour.is_silent:
            if silence != self._down_ticks:
                return None
            return Alarm(Trouble.DOWN, (), tuple(neighbour.led_here))
        patience = DOUBT_INTERVALS * self._heartbeat_ticks
        is_given_up = neighbour.doubted is not None and self.ticks - neighbour.doubted >= patience
        if is_given_up or silence > self._election_ticks:
            neighbour.is_silent, neighbour.doubted = True, None
            return Alarm(Trouble.SILENT, tuple(neighbour.led_there), tuple(neighbour.led_here))
        if neighbour.led_there and self.ticks - neighbour.agreed > self._election_ticks:
            neighbour.agreed = self.ticks
            neighbour.has_question = True
        return None

    def pulses(self) -> list[Pulse]:
        """The pulses that are due in this tick."""
        is_time = self.ticks % self._heartbeat_ticks == 0
        is_new = self.ticks <= self._election_ticks
        pulses = []
        for store_id, neighbour in self._known.items():
            is_asked, neighbour.has_question = neighbour.has_question and neighbour.is_connected, False
            if is_asked or (is_time and (neighbour.is_connected or neighbour.is_missing_us or is_new)):
                neighbour.is_missing_us = False
                trusted = tuple(neighbour.led_there.values()) if is_asked else ()
                pulses.append(Pulse(self._store_id, store_id, neighbour.digest_here, trusted))
        return pulses


def mark_of(region_id: int, term: int) -> int:
    """A number that stands for the region led in that term; marks are gathered by exclusive or."""
    return scattered(region_id, term)
