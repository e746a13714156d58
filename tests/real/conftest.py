from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from real_pd import USUAL_PORTS, RealPd

AT_USUAL_PORTS = ("test_compose_", "test_causes_links", "test_evidence_page")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two groups for two workers: Docker and the usual ports are there once; what has ports of its own runs beside."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("xdist_group") is None:
            is_usual = item.path.name.startswith(AT_USUAL_PORTS)
            item.add_marker(pytest.mark.xdist_group(USUAL_PORTS if is_usual else "ports of their own"))


@pytest.fixture(scope="module", params=["81", "66"])
def pd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPd]:
    """Three real PD members of one era, freshly started and healthy."""
    with RealPd(request.param, tmp_path_factory.mktemp(f"pd{request.param}")) as pd:
        yield pd
