"""What keeps old versions of keys from being collected, over HTTP.

Rules: the safe point and those of the services are replicated. No store of the emulator reports a resolved timestamp,
so the lowest of them stays where it begins, as in a real cluster whose stores report none.
"""

from __future__ import annotations

from collections.abc import Sequence

from drillyard.emulator.http import HttpRequest, HttpResponse
from drillyard.emulator.pd.cluster import GC_WORKER
from drillyard.emulator.pd.leadership import Leadership
from drillyard.emulator.pd.routes.answers import V1, Refused, Room, Route, answer_json, bad_number, number
from drillyard.emulator.pd.views import Json
from drillyard.wire import drillpb, metapb

UNKNOWN_TS = (1 << 64) - 1


class SafePointRoutes(Room):
    def routes(self) -> Sequence[Route]:
        return (
            Route("GET", f"{V1}/gc/safepoint", self._get_safe_points),
            Route("DELETE", f"{V1}/gc/safepoint/{{service}}", self._delete_safe_point),
            Route("GET", f"{V1}/min-resolved-ts", cluster_handler=self._get_resolved),
            Route("GET", f"{V1}/min-resolved-ts/{{id}}", cluster_handler=self._get_resolved_of_store),
        )

    def _get_safe_points(self, request: HttpRequest) -> HttpResponse:
        known = [each for _, each in sorted(self._cluster.service_safe_points.items())]
        services = [
            {"service_id": each.service_id, "expired_at": each.expires_s, "safe_point": each.safe_point}
            for each in known
        ]
        view: Json = {"service_gc_safe_points": services}
        now_s = self._member.clock.now_ns() // 10**9
        lowest = min((each.safe_point for each in known if each.expires_s > now_s), default=0)
        if lowest:
            view["min_service_gc_safe_point"] = lowest
        return answer_json(view | {"gc_safe_point": self._cluster.safe_point})

    async def _delete_safe_point(self, request: HttpRequest) -> HttpResponse:
        service = request.params["service"]
        if service == GC_WORKER:
            return answer_json("cannot remove service safe point of gc_worker", 500)
        await self._settle(drillpb.PdCommand(remove_service_safe_point=service))
        return answer_json("Delete service GC safepoint successfully.")

    def _resolved_of(self, store_id: int, lead: Leadership) -> int:
        store = self._cluster.stores.get(store_id)
        leads = any(report.leader.store_id == store_id for report in lead.reports.regions.values())
        return 0 if store is not None and store.state != metapb.Tombstone and leads else UNKNOWN_TS

    def _get_resolved(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        lowest, stores = 0, None
        if scope := request.first("scope"):
            asked = [str(each) for each in sorted(self._cluster.stores)] if scope == "cluster" else scope.split(",")
            for each in asked:
                if number(each) is None:
                    raise Refused(bad_number(each))
            stores = {each: self._resolved_of(int(each), lead) for each in asked}
            lowest = 0 if scope == "cluster" else min(stores.values())
        view = {"is_real_time": True, "min_resolved_ts": lowest, "persist_interval": "1s"}
        return answer_json({**view, "stores_min_resolved_ts": stores})

    def _get_resolved_of_store(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        store_id = number(request.params["id"])
        if store_id is None:
            return bad_number(request.params["id"])
        view = {"is_real_time": True, "min_resolved_ts": self._resolved_of(store_id, lead), "persist_interval": "1s"}
        return answer_json({**view, "stores_min_resolved_ts": None})
