"""The comparison of two PDs' answers: what is of one cluster alone does not count, everything else does."""

from __future__ import annotations

from typing import Any

import pytest
from normal_form import Names, in_order, is_unordered, normal, parts, unlike

ONE = Names({"7001": "<cluster>", "11": "<id of pd0>", "127.0.0.1:2379": "<client of pd0>"})
TWO = Names({"7002": "<cluster>", "22": "<id of pd0>", "127.0.0.1:9999": "<client of pd0>"})


def differing(one: Any, other: Any) -> list[str]:
    return list(unlike(parts(normal(one, ONE)), parts(normal(other, TWO))))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"cluster_id": 7001}, {"cluster_id": 7002}),
        ({"member_id": 11}, {"member_id": 22}),
        ({"client_urls": ["http://127.0.0.1:2379"]}, {"client_urls": ["http://127.0.0.1:9999"]}),
        ({"start_timestamp": 1}, {"start_timestamp": 2}),
        ({"last_heartbeat_ts": "2026-01-01T00:00:00Z"}, {"last_heartbeat_ts": "2026-02-02T02:02:02.5Z"}),
        ({"end": 1795682103}, {"end": 1795682102}),
        ({"TTL": str((1 << 63) - 1 - 1795682103)}, {"TTL": str((1 << 63) - 1 - 1795682102)}),
        ("op (createAt:2026-01-01 00:00:00 +0000 UTC)", "op (createAt:2027-01-01 00:00:00 +0000 UTC)"),
        ("mismatch cluster id, need 7001 but got 1", "mismatch cluster id, need 7002 but got 1"),
    ],
)
def test_what_is_of_one_cluster_does_not_count(one: Any, other: Any) -> None:
    assert differing(one, other) == []


@pytest.mark.parametrize(
    ("one", "other", "part"),
    [
        ({"a": 1}, {"a": 2}, "body.a"),
        ({"a": 1}, {"a": True}, "body.a"),
        ({"a": None}, {"a": 0}, "body.a"),
        ({"a": 1}, {"a": "1"}, "body.a"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "body.<fields>"),
        ({"a": []}, {"a": None}, "body.a.<length>"),
        ([1, 2], [1], "body.<length>"),
        ({"cluster_id": 7001}, {"cluster_id": 7001}, "body.cluster_id"),  # the other one's
        ({"start_timestamp": 5}, {"start_timestamp": 0}, "body.start_timestamp"),
        ({"last_heartbeat_ts": "2026-01-01T00:00:00Z"}, {"last_heartbeat_ts": ""}, "body.last_heartbeat_ts"),
        ({"TTL": 5}, {"TTL": (1 << 63) - 1}, "body.TTL"),
        ({"TTL": (1 << 63) - 1}, {"TTL": (1 << 63) - 1 - 1795682103}, "body.TTL"),
        ({"start": 20}, {"start": 21}, "body.start"),
    ],
)
def test_everything_else_counts(one: Any, other: Any, part: str) -> None:
    assert part in differing(one, other)


def test_the_leader_is_called_by_one_name() -> None:
    led_by_two = Names({}, leader="pd2")
    assert led_by_two.plain("pd2 leads pd0 and pd1") == "pd0 leads pd2 and pd1"
    assert led_by_two.called(led_by_two.called("pd2, pd0, pd1")) == "pd2, pd0, pd1"


@pytest.mark.parametrize(
    ("path", "is_set"),
    [("~/regions", True), ("~/regions/key?key=", False), ("~/schedulers", True), ("~/config", False)],
)
def test_only_lists_without_an_order_are_compared_as_sets(path: str, is_set: bool) -> None:
    assert is_unordered(path) is is_set
    assert in_order({"a": [{"b": 2}, {"b": 1}]}) == {"a": [{"b": 1}, {"b": 2}]}
