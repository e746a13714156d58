"""Questions to the members, turned into readings. No opinions.

Rules: all members are asked at the same time, each for itself, each with a bounded time; a question that gets no answer
becomes a reading with a failure and never an exception. Questions that only the PD leader answers go to the member that
the PD members themselves name as leader. The data-path question writes, reads back and deletes one key of a reserved
prefix at the end of the key space, always the same key for one prober, so that even a prober that is killed leaves at
most one small key behind.

Not here: when to ask, and what the answers mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from drillyard.clients import calls
from drillyard.clients.calls import CallFailed, Dial
from drillyard.clients.http import HttpClient
from drillyard.clients.pd import PdClient
from drillyard.clients.tikv import Outcome, RawClient, Result
from drillyard.observation import (
    REGION_CHECKS,
    Answer,
    CountSeen,
    DataPathSeen,
    Failure,
    Observation,
    PdHealthSeen,
    PdMemberSeen,
    PdMembersSeen,
    PeerRole,
    PeerSeen,
    Probe,
    ProcessSeen,
    Reading,
    RegionSeen,
    RegionsSeen,
    SelfSeen,
    Started,
    StartedMember,
    StoreSeen,
    StoresSeen,
    TimestampsSeen,
)
from drillyard.topology import Role
from drillyard.wire.keys import PROBE_PREFIX

MOST_REGIONS_NAMED = 5
MOST_REGIONS = 1024  # that one look asks for: PD answers from memory, in some 0.4 MB
T = TypeVar("T")

_TRANSPORT = {calls.REFUSED, calls.TIMED_OUT, calls.BROKEN, calls.STATUS, calls.MALFORMED, calls.NO_LEADER}


class Prober:
    """Asks one started cluster. `nonce` makes its probe key its own; `now` is the clock for the readings; `dial` says
    where the members' addresses are reached."""

    def __init__(
        self,
        started: Started,
        now: Callable[[], float],
        nonce: bytes,
        *,
        timeout_s: float = 0.5,
        dial: Dial = calls.directly,
    ) -> None:
        self._started = started
        self._now = now
        self._timeout_s = timeout_s
        pds = started.of_role(Role.PD)
        self._pds = {member.name: PdClient(member.name, member.address, dial) for member in pds}
        stores = started.of_role(Role.TIKV)
        self._statuses = {member.name: HttpClient(member.status_address, dial) for member in stores}
        self._raw = RawClient([member.address for member in pds], timeout_s=4 * timeout_s, dial=dial)
        self._key = PROBE_PREFIX + nonce
        self._versions: dict[str, tuple[str, str]] = {}
        self._writes = 0
        self._is_key_left = False

    async def close(self) -> None:
        """End every connection; a probe key that a cut-short probe may have left is deleted first."""
        if self._is_key_left:
            await self._raw.delete(self._key)
        self._raw.close()
        for pd in self._pds.values():
            pd.close()
        for status in self._statuses.values():
            status.close()

    # --- the questions, by gate --------------------------------------------------------------------------------------

    async def pd_quorum(self, seen: Observation) -> tuple[Reading, ...]:
        asked = (
            (Probe.PD_MEMBERS, self._members_of),
            (Probe.PD_SELF, self._own_health_of),
            (Probe.PD_HEALTH, self._health_by),
        )
        return await _all(
            [
                self._read(name, probe, partial(_if_running, seen, name, ask, client))
                for name, client in self._pds.items()
                for probe, ask in asked
            ]
        )

    async def timestamps(self, seen: Observation) -> tuple[Reading, ...]:
        name = self._leader(seen)
        return await _all([self._read(name, Probe.TIMESTAMPS, partial(self._timestamps_of, name, _cluster_id(seen)))])

    async def stores_up(self, seen: Observation) -> tuple[Reading, ...]:
        name = self._leader(seen)
        questions = [self._read(name, Probe.STORES, partial(self._stores_by, name))]
        for member, status in self._statuses.items():
            question = partial(_if_running, seen, member, self._status_of, status)
            questions.append(self._read(member, Probe.STORE_SELF, question))
        return await _all(questions)

    async def replicated(self, seen: Observation) -> tuple[Reading, ...]:
        name = self._leader(seen)
        questions = [
            self._read(name, Probe.REGION_COUNT, partial(self._region_count_by, name)),
            self._read(name, Probe.MAX_REPLICAS, partial(self._max_replicas_by, name)),
            *(self._read(name, check, partial(self._region_check_by, name, check)) for check in REGION_CHECKS),
        ]
        return await _all(questions)

    async def data_path(self, _: Observation) -> tuple[Reading, ...]:
        return await _all([self._read("", Probe.DATA_PATH, self._key_round_trip)])

    # --- the questions of survivability ------------------------------------------------------------------------------

    async def regions(self, seen: Observation) -> tuple[Reading, ...]:
        name = self._leader(seen)
        return await _all([self._read(name, Probe.REGIONS, partial(self._regions_by, name))])

    async def pd_voices(self, seen: Observation) -> tuple[Reading, ...]:
        """Who is in PD, and who of them is there, each in its own words. One that is known not to run, or to be paused,
        is not asked."""
        asked = ((Probe.PD_MEMBERS, self._view_of), (Probe.PD_SELF, self._own_health_of))
        return await _all(
            [
                self._read(name, probe, partial(ask, client))
                for name, client in self._pds.items()
                if _may_answer(seen, name)
                for probe, ask in asked
            ]
        )

    async def stores_and_regions(self, seen: Observation) -> tuple[Reading, ...]:
        name = self._leader(seen)
        stores = self._read(name, Probe.STORES, partial(self._stores_by, name))
        return await _all([stores, self._read(name, Probe.REGIONS, partial(self._regions_by, name))])

    def _leader(self, seen: Observation) -> str:
        """The PD member that most of those that answered name as leader; empty when none does."""
        named = [
            view.leader
            for name in self._pds
            if (view := seen.answer(Probe.PD_MEMBERS, name, PdMembersSeen)) is not None and view.leader in self._pds
        ]
        return max(set(named), key=named.count) if named else ""

    # --- one answer each ---------------------------------------------------------------------------------------------

    async def _members_of(self, client: PdClient) -> Answer:
        view = await self._view_of(client)
        if view.leader and any(member.name not in self._versions for member in view.members):
            with contextlib.suppress(CallFailed):  # a version is worth knowing, and proves nothing
                self._versions = await self._versions_by(client)
        listed = []
        for member in view.members:
            version, git_hash = self._versions.get(member.name, (member.version, member.git_hash))
            listed.append(replace(member, version=version, git_hash=git_hash))
        return replace(view, members=tuple(listed))

    async def _view_of(self, client: PdClient) -> PdMembersSeen:
        view = await client.members(timeout_s=self._timeout_s)
        listed = (PdMemberSeen(m.name, tuple(m.client_urls), m.binary_version, m.git_hash) for m in view.members)
        return PdMembersSeen(view.header.cluster_id, view.leader.name, tuple(listed))

    async def _versions_by(self, client: PdClient) -> dict[str, tuple[str, str]]:
        """Version and git hash of each PD member that has published them: a real PD tells them over HTTP only."""
        body = await client.http_members(timeout_s=self._timeout_s)
        return {
            str(_field(member, "name")): (str(member["binary_version"]), str(member.get("git_hash", "")))
            for member in _list(_field(body, "members"))
            if member.get("binary_version")
        }

    async def _own_health_of(self, client: PdClient) -> Answer:
        answer = await client.own_health(timeout_s=self._timeout_s)
        if answer.status == 404:
            raise CallFailed(calls.STATUS, f"{client.address} has no /health (HTTP 404)")
        healthy = answer.status == 200 and str(_field(answer.json(), "health")).lower() == "true"
        return SelfSeen(healthy, "" if healthy else f"HTTP {answer.status}: {answer.text}")

    async def _health_by(self, client: PdClient) -> Answer:
        body = await client.health(timeout_s=self._timeout_s)
        return PdHealthSeen(tuple((str(_field(one, "name")), _field(one, "health") is True) for one in _list(body)))

    async def _timestamps_of(self, name: str, cluster_id: int) -> Answer:
        first, second = await self._pd(name).timestamps(cluster_id, 2, timeout_s=self._timeout_s)
        return TimestampsSeen(first, second)

    async def _stores_by(self, name: str) -> Answer:
        body = await self._pd(name).stores(timeout_s=self._timeout_s)
        return StoresSeen(tuple(_store(entry) for entry in _list(_field(body, "stores"))))

    async def _status_of(self, client: HttpClient) -> Answer:
        answer = await client.get("/status", timeout_s=self._timeout_s)
        return SelfSeen(answer.status == 200, "" if answer.status == 200 else f"HTTP {answer.status}: {answer.text}")

    async def _region_count_by(self, name: str) -> Answer:
        return CountSeen(_int(_field(await self._pd(name).region_count(timeout_s=self._timeout_s), "count")))

    async def _max_replicas_by(self, name: str) -> Answer:
        return CountSeen(_int(_field(await self._pd(name).replication(timeout_s=self._timeout_s), "max-replicas")))

    async def _region_check_by(self, name: str, check: Probe) -> Answer:
        body = await self._pd(name).region_check(check.value, timeout_s=self._timeout_s)
        named = _list(body.get("regions") if isinstance(body, dict) else None)[:MOST_REGIONS_NAMED]
        return CountSeen(_int(_field(body, "count")), tuple(_int(_field(region, "id")) for region in named))

    async def _regions_by(self, name: str) -> Answer:
        body = await self._pd(name).first_regions(MOST_REGIONS + 1, timeout_s=self._timeout_s)
        regions = tuple(_region(entry) for entry in _list(_field(body, "regions")))
        return RegionsSeen(regions[:MOST_REGIONS], is_complete=len(regions) <= MOST_REGIONS)

    def _pd(self, name: str) -> PdClient:
        if not name:
            raise CallFailed(calls.NO_LEADER, "no PD member names a leader to ask")
        return self._pds[name]

    # --- the data path -----------------------------------------------------------------------------------------------

    async def _key_round_trip(self) -> Answer:
        self._writes += 1
        value = b"%d" % self._writes
        self._is_key_left = True
        steps: tuple[tuple[str, Callable[[], Awaitable[Outcome]], bytes | None], ...] = (
            ("write", lambda: self._raw.put(self._key, value), None),
            ("read back", lambda: self._raw.get(self._key), value),
            ("delete", lambda: self._raw.delete(self._key), None),
            ("read after the delete", lambda: self._raw.get(self._key), None),
        )
        outcome = Outcome(Result.OK)
        for step, take, expected in steps:
            outcome = await take()
            store = self._name_of(outcome.store)
            if outcome.kind in _TRANSPORT or outcome.result is Result.UNKNOWN:
                raise CallFailed(outcome.kind, f"{step} of a key{f' at {store}' if store else ''}: {outcome.reason}")
            if not outcome.is_ok:
                return DataPathSeen(outcome.region_id, store, step, outcome.reason)
            if step.startswith("read") and outcome.value != expected:
                return DataPathSeen(outcome.region_id, store, step, f"wanted {expected!r}, got {outcome.value!r}")
        self._is_key_left = False
        return DataPathSeen(outcome.region_id, self._name_of(outcome.store))

    def _name_of(self, address: str) -> str:
        members: tuple[StartedMember, ...] = self._started.members
        return next((member.name for member in members if member.address == address), address)

    # --- readings ----------------------------------------------------------------------------------------------------

    async def _read(self, member: str, probe: Probe, question: Callable[[], Awaitable[Answer]]) -> Reading:
        asked_at = self._now()
        try:
            answer = await question()
        except CallFailed as failed:
            return Reading(member, probe, asked_at, self._now(), failure=Failure(failed.kind, failed.text))
        return Reading(member, probe, asked_at, self._now(), answer)


