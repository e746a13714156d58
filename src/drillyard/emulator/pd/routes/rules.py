"""Placement rules over HTTP: the one rule that there is, wherever the real PD shows rules.

Rules: the emulator places by `max-replicas` and the location labels, which is what the default rule says; so that rule
is shown, made of those settings, and changes with them. Rules of other shapes would have no effect, so writing is
refused by name. With placement rules switched off every path answers 412, as the real one's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from drillyard.emulator.http import HttpRequest, HttpResponse
from drillyard.emulator.pd.leadership import Leadership
from drillyard.emulator.pd.routes.answers import (
    V1,
    Answer,
    ClusterHandler,
    Room,
    Route,
    answer_json,
    bad_number,
    bytes_of_hex,
    number,
    read_json,
)
from drillyard.emulator.pd.views import Json

GROUP, RULE = "pd", "default"
DISABLED = "[PD:placement:ErrPlacementDisabled]placement rules feature is disabled"
NOT_FOUND = "[PD:placement:ErrRuleNotFound]rule not found"
UNSUPPORTED = (
    "placement rules cannot be changed in the emulator: it places by replication.max-replicas and "
    "replication.location-labels; set those with config"
)
WRITES = (
    ("POST", "rules"),
    ("POST", "rules/batch"),
    ("POST", "rule"),
    ("DELETE", "rule/{group}/{id}"),
    ("POST", "rule_group"),
    ("DELETE", "rule_group/{id}"),
    ("POST", "placement-rule"),
    ("POST", "placement-rule/{group}"),
    ("DELETE", "placement-rule/{group}"),
)


class RuleRoutes(Room):
    def routes(self) -> Sequence[Route]:
        reads: dict[str, Callable[[HttpRequest], HttpResponse]] = {
            "rules": lambda request: answer_json([self._rule()]),
            "rules/group/{group}": lambda request: answer_json(self._rules_of(request.params["group"])),
            "rules/region/{id}": self._get_by_region,
            "rules/key/{key}": self._get_by_key,
            "rule/{group}/{id}": self._get_rule,
            "rule_groups": lambda request: answer_json([{"id": GROUP}]),
            "rule_group/{id}": self._get_group,
            "placement-rule": lambda request: answer_json([self._bundle(GROUP)]),
            "placement-rule/{group}": lambda request: answer_json(self._bundle(request.params["group"])),
        }
        shown = [Route("GET", f"{V1}/config/{path}", cluster_handler=self._ruled(read)) for path, read in reads.items()]
        refused = self._ruled(_refuse)
        return [*shown, *(Route(method, f"{V1}/config/{path}", cluster_handler=refused) for method, path in WRITES)]

    def _ruled(self, read: Callable[[HttpRequest], HttpResponse]) -> ClusterHandler:
        def answer(request: HttpRequest, lead: Leadership) -> Answer:
            is_on = self._member.settings.placing().enable_placement_rules
            return read(request) if is_on else answer_json(DISABLED, 412)

        return answer

    def _rule(self) -> Json:
        placing = self._member.settings.placing()
        rule: dict[str, Json] = {
            "group_id": GROUP,
            "id": RULE,
            "start_key": "",
            "end_key": "",
            "role": "voter",
            "is_witness": False,
            "count": placing.max_replicas,
        }
        if placing.location_labels:
            rule["location_labels"] = list(placing.location_labels)
        if placing.isolation_level:
            rule["isolation_level"] = placing.isolation_level
        return rule

    def _rules_of(self, group: str) -> Json:
        return [self._rule()] if group == GROUP else None

    def _get_group(self, request: HttpRequest) -> HttpResponse:
        return answer_json({"id": GROUP}) if request.params["id"] == GROUP else answer_json(None, 404)

    def _bundle(self, group: str) -> Json:
        return {"group_id": group, "group_index": 0, "group_override": False, "rules": self._rules_of(group)}

    def _get_rule(self, request: HttpRequest) -> HttpResponse:
        if (request.params["group"], request.params["id"]) != (GROUP, RULE):
            return answer_json(NOT_FOUND, 404)
        return answer_json(self._rule())

    def _get_by_region(self, request: HttpRequest) -> HttpResponse:
        region_id = number(request.params["id"])
        if region_id is None:
            return bad_number(request.params["id"])
        if self._cluster.regions.get(region_id) is None:
            return answer_json(f"[PD:region:ErrRegionNotFound]region {region_id} not found", 404)
        return answer_json([self._rule()])

    def _get_by_key(self, request: HttpRequest) -> HttpResponse:
        try:
            bytes_of_hex(request.params["key"])
        except ValueError as error:
            return answer_json(f"[PD:placement:ErrKeyFormat]key should be in hex format, {error}", 400)
        return answer_json([self._rule()])


def _refuse(request: HttpRequest) -> HttpResponse:
    """No rule is changed; what is no JSON is told first, as the real one does."""
    if request.method == "POST":
        read_json(request)
    return answer_json(UNSUPPORTED, 400)
