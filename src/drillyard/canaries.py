"""Canaries: clients that ask for one service in a closed loop, whatever is done to the members, and keep their history;
and a watch over what PD says meanwhile. No opinions.

Rules: a canary has one write in flight and rests for its pace after each. When a write fails, or is late, the canary
knocks at every place where the service could be, all at once and each at the same pace; the first that answers gets the
next write. So a member that hangs hides nothing, and the service is found again without PD, within one pace of its
return. A write that is late is waited for beside that, and given up only when the service is found elsewhere or its
time is over.

A region's canary writes increasing numbers to one key inside the region: under the reserved prefix if the region holds
that, else just behind the region's start. A knock is a write to a second key: as good a write as any, but one that can
be under way many times at once and leaves the first key as it was, so that this is read before it is written again,
and shows what was lost. Whoever makes a canary deletes both keys.

Not here: when to begin and end, and what the histories mean.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from drillyard.clients import calls
from drillyard.clients.calls import CallFailed, Dial
from drillyard.clients.pd import PdClient
from drillyard.clients.tikv import Route, Stores
from drillyard.observation import Act, Attempt, PdChange, PdWord, Result
from drillyard.wire import kvrpcpb, metapb, services
from drillyard.wire.keys import PROBE_PREFIX

LATE_S = 0.1  # a write without an answer for so long may be at a member that hangs
ATTEMPT_S = 1.0  # and after so long it is given up
ROUND_S = 1.0  # of a search; the next one asks the places that there are by then
INNER_PREFIX = b"\x00drillyard/probe/"  # behind the start of a region that does not hold the reserved prefix
NUMBERS, KNOCKS = b"/0", b"/1"  # how the two keys end
REGION_S = 0.02  # between two questions to PD about one region
LEADER_S = 0.05  # and to one PD member about the leader
STORES_S = 0.1
STALE_S = 1.0  # a PD member's word about its leader counts for so long
LOGICAL_BITS = 18

Place = TypeVar("Place")


def keys_in(start: bytes, end: bytes, nonce: bytes) -> tuple[bytes, bytes] | None:
    """Two keys of ours inside a region, for numbers and for knocks; None when the region is too narrow for them."""
    for stem in (PROBE_PREFIX + nonce, start + INNER_PREFIX + nonce):
        numbers, knocks = stem + NUMBERS, stem + KNOCKS
        if start <= numbers and (not end or knocks < end):
            return numbers, knocks
    return None


class Canary(ABC, Generic[Place]):
    """One service in a closed loop."""

    asks: Act  # what it counts as service
    searches: Act  # what it finds the service with

    def __init__(self, now: Callable[[], float], pace_s: float) -> None:
        self.history: list[Attempt] = []
        self._now = now
        self._pace_s = pace_s
        self._number = 0
        self._is_ended = False
        self._is_late = False
        self._place: Place | None = None

    @property
    def is_served(self) -> bool:
        """Whether it knows a place where the service is, and that place is not late."""
        return self._place is not None and not self._is_late

    def end(self) -> None:
        """Let `run` return once what it has in flight is answered, or its time is over."""
        self._is_ended = True

    async def run(self) -> None:
        while not self._is_ended:
            if self._place is None:
                self._place = await self._find(self._places())
                if self._place is not None and not await self._look_back(self._place):
                    self._place = None
            elif await self._serve(self._place):
                await asyncio.sleep(self._pace_s)

    async def look(self, timeout_s: float) -> bool:
        """Look back once more, for the history's last word; whether that could be done."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while True:
                    place = await self._find(self._places())
                    if place is not None and await self._look_back(place):
                        return True
        return False

    @abstractmethod
    def _places(self) -> Sequence[Place]:
        """Where the service could be now."""

    @abstractmethod
    def _name_of(self, place: Place) -> str: ...

    async def _look_back(self, place: Place) -> bool:
        """See what is left of what was acknowledged, before anything is added to it. Nothing to see: true."""
        return True

    @abstractmethod
    async def _ask(self, act: Act, place: Place, number: int) -> tuple[Result, int]:
        """One attempt: what it came to, and the number that it wrote, read or was granted."""

    async def _serve(self, place: Place) -> bool:
        """One request for the service, and if it is late, a search beside it. False when the place is not good."""
        asking = asyncio.ensure_future(self._request(place))
        found = None
        try:
            await asyncio.wait([asking], timeout=LATE_S)
            if not asking.done():
                self._is_late = True
                others = [other for other in self._places() if other != place]
                found = await self._find(others, beside=asking)
            if found is None or asking.done():
                is_good = await asking
                self._place = place if is_good else None
                return is_good
        finally:
            self._is_late = False
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        self._place = found if await self._look_back(found) else None
        return False

    async def _find(self, places: Iterable[Place], beside: asyncio.Future[bool] | None = None) -> Place | None:
        """The first place that serves; None when the round is over before, or what goes on beside it is done."""
        asking = {asyncio.ensure_future(self._until_good(place)): place for place in places}
        waited: list[asyncio.Future[bool]] = [*asking, *([beside] if beside is not None else [])]
        if not waited:
            await asyncio.sleep(self._pace_s)
            return None
        try:
            done, _ = await asyncio.wait(waited, timeout=ROUND_S, return_when=asyncio.FIRST_COMPLETED)
            return next((place for task, place in asking.items() if task in done), None)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _until_good(self, place: Place) -> bool:
        """Ask this place until it serves. Only that is worth a record: until then nobody was served anyway."""
        while True:
            began = self._now()
            result, number = await self._ask(self.searches, place, 0)
            if result is Result.OK:
                self._note(self.searches, began, result, number, place)
                return True
            await asyncio.sleep(self._pace_s)

    async def _request(self, place: Place) -> bool:
        self._number += 1
        return await self._recorded(self.asks, place, self._number)

    async def _recorded(self, act: Act, place: Place, number: int) -> bool:
        """One attempt that is put down whatever becomes of it, also if it is given up."""
        began, result = self._now(), Result.UNKNOWN
        try:
            result, number = await self._ask(act, place, number)
        finally:
            self._note(act, began, result, number, place)
        return result is Result.OK

    def _note(self, act: Act, began: float, result: Result, number: int, place: Place) -> None:
        self.history.append(Attempt(act, began, self._now(), result, number, self._name_of(place)))


