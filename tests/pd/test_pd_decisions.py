"""What an operator decides over HTTP, answer by answer as the real PD 8.1 gives it, and what comes of it."""

from __future__ import annotations

from typing import Any

import pytest
from pd_processes import PdProcesses

V1 = "/pd/api/v1"
RULE = {
    "group_id": "pd",
    "id": "default",
    "start_key": "",
    "end_key": "",
    "role": "voter",
    "is_witness": False,
    "count": 3,
}
BUNDLE = {"group_id": "pd", "group_index": 0, "group_override": False, "rules": [RULE]}
UPDATED = "The config is updated."


def coded(message: str, **data: Any) -> dict[str, Any]:
    return {"code": "input", "msg": message, "data": data}


NO_STORE = "[PD:core:ErrStoreNotFound]store 9 not found"
NO_NUMBER = coded('strconv.ParseUint: parsing "x": invalid syntax')
# Method, path, body, status, answer; a set is the words that the answer has to have. None of them changes anything.
REFUSED: list[tuple[str, str, object, int, object]] = [
    ("DELETE", "store/x", None, 400, NO_NUMBER),
    ("DELETE", "store/9", None, 404, NO_STORE),
    (
        "DELETE",
        "store/3",
        None,
        400,
        "[PD:core:ErrStoresNotEnough]can not remove store 3 since the number of up stores would be 2 while need 3",
    ),
    ("POST", "store/9/state?state=Up", None, 404, NO_STORE),
    ("POST", "store/1/state?state=Sideways", None, 400, "invalid state Sideways"),
    ("POST", "store/x/state?state=Up", None, 400, NO_NUMBER),
    ("POST", "store/1/label", b"", 400, coded("unexpected end of JSON input", Offset=0)),
    ("POST", "store/1/label", b"bad", 400, coded("invalid character 'b' looking for beginning of value", Offset=1)),
    (
        "POST",
        "store/1/label",
        [1],
        400,
        coded(
            "json: cannot unmarshal array into Go value of type map[string]interface {}",
            Value="array",
            Type={},
            Offset=1,
            Struct="",
            Field="",
        ),
    ),
    (
        "POST",
        "store/1/label",
        {"-zone": "a"},
        400,
        coded('-zone does not match format "^[$]?[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?$"'),
    ),
    ("POST", "store/9/label", {"zone": "a"}, 500, "[PD:cluster:ErrInvalidStoreID]invalid store id 9, not found"),
    ("DELETE", "store/1/label", "nope", 500, "the label key nope does not exist"),
    ("POST", "store/1/weight", {"region": 1}, 400, "leader weight unset"),
    ("POST", "store/1/weight", {"leader": 1}, 400, "region weight unset"),
    ("POST", "store/1/weight", {"leader": "1", "region": 1}, 400, "bad format leader weight"),
    ("POST", "store/1/weight", {"leader": 1, "region": -1}, 400, "bad format region weight"),
    ("POST", "store/9/weight", {"leader": 1, "region": 1}, 500, NO_STORE),
    ("POST", "store/1/limit", {}, 400, "rate unset"),
    ("POST", "store/1/limit", {"rate": 0}, 400, "invalid rate which should be larger than 0"),
    ("POST", "store/1/limit", {"rate": 5, "type": 7}, 400, "bad format type"),
    ("POST", "store/1/limit", {"rate": 5, "type": "x"}, 400, "unknown type"),
    ("POST", "store/9/limit", {"rate": 5}, 500, NO_STORE),
    ("POST", "stores/limit", {"rate": "x"}, 400, "invalid rate which should be larger than 0"),
    ("GET", "stores/progress", None, 400, "need query parameters"),
    (
        "GET",
        "stores/progress?id=1",
        None,
        404,
        "[PD:progress:ErrProgressNotFound]no progress found for the given store ID: 1",
    ),
    (
        "GET",
        "stores/progress?action=removing",
        None,
        404,
        "[PD:progress:ErrProgressNotFound]no progress found for the action: removing",
    ),
    ("POST", "config", b"", 400, "unexpected end of JSON input"),
    ("POST", "config", {"nope": 1}, 400, "config item nope not found"),
    ("POST", "config", {"nope.nope": 1}, 400, "config prefix nope not found"),
    ("POST", "config", {"pd-server.nope": 1}, 400, "config item nope not found"),
    ("POST", "config", {"log.format": "json"}, 400, "only support changing log level"),
    ("POST", "config", {"log.level": "loud"}, 400, "log level loud is illegal"),
    ("POST", "config", {"log.level": 3}, 400, "input value 3 is illegal"),
    ("POST", "config", {"cluster-version": 8}, 400, "input value 8 is illegal"),
    ("POST", "config", {"pd-server.key-type": "raw"}, 400, {"key-type", "would have no effect"}),
    ("POST", "config", {"max-store-down-time": "1h", "nope": 1}, 400, "config item nope not found"),
    ("POST", "config/schedule", b"[]", 400, {"cannot unmarshal array"}),
    ("POST", "config/cluster-version", {}, 400, coded("not set cluster-version")),
    ("POST", "config/replication-mode", {"replication-mode": "x"}, 500, "invalid replication mode: x"),
    ("POST", "config/label-property", {"action": "x"}, 500, "unknown action x"),
    ("POST", "config/rule", RULE, 400, {"placement rules cannot be changed"}),
    ("GET", "config/rule/pd/nope", None, 404, "[PD:placement:ErrRuleNotFound]rule not found"),
    ("GET", "config/rules/region/9", None, 404, "[PD:region:ErrRegionNotFound]region 9 not found"),
    ("DELETE", "gc/safepoint/gc_worker", None, 500, "cannot remove service safe point of gc_worker"),
    ("GET", "regions/replicated?startKey=x&endKey=", None, 400, {"encoding/hex"}),
    ("POST", "admin/log", "loud", 400, "log level loud is illegal"),
    ("POST", "admin/unsafe/remove-failed-stores", {"stores": "x"}, 400, "Store ids are invalid"),
    (
        "POST",
        "admin/unsafe/remove-failed-stores",
        {"stores": [9]},
        500,
        "[PD:unsaferecovery:ErrUnsafeRecoveryInvalidInput]invalid input store 9 doesn't exist",
    ),
    ("POST", "admin/unsafe/remove-failed-stores", {"auto-detect": True}, 500, {"not supported by the emulator"}),
]
READ: list[tuple[str, object]] = [
    ("config/rules", [RULE]),
    ("config/rules/group/pd", [RULE]),
    ("config/rules/group/x", None),
    ("config/rules/key/00ff", [RULE]),
    ("config/rule/pd/default", RULE),
    ("config/rule_groups", [{"id": "pd"}]),
    ("config/rule_group/pd", {"id": "pd"}),
    ("config/placement-rule", [BUNDLE]),
    ("config/placement-rule/pd", BUNDLE),
    (
        "replication_mode/status",
        {"mode": "majority", "dr-auto-sync": {"label_key": "", "state": "", "acid_consistent": False}},
    ),
    (
        "min-resolved-ts",
        {"is_real_time": True, "min_resolved_ts": 0, "persist_interval": "1s", "stores_min_resolved_ts": None},
    ),
    ("admin/unsafe/remove-failed-stores/show", [{"info": "No on-going recovery."}]),
    ("regions/replicated?startKey=&endKey=", "REPLICATED"),
    ("labels/stores?name=zone&value=none", {"count": 0, "stores": []}),
]


