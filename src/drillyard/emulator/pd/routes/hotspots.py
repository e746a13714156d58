"""Hot peers and busy stores over HTTP, and the trend that is made of them.

Rules: rates of a store are those of its last heartbeat; of peers, what `hotspots` knows. Nothing is kept for the
history of hot regions, so it is empty. Requests a second are not reported by stores here, and are 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial

from drillyard.emulator.http import HttpRequest, HttpResponse
from drillyard.emulator.pd import views
from drillyard.emulator.pd.hotspots import HotPeer
from drillyard.emulator.pd.leadership import Leadership
from drillyard.emulator.pd.operators import Operator
from drillyard.emulator.pd.reports import StoreReport
from drillyard.emulator.pd.routes.answers import V1, Room, Route, answer_json, bad_number, number
from drillyard.emulator.pd.routes.go import NoJson, json_of
from drillyard.emulator.pd.steps import AddLearner, RemovePeer, TransferLeader
from drillyard.emulator.pd.views import Json
from drillyard.wire import metapb

ZERO_TIME_S = -62135596800  # Go's zero time


class HotspotRoutes(Room):
    def routes(self) -> Sequence[Route]:
        return (
            *(
                Route("GET", f"{V1}/hotspot/regions/{kind}", cluster_handler=partial(self._get_regions, kind))
                for kind in ("write", "read")
            ),
            Route("GET", f"{V1}/hotspot/regions/history", cluster_handler=self._get_history),
            Route("GET", f"{V1}/hotspot/stores", cluster_handler=self._get_stores),
            Route("GET", f"{V1}/trend", cluster_handler=self._get_trend),
        )

    # ---- peers ----

    def _hot(self, kind: str, lead: Leadership) -> dict[int, list[HotPeer]]:
        return lead.hot[kind].hot(self._member.settings.placing().hot_region_cache_hits_threshold)

    def _get_regions(self, kind: str, request: HttpRequest, lead: Leadership) -> HttpResponse:
        asked: set[int] = set()
        for text in request.query.get("store_id", []):
            store_id = number(text)
            if store_id is None:
                return answer_json(f"invalid store id: {text}", 400)
            if store_id not in self._cluster.stores:
                return answer_json(f"[PD:core:ErrStoreNotFound]store {store_id} not found", 500)
            asked.add(store_id)
        hot = self._hot(kind, lead)
        shown = [
            store_id
            for store_id, store in sorted(self._cluster.stores.items())
            if store.state != metapb.Tombstone and store_id in lead.reports.stores
        ]
        views_of = {
            role: {
                str(store_id): self._of_store(lead, kind, role, hot.get(store_id, []), store_id)
                for store_id in shown
                if not asked or store_id in asked
            }
            for role in ("as_peer", "as_leader")
        }
        return answer_json(views_of)

    def _of_store(self, lead: Leadership, kind: str, role: str, peers: list[HotPeer], store_id: int) -> Json:
        if role == "as_leader":
            peers = [peer for peer in peers if peer.is_leader]
        flow = (sum(peer.byte_rate for peer in peers), sum(peer.key_rate for peer in peers))
        # Of writes, a store reports what all its peers took; what its leaders took is known of the hot ones only.
        own = flow if (kind, role) == ("write", "as_leader") else rates_of(lead.reports.stores.get(store_id), kind)
        return {
            "store_bytes": own[0],
            "store_keys": own[1],
            "store_query": 0,
            "total_flow_bytes": flow[0],
            "total_flow_keys": flow[1],
            "total_flow_query": 0,
            "regions_count": len(peers),
            "statistics": [self._of_peer(lead, peer) for peer in peers],
        }

    def _of_peer(self, lead: Leadership, peer: HotPeer) -> Json:
        region = self._cluster.regions.get(peer.region_id)
        roles = {each.store_id: each.role for each in region.peers} if region is not None else {}
        report = lead.reports.regions.get(peer.region_id)
        heard_s = report.request.interval.end_timestamp if report is not None else 0
        return {
            "store_id": peer.store_id,
            "stores": list(peer.stores),
            "is_leader": peer.is_leader,
            "is_learner": roles.get(peer.store_id) == metapb.Learner,
            "region_id": peer.region_id,
            "hot_degree": peer.degree,
            "flow_bytes": peer.byte_rate,
            "flow_keys": peer.key_rate,
            "flow_query": 0,
            "anti_count": peer.patience,
            "last_update_time": views.timestamp(heard_s * 10**9) if heard_s else views.ZERO_TIME,
        }

    def _get_history(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        try:
            json_of(request.body)
        except NoJson as error:
            return answer_json(error.mistake.message, 400)
        return answer_json({"history_hot_region": None})

    # ---- stores ----

    def _get_stores(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        heard = sorted(lead.reports.stores.items())
        view: dict[str, Json] = {}
        for place, dimension in enumerate(("bytes", "keys")):
            for kind in ("write", "read"):
                rates = {str(store_id): rates_of(report, kind)[place] for store_id, report in heard}
                view[f"{dimension}-{kind}-rate"] = rates
        for kind in ("write", "read"):
            view[f"query-{kind}-rate"] = {str(store_id): 0 for store_id, _ in heard}
        return answer_json({name: rates for name, rates in view.items() if rates})

    def _get_trend(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        shown = views.StoreViews(
            self._cluster, lead.reports, lead.clock.now_ns(), self._member.settings.down_after_ns()
        )
        written, read = self._hot("write", lead), self._hot("read", lead)
        stores: list[Json] = []
        for store_id, store in sorted(self._cluster.stores.items()):
            report, status = lead.reports.stores.get(store_id), shown.one(store)["status"]
            leaders = [peer for peer in read.get(store_id, []) if peer.is_leader]
            view: dict[str, Json] = {
                "id": store_id,
                "address": store.address,
                "state_name": shown.state_of(store),
                "capacity": report.stats.capacity if report is not None else 0,
                "available": report.stats.available if report is not None else 0,
                "region_count": status["region_count"],
                "leader_count": status["leader_count"],
            }
            view |= {key: status[key] for key in ("start_ts", "last_heartbeat_ts", "uptime") if key in status}
            view |= _flow_of("write", written.get(store_id, [])) | _flow_of("read", leaders)
            stores.append(view)
        since_s = number(request.first("from")) if request.first("from") else ZERO_TIME_S
        if since_s is None:
            return bad_number(request.first("from"))
        last = {each.region_id: each for each in lead.placement.controller.records}  # PD keeps one of each region
        entries = _moves(each for each in last.values() if each.ended_ns >= since_s * 10**9)
        history = {"start": since_s, "end": lead.clock.now_ns() // 10**9, "entries": entries}
        return answer_json({"stores": stores, "history": history})


def rates_of(report: StoreReport | None, kind: str) -> tuple[float, float]:
    """Bytes and keys a second of a store, by its last heartbeat."""
    if report is None:
        return 0.0, 0.0
    stats = report.stats
    seconds = stats.interval.end_timestamp - stats.interval.start_timestamp
    if seconds <= 0:
        return 0.0, 0.0
    amounts = (stats.bytes_written, stats.keys_written) if kind == "write" else (stats.bytes_read, stats.keys_read)
    return amounts[0] / seconds, amounts[1] / seconds


def _flow_of(kind: str, peers: list[HotPeer]) -> dict[str, Json]:
    flows = [peer.byte_rate for peer in peers]
    return {f"hot_{kind}_flow": sum(flows), f"hot_{kind}_region_flows": flows or None}


def _moves(ended: Iterable[Operator]) -> list[Json]:
    """How often leaders and regions were sent from one store to another by operators that have ended."""
    moves: Counter[tuple[int, int, str]] = Counter()
    for operator in ended:
        moves.update(
            (step.source, step.target, "leader") for step in operator.steps if isinstance(step, TransferLeader)
        )
        added = [step.store_id for step in operator.steps if isinstance(step, AddLearner)]
        removed = [step.store_id for step in operator.steps if isinstance(step, RemovePeer)]
        moves.update((old, new, "region") for old, new in zip(removed, added, strict=False))
    return [{"from": old, "to": new, "kind": kind, "count": count} for (old, new, kind), count in sorted(moves.items())]
