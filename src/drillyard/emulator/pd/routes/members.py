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
from drillyard.emulator.pd.routes.answers import V1, Room, Route, answer_json
from drillyard.emulator.version import EMULATED_VERSION, GIT_HASH
from drillyard.wire import drillpb

HEALTH_S = 1.0


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
            Route("GET", f"{V1}/leader", self._get_leader),
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
        return answer_json(views.members(member.records(), member.cluster_id, member.leader()))

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
