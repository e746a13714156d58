"""PD's HTTP interface: real paths, shapes and formatting, on the port that also speaks gRPC.

Rules: everything under /pd is the leader's to answer. A member that does not lead passes the request on, once; when it
knows no leader it says 503, when the leader does not answer 500, in plain text as the real one. A request with the
header PD-Allow-follower-handle is answered where it arrives. Before bootstrap, what needs a cluster answers 500. Paths
that are not served answer 404 like any that do not exist.

It only reads, but for the few settings in `config.CHANGEABLE`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

from drillyard.emulator.http import HttpRequest, HttpResponse, Router, error_response
from drillyard.emulator.metrics import CONTENT_TYPE, Registry
from drillyard.emulator.pd import config, views
from drillyard.emulator.pd.cluster import Cluster
from drillyard.emulator.pd.consensus import Undetermined
from drillyard.emulator.pd.forward import Unanswered, ask
from drillyard.emulator.pd.leadership import Leadership
from drillyard.emulator.pd.member import PdMember, split_url
from drillyard.emulator.pd.reports import RegionReport, Reports
from drillyard.emulator.pd.views import CHECKS, Json, go_json
from drillyard.emulator.raft.types import ProposalDropped
from drillyard.emulator.version import EMULATED_VERSION, GIT_HASH
from drillyard.wire import drillpb, metapb

FORWARD_S = 10.0
HEALTH_S = 1.0
JSON_TYPE = "application/json; charset=UTF-8"
BYTES_TYPE = "application/octet-stream"
NOT_BOOTSTRAPPED = "[PD:cluster:ErrNotBootstrapped]TiKV cluster not bootstrapped, please start TiKV first"
NO_OPERATOR = "[PD:operator:ErrOperatorNotFound]operator not found"
STORE_STATES = {"up", "disconnected", "down", "offline", "tombstone"}
TOP = 16  # regions in a list of the first by some measure, unless the client says otherwise
CORS = (
    ("Access-Control-Allow-Headers", "accept, content-type, authorization"),
    ("Access-Control-Allow-Methods", "POST, GET, OPTIONS, PUT, DELETE"),
    ("Access-Control-Allow-Origin", "*"),
)
Handler = Callable[[HttpRequest], Awaitable[HttpResponse] | HttpResponse]
Measure = Callable[[metapb.Region, RegionReport | None], int]
ClusterHandler = Callable[[HttpRequest, Leadership], HttpResponse]


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


def answer_json(value: Json, status: int = 200) -> HttpResponse:
    return HttpResponse(status, go_json(value), JSON_TYPE)


def answer_compact(value: Json) -> HttpResponse:
    return HttpResponse(200, go_json(value, indent=False), BYTES_TYPE)


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
        self._started_s = started_s

    def router(self, hosts: tuple[str, ...]) -> Router:
        router = PdRouter(hosts)
        router.add("GET", "/metrics", self._get_metrics)
        router.add("GET", "/health", self._get_quorum)
        for pattern, handler in self._member_routes().items():
            router.add("GET", pattern, self._led(handler))
        for pattern, cluster_handler in self._cluster_routes().items():
            router.add("GET", pattern, self._led(self._bootstrapped(cluster_handler)))
        for pattern in ("/pd/api/v1/config", "/pd/api/v1/config/schedule", "/pd/api/v1/config/replicate"):
            router.add("POST", pattern, self._led(self._set_config))
        return router

    def _member_routes(self) -> dict[str, Handler]:
        """What can be asked before there is a cluster."""
        v1 = "/pd/api/v1"
        return {
            "/pd/ping": lambda request: HttpResponse(),
            "/pd/health": self._get_health,
            f"{v1}/ping": lambda request: HttpResponse(),
            f"{v1}/health": self._get_health,
            f"{v1}/members": self._get_members,
            f"{v1}/leader": self._get_leader,
            f"{v1}/version": self._get_version,
            f"{v1}/status": self._get_status,
            f"{v1}/cluster": self._get_cluster,
            f"{v1}/cluster/status": self._get_cluster_status,
            f"{v1}/config": self._get_config,
            f"{v1}/config/schedule": lambda request: answer_json(
                config.schedule(self._member.settings, sorted(self._cluster.stores))
            ),
            f"{v1}/config/replicate": lambda request: answer_json(config.replication(self._member.settings)),
            f"{v1}/config/pd-server": lambda request: answer_json(config.PD_SERVER),
            f"{v1}/config/label-property": lambda request: answer_json({}),
            f"{v1}/config/cluster-version": lambda request: answer_json(self._cluster.cluster_version),
            f"{v1}/config/replication-mode": lambda request: answer_json(config.REPLICATION_MODE),
            f"{v1}/gc/safepoint": self._get_safe_points,
            f"{v1}/operators/records": self._bootstrapped(self._get_operator_records),
            f"{v1}/operators/{{id}}": self._get_operator,
        }

    def _cluster_routes(self) -> dict[str, ClusterHandler]:
        v1 = "/pd/api/v1"
        return {
            f"{v1}/stores": self._get_stores,
            f"{v1}/stores/limit": self._get_store_limits,
            f"{v1}/stores/check": self._get_stores_in_state,
            f"{v1}/store/{{id}}": self._get_store,
            f"{v1}/labels": self._get_labels,
            f"{v1}/regions": lambda request, lead: self._regions(lead, list(self._cluster.regions)),
            f"{v1}/regions/count": lambda request, lead: answer_json(
                {"count": len(self._cluster.regions), "regions": None}
            ),
            f"{v1}/regions/key": self._get_regions_by_key,
            f"{v1}/regions/store/{{id}}": self._get_regions_of_store,
            f"{v1}/regions/sibling/{{id}}": self._get_siblings,
            f"{v1}/regions/range-holes": self._get_holes,
            f"{v1}/regions/check/hist-size": self._get_sizes,
            f"{v1}/regions/check/hist-keys": self._get_keys,
            f"{v1}/regions/check/offline-peer": self._get_offline,
            f"{v1}/regions/check/{{kind}}": self._get_check,
            **{f"{v1}/regions/{name}": partial(self._get_top, measure) for name, measure in MEASURES.items()},
            f"{v1}/region/id/{{id}}": self._get_region_by_id,
            f"{v1}/region/key/{{key}}": self._get_region_by_key,
            f"{v1}/stats/region": lambda request, lead: answer_json(views.statistics(self._cluster, lead.reports)),
            f"{v1}/operators": self._get_operators,
            f"{v1}/schedulers": lambda request, lead: answer_json([]),  # none runs here
        }

    # ---- who answers ----

    def _led(self, handler: Handler) -> Callable[[HttpRequest], Awaitable[HttpResponse]]:
        """Answers here if this member leads or was asked to; passes the request on to the leader otherwise."""

        async def answer(request: HttpRequest) -> HttpResponse:
            member = self._member
            if member.lead is None and "pd-allow-follower-handle" not in request.headers:
                return await self._forward(request)
            answered = handler(request)
            return answered if isinstance(answered, HttpResponse) else await answered

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

    def _bootstrapped(self, handler: ClusterHandler) -> Callable[[HttpRequest], HttpResponse]:
        def answer(request: HttpRequest) -> HttpResponse:
            lead = self._member.lead
            if lead is None or not self._cluster.bootstrapped:
                return answer_json(NOT_BOOTSTRAPPED, 500)
            return handler(request, lead)

        return answer

    @property
    def _cluster(self) -> Cluster:
        return self._member.consensus.cluster

    # ---- this member ----

    async def _get_metrics(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, self._metrics.render(), CONTENT_TYPE)

    async def _get_quorum(self, request: HttpRequest) -> HttpResponse:
        """Whether this member knows a leader: the question that etcd answers here."""
        is_healthy = self._member.consensus.leader != 0
        body = b'{"health":"true"}' if is_healthy else b'{"health":"false"}'
        return HttpResponse(200 if is_healthy else 503, body, "text/plain; charset=utf-8")

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

    # ---- members ----

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

    # ---- the cluster ----

    def _get_cluster(self, request: HttpRequest) -> HttpResponse:
        return answer_json({"id": self._member.cluster_id, "max_peer_count": self._member.settings.replicas()})

    def _get_cluster_status(self, request: HttpRequest) -> HttpResponse:
        cluster = self._cluster
        status: Json = {"raft_bootstrap_time": views.ZERO_TIME, "is_initialized": False, "replication_status": ""}
        if cluster.bootstrapped:
            status["raft_bootstrap_time"] = views.timestamp(cluster.bootstrapped_at_ns)
            status["is_initialized"] = self._is_initialized(cluster)
        return answer_json(status)

    def _is_initialized(self, cluster: Cluster) -> bool:
        """Whether the first region was split, or has all its voters, none of them pending."""
        region = cluster.regions.find(b"")
        if len(cluster.regions) > 1 or region is None:
            return region is not None
        report = self._member.lead.reports.regions.get(region.id) if self._member.lead is not None else None
        voters = sum(1 for peer in region.peers if peer.role == metapb.Voter)
        return voters >= self._member.settings.replicas() and report is not None and not report.request.pending_peers

    def _get_config(self, request: HttpRequest) -> HttpResponse:
        cluster = self._cluster
        stores = sorted(cluster.stores)
        return answer_json(config.document(self._member.settings, stores, cluster.cluster_version))

    async def _set_config(self, request: HttpRequest) -> HttpResponse:
        try:
            wanted = json.loads(request.body)
        except ValueError as error:
            return answer_json(f"invalid character in the body: {error}", 400)
        if not isinstance(wanted, dict):
            return answer_json("a JSON object of settings is wanted", 400)
        named: dict[str, str] = {}
        for key, value in wanted.items():
            name = config.full_name(key)
            if name is None:
                return answer_json(f"config item {key} not found", 400)
            if not config.CHANGEABLE[name](value):
                return answer_json(f"config item {key} cannot be {json.dumps(value)}", 400)
            named[name] = json.dumps(value)
        try:
            for name, text in named.items():
                setting = drillpb.PdSetting(key=name, value=text)
                await self._member.consensus.submit(drillpb.PdCommand(setting=setting))
        except (ProposalDropped, Undetermined) as error:
            return answer_json(f"not leader: {error}", 500)
        return answer_json("The config is updated.")

    def _get_safe_points(self, request: HttpRequest) -> HttpResponse:
        services = [
            {"service_id": each.service_id, "expired_at": each.expires_s, "safe_point": each.safe_point}
            for _, each in sorted(self._cluster.service_safe_points.items())
        ]
        view: Json = {"service_gc_safe_points": services}
        if lowest := self._cluster.lowest_service_safe_point():
            view["min_service_gc_safe_point"] = lowest
        return answer_json(view | {"gc_safe_point": self._cluster.safe_point})

    # ---- stores ----

    def _stores(self, lead: Leadership) -> views.StoreViews:
        settings = self._member.settings
        return views.StoreViews(self._cluster, lead.reports, lead.clock.now_ns(), settings.down_after_ns())

    def _get_stores(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        asked = request.query.get("state")
        if asked is None:
            return answer_json(self._stores(lead).all())
        for state in asked:
            if _number(state) is None:
                return answer_json(f"strconv.Atoi: parsing {json.dumps(state)}: invalid syntax", 500)
        return answer_json(self._stores(lead).all({int(state) for state in asked}))

    def _get_store(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        store_id = _number(request.params["id"])
        if store_id is None:
            return answer_json({"code": "input", "msg": _not_a_number(request.params["id"]), "data": {}}, 400)
        store = self._cluster.stores.get(store_id)
        if store is None:
            return answer_json(f"[PD:core:ErrStoreNotFound]store {store_id} not found", 404)
        return answer_json(self._stores(lead).one(store))

    def _get_store_limits(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        return answer_json(config.schedule(self._member.settings, sorted(self._cluster.stores))["store-limit"])

    def _get_labels(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        pairs = {(label.key, label.value) for store in self._cluster.stores.values() for label in store.labels}
        return answer_json([{"key": key, "value": value} for key, value in sorted(pairs)] or None)

    def _get_stores_in_state(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        wanted = {state.lower() for state in request.query.get("state", []) if state}
        if unknown := wanted - STORE_STATES:
            return answer_json(f"unknown StoreState: {unknown.pop()}", 400)
        stores = [store for _, store in sorted(self._cluster.stores.items())]
        shown = self._stores(lead)
        kept = [store for store in stores if not wanted or shown.state_of(store).lower() in wanted]
        return answer_json({"count": len(kept), "stores": [shown.one(store) for store in kept]})

    # ---- regions ----

    def _view(self, meta: metapb.Region, reports: Reports) -> Json:
        return views.region(meta, reports.regions.get(meta.id), reports.leader_of(meta))

    def _regions(self, lead: Leadership, metas: list[metapb.Region]) -> HttpResponse:
        return answer_compact(views.regions([self._view(meta, lead.reports) for meta in metas]))

    def _region(self, lead: Leadership, meta: metapb.Region | None) -> HttpResponse:
        return answer_compact(views.NO_REGION if meta is None else self._view(meta, lead.reports))

    def _get_region_by_id(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        region_id = _number(request.params["id"])
        if region_id is None:
            return _bad_number(request.params["id"])
        return self._region(lead, self._cluster.regions.get(region_id))

    def _get_region_by_key(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        key = unquote_to_bytes(urlsplit(request.target).path.rpartition("/")[2].replace("+", " "))
        if request.first("format") == "hex":
            try:
                key = bytes.fromhex(key.decode("ascii"))
            except ValueError as error:
                return answer_json(f"encoding/hex: {error}", 400)
        return self._region(lead, self._cluster.regions.find(key))

    def _get_regions_by_key(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        # Keys are bytes, so the query is read again without taking it for text.
        query = dict(parse_qsl(urlsplit(request.target).query.encode(), keep_blank_values=True))
        limit = _number(query.get(b"limit", b"16").decode("ascii", "replace"))
        if limit is None:
            return _bad_number(query[b"limit"].decode("ascii", "replace"))
        start, end = query.get(b"key", b""), query.get(b"end_key", b"")
        return self._regions(lead, self._cluster.regions.scan(start, end, limit))

    def _get_regions_of_store(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        store_id = _number(request.params["id"])
        if store_id is None:
            return _bad_number(request.params["id"])
        metas = [meta for meta in self._cluster.regions if any(peer.store_id == store_id for peer in meta.peers)]
        return self._regions(lead, metas)

    def _get_top(self, measure: Measure, request: HttpRequest, lead: Leadership) -> HttpResponse:
        limit = _number(request.first("limit", str(TOP)))
        if limit is None:
            return _bad_number(request.first("limit"))
        metas = sorted(
            self._cluster.regions, key=lambda meta: measure(meta, lead.reports.regions.get(meta.id)), reverse=True
        )
        return self._regions(lead, metas[:limit])

    def _get_siblings(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        region_id = _number(request.params["id"])
        if region_id is None:
            return _bad_number(request.params["id"])
        regions = self._cluster.regions
        meta = regions.get(region_id)
        if meta is None:
            return answer_json(f"[PD:region:ErrRegionNotFound]region {region_id} not found", 404)
        neighbours = [regions.before(meta.start_key), regions.after(meta)]
        shown = [views.NO_REGION if each is None else self._view(each, lead.reports) for each in neighbours]
        return answer_compact(views.regions(shown))

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
        return answer_json(views.histogram(sizes, _number(request.first("bound", "1")) or 1))

    def _get_keys(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        keys = [MEASURES["keys"](meta, lead.reports.regions.get(meta.id)) for meta in self._cluster.regions]
        return answer_json(views.histogram(keys, _number(request.first("bound", "1000")) or 1000))

    # ---- operators ----

    def _get_operators(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        kind = request.first("kind")
        shown = [each for each in lead.placement.running.values() if not kind or kind in each.kind.split(",")]
        return answer_json([views.operator(each) for each in shown] or (None if kind else []))

    def _get_operator_records(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        records = [views.operator_record(each) for each in lead.placement.records]
        return answer_json(records) if records else answer_json(NO_OPERATOR, 500)

    def _get_operator(self, request: HttpRequest) -> HttpResponse:
        region_id = _number(request.params["id"])
        if region_id is None:
            return _bad_number(request.params["id"])

        def answer(request: HttpRequest, lead: Leadership) -> HttpResponse:
            running = lead.placement.running.get(region_id)
            return answer_json(NO_OPERATOR, 500) if running is None else answer_json(views.operator(running))

        return self._bootstrapped(answer)(request)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and int(text) < 1 << 64 else None


def _not_a_number(text: str) -> str:
    return f"strconv.ParseUint: parsing {json.dumps(text)}: invalid syntax"


def _bad_number(text: str) -> HttpResponse:
    return answer_json(_not_a_number(text), 400)
