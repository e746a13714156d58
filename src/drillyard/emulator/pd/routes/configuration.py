"""PD's configuration and the cluster as a whole over HTTP.

Rules: what is shown is what PD acts on; a setting that is not acted on is refused when somebody changes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from drillyard.emulator.http import HttpRequest, HttpResponse
from drillyard.emulator.pd import config, views
from drillyard.emulator.pd.cluster import Cluster
from drillyard.emulator.pd.routes.answers import V1, Room, Route, answer_json
from drillyard.emulator.pd.settings import full_name, mistake_of
from drillyard.emulator.pd.views import Json
from drillyard.wire import drillpb, metapb


class ConfigRoutes(Room):
    def routes(self) -> Sequence[Route]:
        return (
            Route("GET", f"{V1}/cluster", self._get_cluster),
            Route("GET", f"{V1}/cluster/status", self._get_cluster_status),
            Route("GET", f"{V1}/config", self._get_config),
            Route("GET", f"{V1}/config/schedule", self._get_schedule),
            Route("GET", f"{V1}/config/replicate", self._get_replication),
            Route("GET", f"{V1}/config/pd-server", lambda request: answer_json(config.PD_SERVER)),
            Route("GET", f"{V1}/config/label-property", lambda request: answer_json({})),
            Route("GET", f"{V1}/config/cluster-version", self._get_cluster_version),
            Route("GET", f"{V1}/config/replication-mode", lambda request: answer_json(config.REPLICATION_MODE)),
            *(
                Route("POST", f"{V1}/{path}", self._set_config)
                for path in ("config", "config/schedule", "config/replicate")
            ),
        )

    def _get_schedule(self, request: HttpRequest) -> HttpResponse:
        return answer_json(config.schedule(self._member.settings, self._cluster))

    def _get_replication(self, request: HttpRequest) -> HttpResponse:
        return answer_json(config.replication(self._member.settings))

    def _get_cluster_version(self, request: HttpRequest) -> HttpResponse:
        return answer_json(self._cluster.cluster_version)

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
        return answer_json(config.document(self._member.settings, self._cluster))

    async def _set_config(self, request: HttpRequest) -> HttpResponse:
        try:
            wanted = json.loads(request.body)
        except ValueError as error:
            return answer_json(f"invalid character in the body: {error}", 400)
        if not isinstance(wanted, dict):
            return answer_json("a JSON object of settings is wanted", 400)
        named: dict[str, str] = {}
        for key, value in wanted.items():
            name = full_name(key)
            if name is None:
                return answer_json(f"config item {key} not found", 400)
            if mistake := mistake_of(name, value):
                return answer_json(f"config item {key} cannot be {json.dumps(value)}: {mistake}", 400)
            named[name] = json.dumps(value)
        for name, text in named.items():
            await self._settle(drillpb.PdCommand(setting=drillpb.PdSetting(key=name, value=text)))
        return answer_json("The config is updated.")
