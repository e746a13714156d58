"""PD's configuration and the cluster as a whole over HTTP.

Rules: a change of a setting that the emulator acts on goes into the replicated state; the log level is the member's
own. What else the document shows cannot be changed, and is refused by name: pretending would mislead an operator.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from drillyard.emulator.http import HttpRequest, HttpResponse
from drillyard.emulator.pd import config, views
from drillyard.emulator.pd.cluster import Cluster
from drillyard.emulator.pd.routes.answers import (
    V1,
    Refused,
    Room,
    Route,
    answer_json,
    bad_input,
    read_object,
)
from drillyard.emulator.pd.routes.go import NoJson, json_of, wrong_kind
from drillyard.emulator.pd.settings import LEGAL_LEVELS, full_name, mistake_of
from drillyard.emulator.pd.stores import parse_version
from drillyard.emulator.pd.views import Json
from drillyard.wire import drillpb, metapb

SECTIONS = ("schedule", "replication", "pd-server", "replication-mode", "log", "keyspace", "micro-service")
MAJORITY: Json = {"mode": "majority", "dr-auto-sync": {"label_key": "", "state": "", "acid_consistent": False}}


class ConfigRoutes(Room):
    def routes(self) -> Sequence[Route]:
        return (
            Route("GET", f"{V1}/cluster", self._get_cluster),
            Route("GET", f"{V1}/cluster/status", self._get_cluster_status),
            Route("GET", f"{V1}/config", self._get_config),
            Route("GET", f"{V1}/config/default", self._get_default),
            Route("GET", f"{V1}/config/schedule", self._get_schedule),
            Route("GET", f"{V1}/config/replicate", self._get_replication),
            Route("GET", f"{V1}/config/pd-server", lambda request: answer_json(config.PD_SERVER)),
            Route("GET", f"{V1}/config/label-property", lambda request: answer_json({})),
            Route("GET", f"{V1}/config/cluster-version", self._get_cluster_version),
            Route("GET", f"{V1}/config/replication-mode", lambda request: answer_json(config.REPLICATION_MODE)),
            Route("GET", f"{V1}/replication_mode/status", cluster_handler=lambda request, lead: answer_json(MAJORITY)),
            Route("POST", f"{V1}/config", self._set_config),
            Route("POST", f"{V1}/config/schedule", lambda request: self._set_section(request, "schedule")),
            Route("POST", f"{V1}/config/replicate", lambda request: self._set_section(request, "replication")),
            Route("POST", f"{V1}/config/cluster-version", self._set_cluster_version),
            Route("POST", f"{V1}/config/replication-mode", self._set_replication_mode),
            Route("POST", f"{V1}/config/label-property", self._set_label_property),
        )

    def _get_default(self, request: HttpRequest) -> HttpResponse:
        """What a member would show that was started without flags, but for what it fills in only when it starts."""
        name = f"pd-{platform.node()}"
        client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
        data_dir = str(Path(f"default.{name}").resolve())
        options = config.Options(name, data_dir, client, client, peer, peer, f"{name}={peer}", log_level="")
        document = config.document(config.Settings(options, dict), Cluster())
        document["schedule"]["max-merge-region-keys"] = 0
        document["label-property"] = None
        return answer_json(document)

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

    # ---- changes ----

    async def _set_config(self, request: HttpRequest) -> HttpResponse:
        """Any settings at once. All are checked before the first is changed, so that a mistake changes nothing."""
        wanted = _object(request)
        if request.first("ttlSecond"):
            return answer_json("settings for a while only (ttlSecond) are not supported by the emulator", 400)
        for key, value in wanted.items():
            if mistake := self._mistake_of(key, value):
                return answer_json(mistake, 400)
        for key, value in wanted.items():
            await self._change(key, value)
        return answer_json("The config is updated.")

    async def _set_section(self, request: HttpRequest, section: str) -> HttpResponse:
        """Some settings of one section. What is no setting at all is passed over, as PD does."""
        wanted = read_object(request) if section == "replication" else _object(request)
        shown = config.schedule(self._member.settings, self._cluster) if section == "schedule" else {}
        shown = shown or config.replication(self._member.settings)
        named = {f"{section}.{key}": value for key, value in wanted.items() if key in shown}
        for key, value in named.items():
            if mistake := self._mistake_of(key, value):
                return bad_input(mistake)
        for key, value in named.items():
            await self._change(key, value)
        return answer_json("The config is updated.")

    def _mistake_of(self, key: str, value: Json) -> str:
        """What is wrong with a change; nothing if it can be carried out."""
        if key == "cluster-version":
            return _version_mistake(value)
        if key == "log.level":
            return _level_mistake(value)
        if (name := full_name(key)) is not None:
            mistake = mistake_of(name, value)
            return f"config item {key} cannot be {json.dumps(value)}: {mistake}" if mistake else ""
        section = key.partition(".")[0]
        document = config.document(self._member.settings, self._cluster)
        if "." in key and section not in SECTIONS:
            return f"config prefix {section} not found"
        if section == "log" and "." in key:
            return "only support changing log level"
        sections = [section] if "." in key else SECTIONS
        item = key.rpartition(".")[2]
        shown = next((each for each in sections if item in (document.get(each) or {})), "")
        if not shown:
            return f"config item {item} not found"
        if document[shown][item] == value:
            return ""  # as it is: nothing to be done
        return f"config item {shown}.{item} cannot be changed in the emulator: it would have no effect"

    async def _change(self, key: str, value: Json) -> None:
        if key == "cluster-version":
            await self._settle(drillpb.PdCommand(cluster_version=value.removeprefix("v")))
        elif key == "log.level":
            self._member.set_log_level(value)
        elif (name := full_name(key)) is not None:
            setting = drillpb.PdSetting(key=name, value=json.dumps(value))
            await self._settle(drillpb.PdCommand(setting=setting))

    async def _set_cluster_version(self, request: HttpRequest) -> HttpResponse:
        version = read_object(request).get("cluster-version")
        if version is None:
            return bad_input("not set cluster-version")
        if mistake := _version_mistake(version):
            shaped = answer_json({"code": "internal", "msg": mistake, "data": {}}, 500)
            return replace(shaped, headers=(("TiDB-Error-Code", "internal"),))
        await self._change("cluster-version", version)
        return answer_json("The cluster version is updated.")

    def _set_replication_mode(self, request: HttpRequest) -> HttpResponse:
        mode = read_object(request).get("replication-mode", "majority")
        if mode == "majority":
            return answer_json("The replication mode config is updated.")
        if isinstance(mode, str) and mode.replace("_", "-").lower() == "dr-auto-sync":
            return answer_json("the emulator has no replication mode but majority", 400)
        return answer_json(f"invalid replication mode: {mode}", 500)

    def _set_label_property(self, request: HttpRequest) -> HttpResponse:
        action = read_object(request).get("action", "")
        if action in ("set", "delete"):
            return answer_json("label properties cannot be changed in the emulator: they would have no effect", 400)
        return answer_json(f"unknown action {action}", 500)


def _object(request: HttpRequest) -> dict[str, Json]:
    """The settings in a body. PD answers a mistake in it as plain JSON text here, not as coded input."""
    try:
        wanted = json_of(request.body)
    except NoJson as error:
        raise Refused(answer_json(error.mistake.message, 400)) from error
    if not isinstance(wanted, dict):
        raise Refused(answer_json(wrong_kind(wanted), 400))
    return wanted


def _version_mistake(value: Json) -> str:
    if not isinstance(value, str):
        return f"input value {json.dumps(value)} is illegal"
    return "" if value and parse_version(value) is not None else f"{value} is not in dotted-tri format"


def _level_mistake(value: Json) -> str:
    if not isinstance(value, str):
        return f"input value {json.dumps(value)} is illegal"
    return "" if value.lower() in LEGAL_LEVELS else f"log level {value} is illegal"
