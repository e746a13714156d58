"""A suite of somebody's for each test; nothing of it outlives the test."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from users_suite import Suite

from drillyard.faces.api import Yard

# A suite that was started in the background of a shell ignores SIGINT, and so would the pytest that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    made = Suite(tmp_path)
    yield made
    yard = Yard(made.home)
    for standing in asyncio.run(yard.list()).standings:
        asyncio.run(yard.cluster(standing.name).down(delete_data=True))
