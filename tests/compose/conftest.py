"""Tests in which the caller's environment shapes no Compose file and finds no relay."""

from __future__ import annotations

import pytest

from drillyard.runtimes import compose_file


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ("DRILLYARD_RELAY_IMAGE", "DRILLYARD_REACH")
    for name in (*compose_file.DEFAULTS, *compose_file.PORT_VARIABLES.values(), *own):
        monkeypatch.delenv(name, raising=False)
