"""Operators and schedulers over HTTP."""

from __future__ import annotations

from collections.abc import Sequence

from drillyard.emulator.http import HttpRequest, HttpResponse
from drillyard.emulator.pd import views
from drillyard.emulator.pd.leadership import Leadership
from drillyard.emulator.pd.routes.answers import V1, Room, Route, answer_json, bad_number, number

NO_OPERATOR = "[PD:operator:ErrOperatorNotFound]operator not found"


class OperatorRoutes(Room):
    def routes(self) -> Sequence[Route]:
        return (
            Route("GET", f"{V1}/operators", cluster_handler=self._get_operators),
            Route("GET", f"{V1}/operators/records", cluster_handler=self._get_operator_records),
            Route("GET", f"{V1}/operators/{{id}}", cluster_handler=self._get_operator),
            Route("GET", f"{V1}/schedulers", cluster_handler=lambda request, lead: answer_json([])),  # none runs here
        )

    def _get_operators(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        kind = request.first("kind")
        shown = [each for each in lead.placement.running.values() if not kind or kind in each.kind.split(",")]
        return answer_json([views.operator(each) for each in shown] or (None if kind else []))

    def _get_operator_records(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        records = [views.operator_record(each) for each in lead.placement.records]
        return answer_json(records) if records else answer_json(NO_OPERATOR, 500)

    def _get_operator(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        region_id = number(request.params["id"])
        if region_id is None:
            return bad_number(request.params["id"])
        running = lead.placement.running.get(region_id)
        return answer_json(NO_OPERATOR, 500) if running is None else answer_json(views.operator(running))