async def _all(questions: list[Coroutine[Any, Any, Reading]]) -> tuple[Reading, ...]:
    return tuple(await asyncio.gather(*questions))


async def _if_running(seen: Observation, member: str, ask: Callable[[T], Awaitable[Answer]], client: T) -> Answer:
    """The member's answer, unless its process is known not to run: whoever answers there then is somebody else."""
    process = seen.answer(Probe.PROCESS, member, ProcessSeen)
    if process is not None and not process.running:
        raise CallFailed(calls.NOT_RUNNING, "its process does not run")
    return await ask(client)


def _may_answer(seen: Observation, member: str) -> bool:
    process = seen.answer(Probe.PROCESS, member, ProcessSeen)
    return process is None or (process.running and not process.paused)


def _cluster_id(seen: Observation) -> int:
    """The cluster id that a PD member gave; 0 when none did."""
    views = (seen.answer(Probe.PD_MEMBERS, member.name, PdMembersSeen) for member in seen.started.of_role(Role.PD))
    return next((view.cluster_id for view in views if view is not None), 0)


# --- bodies: anything may be in them ---------------------------------------------------------------------------------


def _store(entry: Any) -> StoreSeen:
    store, status = _field(entry, "store"), _field(entry, "status")
    status = status if isinstance(status, dict) else {}
    return StoreSeen(
        store_id=_int(_field(store, "id")),
        address=str(_field(store, "address")),
        state=str(_field(store, "state_name")),
        last_heartbeat=_int(store.get("last_heartbeat", 0)) / 1e9,
        leader_count=_int(status.get("leader_count", 0)),
        region_count=_int(status.get("region_count", 0)),
        version=str(store.get("version", "")),
        git_hash=str(store.get("git_hash", "")),
        capacity=_size(status.get("capacity")),
        available=_size(status.get("available")),
    )


