from __future__ import annotations

from collections.abc import Iterator

import pytest
from real_pd import RealPd


@pytest.fixture(scope="module", params=["81", "66"])
def pd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPd]:
    """Three real PD members of one era, freshly started and healthy."""
    with RealPd(request.param, tmp_path_factory.mktemp(f"pd{request.param}")) as pd:
        yield pd