@dataclass(frozen=True, slots=True)
class Stage:
    """What all canaries of one measurement share."""

    stores: Stores
    addresses: Mapping[int, str]  # of the stores, by their id
    names: Mapping[str, str]  # of the members, by the addresses of their stores
    now: Callable[[], float]
    pace_s: float


class RegionCanary(Canary[int]):
    """Writes to a region. A place is a store's id."""

    asks, searches = Act.WRITE, Act.KNOCK

    def __init__(self, stage: Stage, region: metapb.Region, leader: int, keys: tuple[bytes, bytes]) -> None:
        super().__init__(stage.now, stage.pace_s)
        self.region_id = region.id
        self.keys = keys
        self.key, self._knocks = keys
        self._stage = stage
        self._region = region
        self._place = leader or None

    def learn(self, region: metapb.Region) -> None:
        """PD's newest word about the region that holds the key."""
        self._region = region

    def _places(self) -> Sequence[int]:
        return [peer.store_id for peer in self._region.peers]

    def _name_of(self, place: int) -> str:
        address = self._stage.addresses.get(place, "")
        return self._stage.names.get(address, address or f"store {place}")

    async def _ask(self, act: Act, place: int, number: int) -> tuple[Result, int]:
        peer = next((peer for peer in self._region.peers if peer.store_id == place), None)
        address = self._stage.addresses.get(place)
        if peer is None or address is None:
            return Result.FAILED, number
        route = Route(self._region.start_key, self._region.end_key, self._region, peer, address)
        if act is Act.READ:
            read = kvrpcpb.RawGetRequest(key=self.key)
            outcome, answer = await self._stage.stores.attempt(services.TIKV.RawGet, read, route, is_write=False)
            return Result(outcome.result.value), int(answer.value or b"0") if answer is not None else 0
        write = kvrpcpb.RawPutRequest(key=self.key if act is Act.WRITE else self._knocks, value=b"%d" % number)
        outcome, _ = await self._stage.stores.attempt(services.TIKV.RawPut, write, route, is_write=True)
        return Result(outcome.result.value), number

    async def _look_back(self, place: int) -> bool:
        return await self._recorded(Act.READ, place, 0)


class TimestampCanary(Canary[str]):
    """Timestamps, one at a time. A place is a PD member's name."""

    asks = searches = Act.TIMESTAMP

    def __init__(self, pd: PdWatch, now: Callable[[], float], pace_s: float) -> None:
        super().__init__(now, pace_s)
        self._pd = pd
        self._place = pd.leader or None

    def _places(self) -> Sequence[str]:
        return list(self._pd.clients)

    def _name_of(self, place: str) -> str:
        return place

    async def _ask(self, act: Act, place: str, number: int) -> tuple[Result, int]:
        try:
            granted = await self._pd.clients[place].timestamps(self._pd.cluster_id, 1, timeout_s=ATTEMPT_S)
        except CallFailed:
            return Result.FAILED, 0
        physical, logical = granted[0]
        return Result.OK, physical << LOGICAL_BITS | logical


