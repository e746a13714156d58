"""Where regions are cut."""

from __future__ import annotations

import pytest

from drillyard.emulator.store.region import Region
from drillyard.emulator.store.split_keys import SplitLimits, Survey, valid_keys, without_version
from drillyard.wire import keys

WHOLE = Region(2)


def walked(count: int, limits: SplitLimits, size: int = 10) -> Survey:
    survey = Survey(limits)
    for number in range(count):
        survey.pass_by(b"%06d" % number, size)
    return survey


@pytest.mark.parametrize(
    ("count", "parts"),
    [
        (10, [10]),
        (14, [14]),
        (15, [10, 5]),
        (24, [10, 14]),
        (25, [10, 10, 5]),
        (400, [10] * 10 + [300]),
    ],
)
def test_a_large_region_is_cut_into_parts_and_the_rest_is_not_made_too_small(count: int, parts: list[int]) -> None:
    by_size = walked(count, SplitLimits(split_bytes=100, max_bytes=150))
    by_keys = walked(count, SplitLimits(split_keys=10, max_keys=15))
    for survey in (by_size, by_keys):
        assert (survey.size, survey.count) == (10 * count, count)
        cuts = [int(key) for key in survey.oversize_keys(WHOLE)]
        ends = [*cuts, count]
        assert [end - start for start, end in zip([0, *cuts], ends, strict=True)] == parts


@pytest.mark.parametrize("count", [2, 3, 50, 1000, 40_000])
def test_the_middle_is_found_in_regions_of_any_size(count: int) -> None:
    (key,) = walked(count, SplitLimits()).middle_key(WHOLE)
    assert abs(int(key) - count / 2) <= max(1, count / 50)


@pytest.mark.parametrize("count", [0, 1])
def test_what_holds_less_than_two_keys_has_no_middle(count: int) -> None:
    assert walked(count, SplitLimits()).middle_key(WHOLE) == ()


def test_the_middle_is_one_of_bytes_not_of_keys() -> None:
    survey = Survey(SplitLimits())
    for number in range(100):
        survey.pass_by(b"%06d" % number, 1000 if number < 10 else 1)
    (key,) = survey.middle_key(WHOLE)
    assert int(key) < 10


def test_versions_of_one_key_stay_together() -> None:
    encoded = keys.encode(b"a key of some length")
    assert without_version(encoded + b"\xff" * 8) == without_version(encoded) == encoded
    assert without_version(b"plain") == b"plain"
    region = Region(2, encoded, b"")
    assert valid_keys(region, [encoded + b"\x01" * 8, b"zz", b"zz"]) == (b"zz",), "the start of a region is no cut"
    assert valid_keys(Region(2, b"", b"m"), [b"", b"a", b"m"]) == (b"a",)