def leader_of(servers: PdProcesses) -> int:
    return servers.wait_for_leader()


@pytest.mark.parametrize(("method", "path", "body", "status", "answer"), REFUSED)
def test_what_is_refused(whole: PdProcesses, method: str, path: str, body: object, status: int, answer: object) -> None:
    given = whole.send(leader_of(whole), method, f"{V1}/{path}", body)
    assert given[0] == status, given
    if isinstance(answer, set):
        assert all(words in str(given[1]) for words in answer)
    else:
        assert given[1] == answer


@pytest.mark.parametrize(("path", "answer"), READ)
def test_what_is_shown(whole: PdProcesses, path: str, answer: object) -> None:
    assert whole.send(leader_of(whole), "GET", f"{V1}/{path}") == (200, answer)


def test_hot_spots_and_the_trend_have_the_fields_of_the_real_ones(whole: PdProcesses) -> None:
    leader = leader_of(whole)
    for kind in ("write", "read"):
        shown = whole.ask(leader, f"{V1}/hotspot/regions/{kind}")
        assert list(shown) == ["as_peer", "as_leader"]
        assert list(shown["as_peer"]) == ["1", "2", "3"]
        assert list(shown["as_leader"]["1"].items()) == [
            ("store_bytes", 0),
            ("store_keys", 0),
            ("store_query", 0),
            ("total_flow_bytes", 0),
            ("total_flow_keys", 0),
            ("total_flow_query", 0),
            ("regions_count", 0),
            ("statistics", []),
        ]
        assert list(whole.told(leader, f"{V1}/hotspot/regions/{kind}?store_id=2")["as_peer"]) == ["2"]
        assert whole.send(leader, "GET", f"{V1}/hotspot/regions/{kind}?store_id=x") == (400, "invalid store id: x")
    rates = whole.ask(leader, f"{V1}/hotspot/stores")
    assert sorted(rates) == sorted(
        f"{what}-{kind}-rate" for what in ("bytes", "keys", "query") for kind in ("write", "read")
    )
    trend = whole.ask(leader, f"{V1}/trend")
    assert [store["id"] for store in trend["stores"]] == [1, 2, 3]
    assert trend["stores"][0]["hot_write_region_flows"] is None
    assert whole.send(leader, "GET", f"{V1}/hotspot/regions/history") == (400, "unexpected end of JSON input")