class PdWatch:
    """What PD says, and when that changed: who leads PD and the canaries' regions, and the states of the stores."""

    def __init__(self, pds: Mapping[str, str], names: Mapping[str, str], now: Callable[[], float], dial: Dial) -> None:
        """`pds`: the client addresses of the PD members; `names`: of the stores' members, by their address."""
        self.clients = {name: PdClient(name, address, dial) for name, address in pds.items()}
        self.cluster_id = 0
        self.leader = ""
        self.addresses: dict[int, str] = {}
        self.changes: list[PdChange] = []
        self._names = names
        self._now = now
        self._views: dict[str, tuple[float, str]] = {}
        self._said: dict[tuple[PdWord, str], str] = {}

    def close(self) -> None:
        for client in self.clients.values():
            client.close()

    async def begin(self) -> None:
        """The first picture: leader, cluster and stores. Raises CallFailed."""
        await asyncio.gather(*(self._ask_leader(client) for client in self.clients.values()))
        await self._ask_stores()

    async def regions(self, limit: int) -> tuple[Sequence[tuple[metapb.Region, int]], int]:
        """The first regions, each with the store of its leader, and how many there are in all. Raises CallFailed."""
        leader = self._leading()
        scanned = await leader.scan_regions(self.cluster_id, limit, timeout_s=ATTEMPT_S)
        if scanned.header.HasField("error"):
            raise CallFailed(calls.STATUS, f"PD: {scanned.header.error.message}")
        found = [(entry.region, entry.leader.store_id) for entry in scanned.regions]
        body = await leader.region_count(timeout_s=ATTEMPT_S)
        count = body.get("count") if isinstance(body, dict) else None
        return found, max(count if isinstance(count, int) else 0, len(found))

    def member_of(self, store_id: int) -> str:
        address = self.addresses.get(store_id, "")
        return self._names.get(address, address)

    async def follow(self, canaries: Sequence[RegionCanary]) -> None:
        """Ask on and on, until cancelled. One that hangs holds up only itself."""
        async with asyncio.TaskGroup() as group:
            for client in self.clients.values():
                group.create_task(_repeat(partial(self._ask_leader, client), LEADER_S))
            group.create_task(_repeat(self._ask_stores, STORES_S))
            group.create_task(_repeat(partial(self._ask_regions, canaries), REGION_S * max(1, len(canaries))))

    async def _ask_leader(self, client: PdClient) -> None:
        with contextlib.suppress(CallFailed):
            view = await client.members(timeout_s=ATTEMPT_S)
            self.cluster_id = view.header.cluster_id or self.cluster_id
            if view.leader.name:
                self._views[client.name] = self._now(), view.leader.name
                self._elect()

    def _elect(self) -> None:
        """The leader is whom most members name that spoke of late; in doubt it is who it was."""
        now = self._now()
        named = [leader for at, leader in self._views.values() if at > now - STALE_S]
        most = max(named, key=lambda leader: (named.count(leader), leader == self.leader))
        if most in self.clients:
            self.leader = most
            self._hear(PdWord.PD_LEADER, "", most)

    async def _ask_stores(self) -> None:
        body = await self._leading().stores(timeout_s=ATTEMPT_S)
        try:
            told = [entry["store"] for entry in body["stores"]]
            stores = [(int(store["id"]), str(store["address"]), str(store["state_name"])) for store in told]
        except (KeyError, TypeError, ValueError) as error:
            raise CallFailed(calls.MALFORMED, f"PD's list of stores lacks {error}") from error
        for store_id, address, state in stores:
            self.addresses[store_id] = address
            self._hear(PdWord.STORE_STATE, self.member_of(store_id), state)

    async def _ask_regions(self, canaries: Sequence[RegionCanary]) -> None:
        leader = self._leading()
        for canary in canaries:
            found = await leader.region(self.cluster_id, canary.key, timeout_s=ATTEMPT_S)
            if found.region.id:
                canary.learn(found.region)
            if found.leader.id:
                self._hear(PdWord.REGION_LEADER, str(canary.region_id), self.member_of(found.leader.store_id))

    def _leading(self) -> PdClient:
        if not self.leader:
            raise CallFailed(calls.NO_LEADER, "no PD member names a leader")
        return self.clients[self.leader]

    def _hear(self, word: PdWord, subject: str, said: str) -> None:
        before = self._said.get((word, subject))
        self._said[word, subject] = said
        if before is not None and before != said:
            self.changes.append(PdChange(self._now(), word, subject, before, said))


async def _repeat(ask: Callable[[], Awaitable[None]], pause_s: float) -> None:
    """Ask for ever; a question without an answer is asked again."""
    while True:
        with contextlib.suppress(CallFailed):
            await ask()
        await asyncio.sleep(pause_s)
