"""What keeps old versions of keys from being collected, over HTTP."""

from __future__ import annotations

from collections.abc import Sequence

from drillyard.emulator.http import HttpRequest, HttpResponse
from drillyard.emulator.pd.routes.answers import V1, Room, Route, answer_json
from drillyard.emulator.pd.views import Json


class SafePointRoutes(Room):
    def routes(self) -> Sequence[Route]:
        return (Route("GET", f"{V1}/gc/safepoint", self._get_safe_points),)

    def _get_safe_points(self, request: HttpRequest) -> HttpResponse:
        services = [
            {"service_id": each.service_id, "expired_at": each.expires_s, "safe_point": each.safe_point}
            for _, each in sorted(self._cluster.service_safe_points.items())
        ]
        view: Json = {"service_gc_safe_points": services}
        if lowest := self._cluster.lowest_service_safe_point():
            view["min_service_gc_safe_point"] = lowest
        return answer_json(view | {"gc_safe_point": self._cluster.safe_point})