def test_the_default_configuration_has_the_shape_of_the_present_one(whole: PdProcesses) -> None:
    leader = leader_of(whole)
    default, present = (whole.ask(leader, f"{V1}/{path}") for path in ("config/default", "config"))
    assert list(default) == list(present)
    assert default["client-urls"] == "http://127.0.0.1:2379"


def test_a_mistake_among_settings_changes_none(whole: PdProcesses) -> None:
    leader = leader_of(whole)
    before = whole.ask(leader, f"{V1}/config")
    assert whole.send(leader, "POST", f"{V1}/config", {"leader-schedule-limit": 9, "nope": 1})[0] == 400
    assert whole.ask(leader, f"{V1}/config") == before


def test_what_is_said_about_a_store_outlives_its_leader(whole: PdProcesses) -> None:
    leader = leader_of(whole)

    def say(method: str, path: str, body: object, answer: str) -> None:
        assert whole.send(leader, method, f"{V1}/{path}", body) == (200, answer)

    labelled = "The store's label is updated."
    say("POST", "store/2/label", {"zone": "a", "rack": "1"}, labelled)
    say("POST", "store/2/label", {"ZONE": "b"}, labelled)
    say("DELETE", "store/2/label", "rack", "The label rack is deleted for store 2.")
    say("POST", "store/2/weight", {"leader": 0.5, "region": 2}, "The store's weight is updated.")
    say("POST", "store/2/limit", {"rate": 7, "type": "add-peer"}, "The store's limit is updated.")
    say("POST", "stores/limit", {"rate": 9, "type": "remove-peer"}, "Set store limit successfully.")
    say(
        "POST",
        "stores/limit",
        {"rate": 8, "labels": {"zone": "b"}, "type": "add-peer"},
        "Set store limit successfully.",
    )
    say("POST", "config", {"cluster-version": "8.0.0"}, UPDATED)
    say("POST", "config", {"log.level": "debug"}, UPDATED)
    assert whole.told(leader, f"{V1}/config")["log"]["level"] == "debug"
    say("POST", "admin/log", "info", "The log level is updated.")
    assert whole.told(leader, f"{V1}/config")["log"]["level"] == "info"
    other = next(place for place in range(3) if place != leader)
    say("POST", f"leader/transfer/{whole.names[other]}", None, "The transfer command is submitted.")
    assert whole.wait_for_leader() == other
    store = whole.ask(other, f"{V1}/store/2")
    assert store["store"]["labels"] == [{"key": "zone", "value": "b"}]
    assert (store["status"]["leader_weight"], store["status"]["region_weight"]) == (0.5, 2)
    limits = whole.ask(other, f"{V1}/stores/limit")
    assert limits == whole.told(other, f"{V1}/config/schedule")["store-limit"]
    assert [limits[each] for each in "123"] == [
        {"add-peer": 15, "remove-peer": 9},
        {"add-peer": 8, "remove-peer": 9},
        {"add-peer": 15, "remove-peer": 9},
    ]
    assert whole.ask(other, f"{V1}/config/cluster-version") == "8.0.0"
    assert whole.told(other, f"{V1}/labels/stores?name=ZO")["count"] == 1


def test_a_destroyed_store_ends_as_a_tombstone(whole: PdProcesses) -> None:
    """The last test here: the store stays gone."""
    leader = leader_of(whole)
    assert whole.send(leader, "DELETE", f"{V1}/store/3?force") == (200, "The store is set as Offline.")
    shown = whole.told(leader, f"{V1}/store/3")["store"]
    assert (shown["state"], shown["node_state"], shown["state_name"]) == (1, 2, "Offline")
    assert shown["physically_destroyed"] is True
    destroyed = "[PD:core:ErrStoreDestroyed]store 3 has been physically destroyed"
    assert whole.send(leader, "POST", f"{V1}/store/3/state?state=Up") == (400, destroyed)
    assert whole.send(leader, "DELETE", f"{V1}/stores/remove-tombstone") == (200, "Remove tombstone successfully.")
    assert whole.told(leader, f"{V1}/stores")["count"] == 3  # it is none yet: it has a peer of the region
