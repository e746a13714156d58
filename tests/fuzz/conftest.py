from __future__ import annotations

from collections.abc import Iterator

import pytest
from fuzz_members import Members


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    with Members(tmp_path_factory.mktemp("fuzz")) as members:
        yield members
        members.check()
