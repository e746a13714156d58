"""Metrics, read back by Prometheus' own parser."""

from __future__ import annotations

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from drillyard.emulator.metrics import Registry


def parsed(registry: Registry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(registry.render().decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_counters_gauges_and_histograms() -> None:
    registry = Registry()
    calls = registry.counter("tikv_calls_total", "Calls.", ("type", "status"))
    calls.labels("raw_get", "ok").inc()
    calls.labels("raw_get", "ok").inc(2)
    calls.labels("raw_put", "ok")
    regions = registry.gauge("tikv_regions", "Regions.").labels()
    regions.set(3)
    regions.dec()
    registry.gauge("tikv_asked", "Asked.").labels().read_from(lambda: 7.5)
    took = registry.histogram("tikv_took_seconds", "Took.", ("type",), (0.1, 1.0)).labels("raw_get")
    for value in (0.05, 0.1, 0.5, 3.0):
        took.observe(value)
    values = parsed(registry)
    assert values["tikv_calls_total", (("status", "ok"), ("type", "raw_get"))] == 3
    assert values["tikv_calls_total", (("status", "ok"), ("type", "raw_put"))] == 0
    assert values["tikv_regions", ()] == 2
    assert values["tikv_asked", ()] == 7.5
    bucket = "tikv_took_seconds_bucket"
    assert [values[bucket, (("le", le), ("type", "raw_get"))] for le in ("0.1", "1", "+Inf")] == [2, 3, 4]
    assert values["tikv_took_seconds_count", (("type", "raw_get"),)] == 4
    assert values["tikv_took_seconds_sum", (("type", "raw_get"),)] == pytest.approx(3.65)


@pytest.mark.parametrize("value", ['a"b', "back\\slash", "line\nend", "{}=,", "ü"])
def test_label_values_survive(value: str) -> None:
    registry = Registry()
    registry.gauge("g", "About\nit \\ this.", ("l",)).labels(value).set(1)
    assert parsed(registry)["g", (("l", value),)] == 1


@pytest.mark.parametrize("value", [0, -1, 0.1, 1e300, 2**63, float("inf"), float("-inf")])
def test_numbers_survive(value: float) -> None:
    registry = Registry()
    registry.gauge("g", "G.").labels().set(value)
    assert parsed(registry)["g", ()] == value


def test_not_a_number_survives() -> None:
    registry = Registry()
    registry.gauge("g", "G.").labels().set(float("nan"))
    value = parsed(registry)["g", ()]
    assert value != value


def test_the_process_is_described() -> None:
    values = parsed(Registry())
    assert 0 < time.time() - values["process_start_time_seconds", ()] < 24 * 3600
    assert 1 << 20 < values["process_resident_memory_bytes", ()] < 8 << 30
    assert values["process_cpu_seconds_total", ()] > 0
    assert values["process_open_fds", ()] > 2
    assert values["process_max_fds", ()] > 2


def test_values_can_be_refreshed_and_forgotten() -> None:
    registry = Registry()
    stores = registry.gauge("pd_stores", "Stores.", ("state",))
    registry.before_render(lambda: stores.labels("up").set(3))
    assert parsed(registry)["pd_stores", (("state", "up"),)] == 3
    stores.labels("down").set(1)
    stores.clear()
    assert ("pd_stores", (("state", "down"),)) not in parsed(registry)


def test_mistakes_of_ours_raise() -> None:
    registry = Registry()
    family = registry.counter("a_total", "A.", ("type",))
    with pytest.raises(ValueError, match="exists already"):
        registry.gauge("a_total", "A.")
    with pytest.raises(ValueError, match="no metric name"):
        registry.gauge("a-b", "A.")
    with pytest.raises(ValueError, match="labels"):
        family.labels()
