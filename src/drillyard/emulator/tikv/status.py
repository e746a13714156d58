"""A store's status server: health, metrics and configuration over HTTP.

`/status` and `/ready` answer 200 without a body, `/metrics` in Prometheus' format under TiKV's names, `/config` the
part of the configuration that means something here and what PD reads, `/region/{id}` one replica. No writes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from drillyard.emulator.http import HttpRequest, HttpResponse, Router, error_response, json_response, text_response
from drillyard.emulator.metrics import CONTENT_TYPE, Registry
from drillyard.emulator.store.region import Region
from drillyard.emulator.tikv.engine import Engine
from drillyard.emulator.version import EMULATED_VERSION, GIT_HASH

MIB = 1 << 20


def config_document(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as nested tables, from dotted keys."""
    document: dict[str, Any] = {
        "coprocessor": {
            "region-max-size": "144MiB",
            "region-split-size": "96MiB",
            "region-max-keys": 1440000,
            "region-split-keys": 960000,
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
    def __init__(self, engine: Engine, metrics: Registry, config: dict[str, Any]) -> None:
        self._engine = engine
        self._metrics = metrics
        self._config = config
        self._make_metrics()

    def router(self) -> Router:
        router = Router()
        router.add("GET", "/status", self._empty)
        router.add("GET", "/ready", self._empty)
        router.add("GET", "/metrics", self._metrics_page)
        router.add("GET", "/config", self._config_page)
        router.add("GET", "/engine_type", self._engine_type)
        router.add("GET", "/region/{id}", self._region)
        return router

    async def _empty(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    async def _metrics_page(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(200, self._metrics.render(), CONTENT_TYPE)

    async def _config_page(self, request: HttpRequest) -> HttpResponse:
        return json_response(self._config)

    async def _engine_type(self, request: HttpRequest) -> HttpResponse:
        return text_response("raft-kv")

    async def _region(self, request: HttpRequest) -> HttpResponse:
        text = request.params["id"]
        replica = self._engine.store.replicas.get(int(text)) if text.isascii() and text.isdigit() else None
        if replica is None:
            return error_response(f"region({text}) not found", 404)
        raft = replica.raft
        return json_response(
            {
                "region": region_document(replica.region),
                "peer_id": replica.me.id,
                "role": raft.role.value,
                "leader_id": raft.leader,
                "term": raft.term,
                "commit": raft.commit,
                "applied": raft.applied,
                "first_index": raft.first_index,
                "last_index": raft.last_index,
            }
        )

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
            hibernated.labels("awaken").set(len(replicas))
            for kind, count in zip(("sending", "receiving", "applying"), engine.snapshot_counts(), strict=True):
                traffic.labels(kind).set(count)

        metrics.before_render(update)


def region_document(region: Region) -> dict[str, Any]:
    return {
        "id": region.id,
        "start_key": region.start.hex().upper(),
        "end_key": region.end.hex().upper(),
        "region_epoch": {"conf_ver": region.epoch.conf_ver, "version": region.epoch.version},
        "peers": [{"id": peer.id, "store_id": peer.store_id, "role": peer.role.name.lower()} for peer in region.peers],
    }
