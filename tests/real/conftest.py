from __future__ import annotations

from collections.abc import Iterator

import pytest
from real_pd import RealPd


@pytest.fixture(scope="module")
def pd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPd]:
    """Three real PD members, freshly started and healthy. The era before has its part in conformance and in mixed
    deployments."""
    with RealPd("81", tmp_path_factory.mktemp("pd")) as pd:
        yield pd
