"""Regions over HTTP: by id, key, store and state, and the largest by some measure.

Rules: metas come from the replicated state, everything else from the last heartbeats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

from drillyard.emulator.http import HttpRequest, HttpResponse, error_response
from drillyard.emulator.pd import views
from drillyard.emulator.pd.leadership import Leadership
from drillyard.emulator.pd.reports import RegionReport, Reports
from drillyard.emulator.pd.routes.answers import (
    V1,
    ClusterHandler,
    Room,
    Route,
    answer_compact,
    answer_json,
    bad_count,
    bad_number,
    bytes_of_hex,
    number,
)
from drillyard.emulator.pd.views import CHECKS, Json
from drillyard.wire import metapb

TOP = 16  # regions in a list of the first by some measure, unless the client says otherwise
Measure = Callable[[metapb.Region, RegionReport | None], int]


# By what `regions/<name>` puts the largest first.
MEASURES: Mapping[str, Measure] = {
    "writeflow": lambda meta, report: report.request.bytes_written if report is not None else 0,
    "readflow": lambda meta, report: report.request.bytes_read if report is not None else 0,
    "confver": lambda meta, report: meta.region_epoch.conf_ver,
    "version": lambda meta, report: meta.region_epoch.version,
    "size": lambda meta, report: report.size_mib if report is not None else 0,
    "keys": lambda meta, report: report.request.approximate_keys if report is not None else 0,
    "cpu": lambda meta, report: report.request.cpu_usage if report is not None else 0,
}


class RegionRoutes(Room):
    def routes(self) -> Sequence[Route]:
        served: dict[str, ClusterHandler] = {
            "regions": lambda request, lead: self._regions(lead, list(self._cluster.regions)),
            "regions/count": lambda request, lead: answer_json({"count": len(self._cluster.regions), "regions": None}),
            "regions/key": self._get_regions_by_key,
            "regions/replicated": self._get_replicated,
            "regions/store/{id}": self._get_regions_of_store,
            "regions/sibling/{id}": self._get_siblings,
            "regions/range-holes": self._get_holes,
            "regions/check/hist-size": self._get_sizes,
            "regions/check/hist-keys": self._get_keys,
            "regions/check/offline-peer": self._get_offline,
            "regions/check/{kind}": self._get_check,
            **{f"regions/{name}": partial(self._get_top, measure) for name, measure in MEASURES.items()},
            "region/id/{id}": self._get_region_by_id,
            "region/key/{key}": self._get_region_by_key,
            "stats/region": self._get_statistics,
        }
        return [Route("GET", f"{V1}/{path}", cluster_handler=handler) for path, handler in served.items()]

    def _view(self, meta: metapb.Region, reports: Reports) -> Json:
        return views.region(meta, reports.regions.get(meta.id), reports.leader_of(meta))

    def _regions(self, lead: Leadership, metas: list[metapb.Region]) -> HttpResponse:
        return answer_compact(views.regions([self._view(meta, lead.reports) for meta in metas]))

    def _region(self, lead: Leadership, meta: metapb.Region | None) -> HttpResponse:
        return answer_compact(views.NO_REGION if meta is None else self._view(meta, lead.reports))

    def _get_region_by_id(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        region_id = number(request.params["id"])
        if region_id is None:
            return bad_number(request.params["id"])
        return self._region(lead, self._cluster.regions.get(region_id))

    def _get_region_by_key(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        key = unquote_to_bytes(urlsplit(request.target).path.rpartition("/")[2].replace("+", " "))
        if request.first("format") == "hex":
            try:
                key = bytes_of_hex(key.decode("latin-1"))
            except ValueError as error:
                return answer_json(str(error), 400)
        return self._region(lead, self._cluster.regions.find(key))

    def _get_regions_by_key(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        # Keys are bytes, so the query is read again without taking it for text.
        query = dict(parse_qsl(urlsplit(request.target).query.encode(), keep_blank_values=True))
        limit = number(query.get(b"limit", b"16").decode("ascii", "replace"))
        if limit is None:
            return bad_count(query[b"limit"].decode("ascii", "replace"))
        start, end = query.get(b"key", b""), query.get(b"end_key", b"")
        return self._regions(lead, self._cluster.regions.scan(start, end, limit))

    def _get_replicated(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        """Whether all regions of a range have just the replicas that are wanted. Keys come in hex here."""
        if "startKey" not in request.query or "endKey" not in request.query:
            return error_response("404 page not found", 404)
        try:
            start, end = (bytes_of_hex(request.first(name)) for name in ("startKey", "endKey"))
        except ValueError as error:
            return answer_json(str(error), 400)
        replicas = self._member.settings.replicas()
        regions = self._cluster.regions.scan(start, end, 0)
        whole = all([peer.role for peer in meta.peers] == [metapb.Voter] * replicas for meta in regions)
        return answer_json("REPLICATED" if whole else "INPROGRESS")

    def _get_regions_of_store(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        store_id = number(request.params["id"])
        if store_id is None:
            return bad_count(request.params["id"])
        metas = [meta for meta in self._cluster.regions if any(peer.store_id == store_id for peer in meta.peers)]
        return self._regions(lead, metas)

    def _get_top(self, measure: Measure, request: HttpRequest, lead: Leadership) -> HttpResponse:
        limit = number(request.first("limit", str(TOP)))
        if limit is None:
            return bad_count(request.first("limit"))
        metas = sorted(
            self._cluster.regions, key=lambda meta: measure(meta, lead.reports.regions.get(meta.id)), reverse=True
        )
        return self._regions(lead, metas[:limit])

    def _get_siblings(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        region_id = number(request.params["id"])
        if region_id is None:
            return bad_count(request.params["id"])
        regions = self._cluster.regions
        meta = regions.get(region_id)
        if meta is None:
            return answer_json(f"[PD:region:ErrRegionNotFound]region {region_id} not found", 404)
        neighbours = [regions.before(meta.start_key), regions.after(meta)]
        shown = [views.NO_REGION if each is None else self._view(each, lead.reports) for each in neighbours]
        return answer_compact(views.regions(shown))

    def _get_statistics(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        start, end = (request.first(name).encode("utf-8", "surrogateescape") for name in ("start_key", "end_key"))
        regions = self._cluster.regions.scan(start, end, 0)
        return answer_json(views.statistics(self._cluster, lead.reports, regions))

    def _get_holes(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        holes: list[list[str]] = []
        reached = b""
        for meta in self._cluster.regions:
            if meta.start_key > reached:
                holes.append([views.hex_key(reached), views.hex_key(meta.start_key)])
            if not meta.end_key:
                return answer_json(holes)
            reached = meta.end_key
        return answer_json([*holes, [views.hex_key(reached), ""]])

    def _get_check(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        kind = request.params["kind"]
        if kind not in CHECKS:
            return error_response("404 page not found", 404)
        replicas = self._member.settings.replicas()
        return self._regions(lead, views.checked(kind, self._cluster, lead.reports, replicas))

    def _get_offline(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        leaving = {store.id for store in self._cluster.stores.values() if store.node_state == metapb.Removing}
        metas = [meta for meta in self._cluster.regions if any(peer.store_id in leaving for peer in meta.peers)]
        return self._regions(lead, metas)

    def _get_sizes(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        sizes = [MEASURES["size"](meta, lead.reports.regions.get(meta.id)) for meta in self._cluster.regions]
        return self._histogram(request, sizes, 1)

    def _get_keys(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        keys = [MEASURES["keys"](meta, lead.reports.regions.get(meta.id)) for meta in self._cluster.regions]
        return self._histogram(request, keys, 1000)

    def _histogram(self, request: HttpRequest, values: list[int], least: int) -> HttpResponse:
        asked = request.first("bound", str(least))
        width = number(asked)
        return bad_count(asked) if width is None else answer_json(views.histogram(values, max(width, least)))
