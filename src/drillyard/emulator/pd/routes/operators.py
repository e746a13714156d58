"""Operators and schedulers over HTTP: what runs, what ended, and what people ask for.

Rules: kinds that a filter does not know are passed over, as in the real PD. Which schedulers there are goes through the
log, so that the next leader has the same; pauses are the leader's own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from drillyard.emulator.http import HttpRequest, HttpResponse
from drillyard.emulator.pd import views
from drillyard.emulator.pd.leadership import Leadership
from drillyard.emulator.pd.operators import Kind, Reason
from drillyard.emulator.pd.requests import Desk, Refused
from drillyard.emulator.pd.routes.answers import V1, Room, Route, answer_json, bad_number, number, read_object

NO_OPERATOR = "[PD:operator:ErrOperatorNotFound]operator not found"
KINDS = {"admin": Kind.ADMIN, "leader": Kind.LEADER, "region": Kind.REGION}


class OperatorRoutes(Room):
    def routes(self) -> Sequence[Route]:
        return (
            Route("GET", f"{V1}/operators", cluster_handler=self._get_operators),
            Route("POST", f"{V1}/operators", cluster_handler=self._add_operator),
            Route("DELETE", f"{V1}/operators", cluster_handler=self._remove_all),
            Route("GET", f"{V1}/operators/records", cluster_handler=self._get_records),
            Route("GET", f"{V1}/operators/{{id}}", cluster_handler=self._get_operator),
            Route("DELETE", f"{V1}/operators/{{id}}", cluster_handler=self._remove_operator),
        )

    def _get_operators(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        running = list(lead.placement.controller.running.values())
        kinds = request.query.get("kind")
        if kinds is not None:
            running = [each for kind in kinds for each in running if KINDS.get(kind, Kind.NONE) & each.kind]
        if "object" in request.query:
            return answer_json([views.operator_object(each) for each in running])
        return answer_json([views.operator(each) for each in running] or (None if kinds is not None else []))

    def _get_records(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        since = number(request.first("from", "0"))
        if since is None:
            return answer_json(f"strconv.ParseInt: parsing {json.dumps(request.first('from'))}: invalid syntax", 400)
        last = {each.region_id: each for each in lead.placement.controller.records}  # PD keeps one a region
        ended = [each for each in last.values() if each.ended_ns >= since * 10**9]
        return answer_json([views.operator_record(each) for each in ended]) if ended else answer_json(NO_OPERATOR, 500)

    def _get_operator(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        region_id = number(request.params["id"])
        if region_id is None:
            return bad_number(request.params["id"])
        found = lead.placement.controller.status_of(region_id, lead.clock.now_ns())
        return answer_json(NO_OPERATOR, 500) if found is None else answer_json(views.operator_status(found))

    def _add_operator(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        try:
            answer = Desk.at(lead.placement, lead.clock.now_ns()).add(read_object(request))
        except Refused as refused:
            return answer_json(refused.message, refused.status)
        finally:
            lead.carry_out()
        return answer_json("The operator is created." if answer is None else answer)

    def _remove_operator(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        region_id = number(request.params["id"])
        if region_id is None:
            return bad_number(request.params["id"])
        is_removed = lead.placement.controller.cancel(region_id, Reason.ADMIN_STOP, lead.clock.now_ns())
        lead.carry_out()
        return answer_json("The pending operator is canceled.") if is_removed else answer_json(NO_OPERATOR, 500)

    def _remove_all(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        lead.placement.controller.cancel_all(Reason.ADMIN_STOP, lead.clock.now_ns())
        lead.carry_out()
        return answer_json("All pending operators are canceled.")
