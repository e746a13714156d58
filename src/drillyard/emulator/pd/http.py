"""PD's HTTP interface: real paths, shapes and formatting, on the port that also speaks gRPC.

Rules: everything under /pd is the leader's to answer. A member that does not lead passes the request on, once; when it
knows no leader it says 503, when the leader does not answer 500, in plain text as the real one. A request with the
header PD-Allow-follower-handle is answered where it arrives. Before bootstrap, what needs a cluster answers 500. Paths
that are not served answer 404 like any that do not exist.

The answers themselves are given in `routes`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from drillyard.emulator.http import HttpRequest, HttpResponse, Router, error_response
from drillyard.emulator.metrics import CONTENT_TYPE, Registry
from drillyard.emulator.pd.forward import Unanswered, ask
from drillyard.emulator.pd.member import PdMember, split_url
from drillyard.emulator.pd.routes.administration import AdminRoutes
from drillyard.emulator.pd.routes.answers import (
    NOT_BOOTSTRAPPED,
    Answer,
    ClusterHandler,
    Handler,
    Refused,
    Room,
    Route,
    answer_json,
)
from drillyard.emulator.pd.routes.configuration import ConfigRoutes
from drillyard.emulator.pd.routes.hotspots import HotspotRoutes
from drillyard.emulator.pd.routes.members import MemberRoutes
from drillyard.emulator.pd.routes.operators import OperatorRoutes
from drillyard.emulator.pd.routes.regions import RegionRoutes
from drillyard.emulator.pd.routes.rules import RuleRoutes
from drillyard.emulator.pd.routes.safe_points import SafePointRoutes
from drillyard.emulator.pd.routes.schedulers import SchedulerRoutes
from drillyard.emulator.pd.routes.stores import StoreRoutes

FORWARD_S = 10.0
LATE_ANSWER_S = 0.3
CORS = (
    ("Access-Control-Allow-Headers", "accept, content-type, authorization"),
    ("Access-Control-Allow-Methods", "POST, GET, OPTIONS, PUT, DELETE"),
    ("Access-Control-Allow-Origin", "*"),
)


class PdRouter(Router):
    """Adds the headers that PD puts on everything, and answers what a browser asks before it asks."""

    async def answer(self, request: HttpRequest) -> HttpResponse:
        response = HttpResponse() if request.method == "OPTIONS" else await super().answer(request)
        own = [header for header in response.headers if not header[0].lower().startswith("access-control-")]
        return replace(response, headers=(*CORS, *own))


class PdHttp:
    def __init__(self, member: PdMember, metrics: Registry, started_s: int) -> None:
        self._member = member
        self._metrics = metrics
        self._rooms: tuple[Room, ...] = (
            MemberRoutes(member, started_s),
            ConfigRoutes(member),
            StoreRoutes(member),
            RegionRoutes(member),
            OperatorRoutes(member),
            SchedulerRoutes(member),
            HotspotRoutes(member),
            SafePointRoutes(member),
            RuleRoutes(member),
            AdminRoutes(member),
        )

    def router(self, hosts: tuple[str, ...]) -> Router:
        router = PdRouter(hosts)
        router.add("GET", "/metrics", self._get_metrics)
        router.add("GET", "/health", self._get_quorum)
        for room in self._rooms:
            for route in room.routes():
                router.add(route.method, route.pattern, self._led(self._handler_of(route)))
        return router

    def _handler_of(self, route: Route) -> Handler:
        if route.handler is not None:
            return route.handler
        assert route.cluster_handler is not None
        return self._bootstrapped(route.cluster_handler)

    # ---- who answers ----

    def _led(self, handler: Handler) -> Callable[[HttpRequest], Awaitable[HttpResponse]]:
        """Answers here if this member leads or was asked to; passes the request on to the leader otherwise."""

        async def answer(request: HttpRequest) -> HttpResponse:
            member = self._member
            if member.lead is None and "pd-allow-follower-handle" not in request.headers:
                return await self._forward(request)
            try:
                answered = handler(request)
                return answered if isinstance(answered, HttpResponse) else await answered
            except Refused as refused:
                return refused.response

        return answer

    async def _forward(self, request: HttpRequest) -> HttpResponse:
        member = self._member
        leader = member.leader()
        if leader is None or not leader.client_urls:
            return error_response("no leader", 503)
        if "pd-redirector" in request.headers:
            return error_response("[PD:apiutil:ErrRedirectToNotLeader]redirect to not leader", 500)
        passed_on = replace(request, headers={**request.headers, "pd-redirector": member.options.name})
        asking = asyncio.ensure_future(ask(split_url(leader.client_urls[0]), passed_on, FORWARD_S))
        losing = asyncio.ensure_future(self._until_led_by_another(leader.id))
        try:
            await asyncio.wait({asking, losing}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():  # perhaps the lead moved because this request asked for it
                await asyncio.wait({asking}, timeout=LATE_ANSWER_S)
            if asking.done():
                return asking.result()
        except Unanswered:
            pass
        finally:
            asking.cancel()
            losing.cancel()
        return error_response("[PD:apiutil:ErrRedirect]redirect failed", 500)

    async def _until_led_by_another(self, leader_id: int) -> None:
        while (leader := self._member.leader()) is not None and leader.id == leader_id:
            await self._member.changed.wait()

    def _bootstrapped(self, handler: ClusterHandler) -> Handler:
        def answer(request: HttpRequest) -> Answer:
            lead = self._member.lead
            if lead is None or not self._member.consensus.cluster.bootstrapped:
                return answer_json(NOT_BOOTSTRAPPED, 500)
            return handler(request, lead)

        return answer

    # ---- this member ----

    async def _get_metrics(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, self._metrics.render(), CONTENT_TYPE)

    async def _get_quorum(self, request: HttpRequest) -> HttpResponse:
        """Whether this member knows a leader: the question that etcd answers here."""
        is_healthy = self._member.consensus.leader != 0
        body = b'{"health":"true"}' if is_healthy else b'{"health":"false"}'
        return HttpResponse(200 if is_healthy else 503, body, "text/plain; charset=utf-8")
