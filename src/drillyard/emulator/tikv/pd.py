"""A store's line to PD: finds the leader, follows it, and asks again until PD answers.

Rules: a request goes to the PD member that leads, as PD itself names it. When that member does not answer, does not
lead, or failed at its own storage, all known members are asked at once who does, every 50 ms, for as long as it takes;
only a PD of another cluster ends the attempts. What PD answers, other errors in the header included, is the caller's to
judge. `watch` notices a new leader even while the old one only hangs, because every open stream has to move to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import count
from typing import TypeVar, cast
from urllib.parse import urlsplit

from google.protobuf.message import Message
from msgspec import Struct

from drillyard.emulator.logs import Log
from drillyard.wire import pdpb, services
from drillyard.wire.method import Method
from drillyard.wire.rpc import Channel, RpcError, Status

RETRY_S = 0.05
DISCOVER_TIMEOUT_S = 1.0
CALL_TIMEOUT_S = 3.0
WATCH_S = 1.0

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class PdRefused(Exception):
    """PD will not talk to this store: it is of another cluster."""


class Endpoint(Struct, frozen=True):
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def endpoint_of(text: str) -> Endpoint:
    """From `host:port` or a URL; raises ValueError for anything else."""
    parts = urlsplit(text if "//" in text else f"//{text}")
    if not parts.hostname or parts.port is None:
        raise ValueError(f"{text!r} is not host:port")
    return Endpoint(parts.hostname, parts.port)


class PdClient:
    def __init__(self, endpoints: Iterable[Endpoint], log: Log) -> None:
        self.cluster_id = 0
        self.leader: Endpoint | None = None
        self.leader_changed = asyncio.Event()  # set on each change; who waits for it clears it
        self._endpoints = list(endpoints)
        self._channels: dict[Endpoint, Channel] = {}
        self._log = log
        self._suspect: Endpoint | None = None  # the leader that did not answer
        self._answered_at = -WATCH_S
        self._strangers: list[int] = []  # the other clusters whose members answered last time

    async def connect(self) -> None:
        """Returns when a leader is known."""
        complained = False
        while self.leader is None and not await self.discover():
            if not complained:
                self._log.warn("failed to connect to PD, trying again", endpoints=",".join(map(str, self._endpoints)))
                complained = True
            await asyncio.sleep(RETRY_S)

    async def call(self, method: Method[Request, Response], request: Request) -> Response:
        """Asks the leader until it answers."""
        while True:
            await self.connect()
            leader = self.leader
            if leader is None:
                continue
            header = getattr(request, "header", None)
            if header is not None:
                header.cluster_id = self.cluster_id
            try:
                answer = await self.channel(leader).unary(method, request, timeout_s=CALL_TIMEOUT_S)
                if not _is_passing(answer):
                    self._answered_at = asyncio.get_running_loop().time()
                    return answer
                await asyncio.sleep(RETRY_S)
            except RpcError as error:
                if error.status is Status.FAILED_PRECONDITION and "cluster id" in error.message:
                    raise PdRefused(error.message) from error
                if error.status in (Status.UNIMPLEMENTED, Status.INVALID_ARGUMENT):
                    raise
                self._log.warn("request to PD failed, trying again", method=method.name, pd=leader, err=error)
                self.doubt(leader)
                await asyncio.sleep(RETRY_S)

    async def attempt(self, method: Method[Request, Response], request: Request) -> Response | None:
        """Asks once; None if PD does not answer, or answers with an error: for what comes up again if it fails."""
        leader = self.leader
        if leader is None:
            return None
        header: pdpb.RequestHeader = getattr(request, "header")  # noqa: B009  # every request to PD has one
        header.cluster_id = self.cluster_id
        try:
            answer = await self.channel(leader).unary(method, request, timeout_s=CALL_TIMEOUT_S)
            error = error_of(answer)
            reason = error.message if error is not None else ""
        except RpcError as failure:
            reason = str(failure)
        if reason:
            self._log.warn("request to PD failed", method=method.name, pd=leader, err=reason)
            return None
        return answer

    def channel(self, endpoint: Endpoint) -> Channel:
        if endpoint not in self._channels:
            self._channels[endpoint] = Channel(endpoint.host, endpoint.port)
        return self._channels[endpoint]

    def doubt(self, leader: Endpoint) -> None:
        """This leader did not answer, or said that it does not lead."""
        if self.leader == leader:
            self.leader = None
            self._suspect = leader

    async def watch(self) -> None:
        """Follows the leader for ever.

        A leader that has just answered as such is one. Else one of the others is asked, each in its turn: it knows when
        another leads, and it answers when the leader is what stands still. Only if it does not say what is believed
        already, all are asked.
        """
        for turn in count():
            await asyncio.sleep(WATCH_S)
            if asyncio.get_running_loop().time() - self._answered_at < WATCH_S:
                continue
            others = [endpoint for endpoint in self._endpoints if endpoint != self.leader]
            if not others or await self._ask(others[turn % len(others)]) != self.leader:
                await self.discover()

    async def discover(self) -> bool:
        """Asks every known member who leads; True if one of them knew."""
        asked = [asyncio.create_task(self._ask(endpoint)) for endpoint in self._endpoints]
        leaders: list[Endpoint] = []
        self._strangers.clear()
        try:
            for answer in asyncio.as_completed(asked):
                named = await answer
                if named is None:
                    continue
                leaders.append(named)
                if named not in (self._suspect, self.leader) or len(leaders) * 2 > len(asked):
                    break
        finally:
            for task in asked:
                task.cancel()
        if not leaders:
            if len(self._strangers) * 2 > len(self._endpoints):
                others = ", ".join(str(cluster_id) for cluster_id in sorted(set(self._strangers)))
                raise PdRefused(f"cluster ID mismatch: this store is of cluster {self.cluster_id}, PD of {others}")
            return False
        self._follow(leaders[-1])
        return True

    def _follow(self, leader: Endpoint) -> None:
        if leader == self.leader:
            return
        if leader != self._suspect or self.leader is not None:
            self._log.info("connected to PD leader", endpoints=leader)
        self.leader = leader
        self._suspect = None
        self.leader_changed.set()

    async def _ask(self, endpoint: Endpoint) -> Endpoint | None:
        request = pdpb.GetMembersRequest()
        try:
            answer = await self.channel(endpoint).unary(services.PD.GetMembers, request, timeout_s=DISCOVER_TIMEOUT_S)
        except RpcError:
            return None
        return self._learn(answer)

    def _learn(self, answer: pdpb.GetMembersResponse) -> Endpoint | None:
        if not answer.header.cluster_id or not answer.leader.client_urls:
            return None
        if self.cluster_id and answer.header.cluster_id != self.cluster_id:
            self._strangers.append(answer.header.cluster_id)  # perhaps one that took over a port
            return None
        self.cluster_id = answer.header.cluster_id
        for member in answer.members:
            for url in member.client_urls:
                endpoint = endpoint_of(url)
                if endpoint not in self._endpoints:
                    self._endpoints.append(endpoint)
        return endpoint_of(answer.leader.client_urls[0])

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()


def _is_passing(answer: Message) -> bool:
    """Whether PD's own storage was in the way, as when two stores bootstrap at once: nothing was decided."""
    error = error_of(answer)
    return error is not None and error.type == pdpb.ErrorType.UNKNOWN and error.message.startswith("[PD:etcd:")


def error_of(answer: Message) -> pdpb.Error | None:
    """What PD's header says went wrong; None if nothing did."""
    header = cast(pdpb.ResponseHeader, getattr(answer, "header"))  # noqa: B009  # every answer of PD has one
    return header.error if header.HasField("error") and header.error.type != pdpb.ErrorType.OK else None
