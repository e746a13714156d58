"""A store's status server: health, metrics and configuration over HTTP.

`/status` and `/ready` answer 200 without a body, `/metrics` in Prometheus' format under TiKV's names, `/config` the
part of the configuration that means something here and what PD reads, `/region/{id}` one replica. POST /config and PUT
/log-level change what may change while the store runs (see `online_config`). What is not here is answered as TiKV
answers what it does not know; its profiles, its fail points and its certificates are not here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from drillyard.emulator.http import HttpRequest, HttpResponse, Router, json_bytes, text_response
from drillyard.emulator.member import Member
from drillyard.emulator.metrics import CONTENT_TYPE
from drillyard.emulator.tikv.engine import Engine
from drillyard.emulator.tikv.online_config import HIDDEN, ConfigRefused, OnlineConfig, decode
from drillyard.emulator.tikv.region_meta import region_meta
from drillyard.emulator.version import EMULATED_VERSION, GIT_HASH

_SWITCH = ("true", "false")
SIZES = tuple(float(1 << power) for power in range(10, 31, 2))
MOST_DIGITS = 20  # of a number of 64 bits


def config_document(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as nested tables, from dotted keys."""
    document: dict[str, Any] = {
        "coprocessor": {
            "enable-region-bucket": False,
            "region-bucket-size": "50MiB",
        },
        "storage": {"engine": "raft-kv", "api-version": 1, "enable-ttl": False},
    }
    for name, value in settings.items():
        table = document
        *path, last = name.split(".")
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    return document


class StatusServer:
    """`shown` gives the configuration as it is now, in the form of its file."""

    def __init__(
        self, engine: Engine, member: Member, online: OnlineConfig, shown: Callable[[], dict[str, Any]]
    ) -> None:
        self._engine = engine
        self._metrics = member.metrics
        self._log = member.log
        self._online = online
        self._shown = shown
        self._make_metrics()

    def router(self) -> Router:
        router = Router(missing=text_response("path not found", 404))
        router.add("GET", "/status", self._empty)
        router.add("GET", "/ready", self._empty)
        router.add("GET", "/metrics", self._metrics_page)
        router.add("GET", "/config", self._config_page)
        router.add("POST", "/config", self._change_config)
        router.add("PUT", "/log-level", self._change_log_level)
        router.add("GET", "/engine_type", self._engine_type)
        router.add("GET", "/region/{id}", self._region)
        router.add("GET", "/region", self._no_region)
        return router

    async def _empty(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    async def _metrics_page(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, self._metrics.render(), CONTENT_TYPE)

    async def _engine_type(self, request: HttpRequest) -> HttpResponse:
        return text_response("raft-kv")

    # ---- configuration ----

    async def _config_page(self, request: HttpRequest) -> HttpResponse:
        full = request.first("full", "false")
        if full not in _SWITCH:
            return text_response("provided string was not `true` or `false`", 400)
        document = self._shown()
        if full == "false":
            for name in HIDDEN:
                table, _, key = name.partition(".")
                document.get(table, {}).pop(key, None)
        return HttpResponse(200, json_bytes(document), "application/json")

    async def _change_config(self, request: HttpRequest) -> HttpResponse:
        if request.first("persist", "true") not in _SWITCH:
            return text_response("provided string was not `true` or `false`", 400)
        try:
            asked = decode(request.body)
        except ConfigRefused as refused:
            return text_response(f"failed to decode, error: {refused}", 500)
        try:
            self._online.change(asked)
        except ConfigRefused as refused:
            return text_response(f"failed to update, error: {refused}", 500)
        self._log.info("config changed, until this store is started again", change=json.dumps(asked))
        return HttpResponse()

    async def _change_log_level(self, request: HttpRequest) -> HttpResponse:
        try:
            level = decode(request.body)["log_level"]
            self._online.change({"log.level": level})
        except (ConfigRefused, KeyError) as refused:
            return text_response(f"no log level: {refused}", 400)
        return HttpResponse()

    # ---- regions ----

    async def _no_region(self, request: HttpRequest) -> HttpResponse:
        return text_response(f"path {request.path} not found", 404)

    async def _region(self, request: HttpRequest) -> HttpResponse:
        text = request.params["id"]
        if not text.isascii() or not text.isdigit():
            return await self._no_region(request)
        if len(text) > MOST_DIGITS or int(text) >= 1 << 64:
            return text_response("invalid region id: number too large to fit in target type", 400)
        replica = self._engine.store.replicas.get(int(text))
        if replica is None or not replica.region.is_initialized:
            return text_response(f"region({int(text)}) not found", 404)
        return HttpResponse(200, json_bytes(region_meta(replica)), "application/json")

    def _make_metrics(self) -> None:
        metrics, engine = self._metrics, self._engine
        metrics.gauge("tikv_server_info", "The version of the server.", ("version", "hash")).labels(
            EMULATED_VERSION, GIT_HASH
        ).set(1)
        metrics.gauge("tikv_server_cpu_cores_quota", "CPU cores that the server may use.").labels().set(
            os.cpu_count() or 1
        )
        sizes = metrics.gauge("tikv_store_size_bytes", "The size of the store.", ("type",))
        engine_size = metrics.gauge("tikv_engine_size_bytes", "The size of the engine's files.", ("db", "type"))
        regions = metrics.gauge("tikv_raftstore_region_count", "Regions on the store.", ("type",))
        missing = metrics.gauge("tikv_raftstore_leader_missing", "Regions whose leader is not known here.").labels()
        traffic = metrics.gauge("tikv_raftstore_snapshot_traffic_total", "Snapshots on their way.", ("type",))
        hibernated = metrics.gauge("tikv_raftstore_hibernated_peer_state", "Peers that sleep or not.", ("state",))

        snapshots = metrics.counter(
            "tikv_raftstore_snapshot_total", "Snapshots sent and installed.", ("type", "status")
        )
        snapshot_size = metrics.histogram("tikv_snapshot_size", "The bytes of a snapshot.", (), SIZES).labels()

        def count_snapshot(kind: str, status: str, size: int) -> None:
            snapshots.labels(kind, status).inc()
            if kind == "generate" and status == "success":
                snapshot_size.observe(size)

        engine.on_snapshot = count_snapshot

        def update() -> None:
            storage, replicas = engine.storage, engine.store.replicas.values()
            used = storage.used_bytes
            sizes.labels("capacity").set(storage.capacity)
            sizes.labels("available").set(storage.available)
            sizes.labels("used").set(used)
            engine_size.labels("kv", "default").set(used)
            regions.labels("region").set(sum(replica.region.is_initialized for replica in replicas))
            regions.labels("leader").set(sum(replica.is_leader for replica in replicas))
            missing.set(sum(replica.raft.leader == 0 for replica in replicas))
            asleep = sum(replica.rest.is_asleep for replica in replicas)
            hibernated.labels("awaken").set(len(replicas) - asleep)
            hibernated.labels("hibernated").set(asleep)
            for kind, count in zip(("sending", "receiving", "applying"), engine.snapshot_counts(), strict=True):
                traffic.labels(kind).set(count)

        metrics.before_render(update)
