from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from fuzz_members import Members
from hypothesis import HealthCheck, settings

# The same few examples each time; DRILLYARD_FUZZ=N takes N times as many, and others each time.
_TIMES = int(os.environ.get("DRILLYARD_FUZZ", "0"))
settings.register_profile(
    "fuzz",
    max_examples=25 * max(_TIMES, 1),
    derandomize=not _TIMES,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(autouse=True, scope="session")
def profile() -> None:
    settings.load_profile("fuzz")


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    with Members(tmp_path_factory.mktemp("fuzz")) as members:
        yield members
        members.check()