def _region(entry: Any) -> RegionSeen:
    region_id, leader = _int(_field(entry, "id")), entry.get("leader")
    return RegionSeen(
        region_id=region_id,
        peers=tuple(_peer(peer) for peer in _list(_field(entry, "peers"))),
        leader_store=_int(leader.get("store_id", 0)) if isinstance(leader, dict) else 0,
        pending=tuple(_peer(peer).peer_id for peer in _list(entry.get("pending_peers"))),
        down=tuple(_peer(_field(peer, "peer")).peer_id for peer in _list(entry.get("down_peers"))),
    )


def _peer(entry: Any) -> PeerSeen:
    try:
        role = PeerRole(_field(entry, "role_name"))
    except ValueError as error:
        raise CallFailed(calls.MALFORMED, f"the answer holds a peer with {error}") from error
    return PeerSeen(_int(_field(entry, "id")), _int(_field(entry, "store_id")), role)


def _size(text: Any) -> int:
    """Bytes of a size as PD writes it ("98.3GiB"); 0 for anything else."""
    found = re.fullmatch(r"([0-9.]+)([KMGTP]?)i?B", str(text))
    return int(float(found[1]) * 1024 ** " KMGTP".index(found[2] or " ")) if found else 0


def _field(body: Any, name: str) -> Any:
    if not isinstance(body, dict) or name not in body:
        raise CallFailed(calls.MALFORMED, f"the answer has no {name!r}")
    return body[name]


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise CallFailed(calls.MALFORMED, "the answer holds no list where one belongs")
    return value


def _int(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise CallFailed(calls.MALFORMED, f"the answer holds {value!r} where a number belongs")
    return value
