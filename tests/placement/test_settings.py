"""What of PD's configuration may change, and what a change becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from drillyard.emulator.pd.settings import READERS, Placing, full_name, mistake_of, parse_duration, placing_of


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("max-replicas", 5, 5),
        ("replication.max-replicas", 1.0, 1),
        ("location-labels", "zone,host", ("zone", "host")),
        ("location-labels", "", ()),
        ("isolation-level", "zone", "zone"),
        ("enable-placement-rules", "false", False),
        ("max-store-down-time", "60s", 60 * 10**9),
        ("schedule.split-merge-interval", "1h30m", 5400 * 10**9),
        ("leader-schedule-policy", "size", "size"),
        ("region-schedule-limit", 0, 0),
        ("low-space-ratio", 0.9, 0.9),
        ("enable-make-up-replica", True, True),
    ],
)
def test_a_change_is_read(key: str, value: Any, expected: Any) -> None:
    name = full_name(key)
    assert name is not None
    assert mistake_of(name, value) == ""
    placing = placing_of(Placing(), {name: json.dumps(value)})
    assert getattr(placing, name.partition(".")[2].replace("-", "_")) == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max-replicas", 0),
        ("max-replicas", 8),
        ("max-replicas", True),
        ("max-store-down-time", 60),
        ("max-store-down-time", "soon"),
        ("location-labels", ["zone", 3]),
        ("location-labels", "zone,,host"),
        ("leader-schedule-policy", "mood"),
        ("low-space-ratio", 1.5),
        ("merge-schedule-limit", -1),
        ("enable-joint-consensus", "yes"),
    ],
)
def test_what_makes_no_sense_is_refused(key: str, value: Any) -> None:
    name = full_name(key)
    assert name is not None
    assert mistake_of(name, value)


def test_every_setting_is_in_one_section_and_found_by_its_short_name() -> None:
    assert len(READERS) == len(Placing.__struct_fields__)
    for name in READERS:
        assert full_name(name) == full_name(name.partition(".")[2]) == name
    assert full_name("enable-witness") is None


@pytest.mark.parametrize(("text", "span"), [("1h30m", 5400 * 10**9), ("10ms", 10**7), ("1m1.5s", 61_500_000_000)])
def test_spans(text: str, span: int) -> None:
    assert parse_duration(text) == span


@pytest.mark.parametrize("text", ["", "10", "10x", "s", "1h 30m"])
def test_what_is_no_span(text: str) -> None:
    assert parse_duration(text) is None
