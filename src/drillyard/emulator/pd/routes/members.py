"""PD's own members over HTTP: who they are, who leads, and whether they answer.

Rules: health is what the members say when they are asked now; the rest is the replicated state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from drillyard.emulator.http import HttpRequest, HttpResponse, error_response
from drillyard.emulator.pd import views
from drillyard.emulator.pd.forward import Unanswered, ask
from drillyard.emulator.pd.member import PdMember, split_url
from drillyard.emulator.pd.routes.answers import V1, Refused, Room, Route, answer_json, bad_number, number, read_object
from drillyard.emulator.raft.types import ProposalDropped
from drillyard.emulator.version import EMULATED_VERSION, GIT_HASH
from drillyard.wire import drillpb
from drillyard.wire.rpc import RpcError

HEALTH_S = 1.0
HAND_OVER_S = 5.0  # as long as the real one tries


class MemberRoutes(Room):
    def __init__(self, member: PdMember, started_s: int) -> None:
        super().__init__(member)
        self._started_s = started_s

    def routes(self) -> Sequence[Route]:
        return (
            Route("GET", "/pd/ping", lambda request: HttpResponse()),
            Route("GET", "/pd/health", self._get_health),
            Route("GET", f"{V1}/ping", lambda request: HttpResponse()),
            Route("GET", f"{V1}/health", self._get_health),
            Route("GET", f"{V1}/members", self._get_members),
            Route("DELETE", f"{V1}/members/name/{{name}}", self._remove_by_name),
            Route("DELETE", f"{V1}/members/id/{{id}}", self._remove_by_id),
            Route("POST", f"{V1}/members/name/{{name}}", self._set_properties),
            Route("GET", f"{V1}/leader", self._get_leader),
            Route("POST", f"{V1}/leader/resign", self._resign),
            Route("POST", f"{V1}/leader/transfer/{{name}}", self._transfer),
            Route("GET", f"{V1}/version", self._get_version),
            Route("GET", f"{V1}/status", self._get_status),
        )

    def _get_version(self, request: HttpRequest) -> HttpResponse:
        return answer_json({"version": f"v{EMULATED_VERSION}", "build_time": "", "hash": "", "branch": ""})

    def _get_status(self, request: HttpRequest) -> HttpResponse:
        status = {
            "build_ts": "None",
            "version": f"v{EMULATED_VERSION}",
            "git_hash": GIT_HASH,
            "start_timestamp": self._started_s,
        }
        return answer_json(status)

    def _get_members(self, request: HttpRequest) -> HttpResponse:
        member = self._member
        return answer_json(views.members(member.records(), self._cluster, member.leader()))

    def _get_leader(self, request: HttpRequest) -> HttpResponse:
        leader = self._member.leader()
        return error_response("no leader", 503) if leader is None else answer_json(views.leader(leader))

    async def _get_health(self, request: HttpRequest) -> HttpResponse:
        """Asks every member, itself included, whether it answers."""
        records = self._member.records()
        answers = await asyncio.gather(*(self._is_healthy(record) for record in records))
        healthy = {record.id for record, is_healthy in zip(records, answers, strict=True) if is_healthy}
        return answer_json(views.health(records, healthy))

    async def _is_healthy(self, record: drillpb.PdMember) -> bool:
        if record.id == self._member.identity.record.id:
            return True
        if not record.client_urls:
            return False
        headers = {"host": "localhost", "pd-allow-follower-handle": "true"}
        ping = HttpRequest("GET", "/pd/api/v1/ping", "/pd/api/v1/ping", {}, headers)
        try:
            return (await ask(split_url(record.client_urls[0]), ping, HEALTH_S)).status == 200
        except Unanswered:
            return False

    # ---- entering, leaving and leading ----

    def _id_of(self, name: str) -> int:
        member_id = next((each.id for each in self._member.records() if each.name == name), 0)
        if not member_id:
            raise Refused(answer_json(f"not found, pd: {name}", 404))
        return member_id

    async def _remove_by_name(self, request: HttpRequest) -> HttpResponse:
        name = request.params["name"]
        return await self._remove(self._id_of(name), name)

    async def _remove_by_id(self, request: HttpRequest) -> HttpResponse:
        member_id = number(request.params["id"])
        if member_id is None:
            return bad_number(request.params["id"])
        return await self._remove(member_id, str(member_id))

    async def _remove(self, member_id: int, shown: str) -> HttpResponse:
        try:
            mistake = await self._member.remove(member_id)
        except RpcError as error:
            mistake = error.message
        if mistake:
            return answer_json(f"[PD:etcd:ErrEtcdMemberRemove]{mistake}: {mistake}", 500)
        return answer_json(f"removed, pd: {shown}")

    async def _set_properties(self, request: HttpRequest) -> HttpResponse:
        """Only the priority as a leader is a property; PD takes others, and ignores them."""
        member_id = self._id_of(request.params["name"])
        wanted = read_object(request)
        if "leader-priority" in wanted:
            priority = wanted["leader-priority"]
            if isinstance(priority, bool) or not isinstance(priority, int | float) or abs(priority) >= 1 << 31:
                return answer_json("bad format leader priority", 400)
            given = drillpb.PdMemberPriority(member_id=member_id, priority=int(priority))
            await self._settle(drillpb.PdCommand(member_priority=given))
        return answer_json("success")

    async def _resign(self, request: HttpRequest) -> HttpResponse:
        own_id = self._member.identity.record.id
        others = sorted(each.id for each in self._member.records() if each.id != own_id)
        if others:
            answering = [each for each in others if each in self._member.roll().active]
            await self._hand_over((answering or others)[0])
        return answer_json("The resign command is submitted.")

    async def _transfer(self, request: HttpRequest) -> HttpResponse:
        named = [each.id for each in self._member.records() if each.name == request.params["name"]]
        if not named:
            return answer_json("no valid pd to transfer etcd leader", 500)
        await self._hand_over(named[0])
        return answer_json("The transfer command is submitted.")

    async def _hand_over(self, member_id: int) -> None:
        if member_id == self._member.identity.record.id:
            return
        reason = "etcdserver: request timed out, leader transfer took too long"
        try:
            if await self._member.consensus.hand_over(member_id, HAND_OVER_S):
                return
        except ProposalDropped as error:
            reason = str(error)
        raise Refused(answer_json(f"[PD:etcd:ErrEtcdMoveLeader]{reason}: {reason}", 500))
