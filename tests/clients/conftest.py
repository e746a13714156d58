"""Clusters for other people's clients. A file for a client that this machine cannot have is not collected."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
from client_cluster import ClientCluster, started

# tikv-client is a compiled extension for few machines; tikv-python runs everywhere.
collect_ignore = (
    []
    if importlib.util.find_spec("tikv_client")
    else ["test_load.py", "test_tikv_client.py", "test_tikv_client_txn.py"]
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientCluster]:
    """One cluster for the tests of a file; each test leaves it with every member running."""
    with started(tmp_path_factory.mktemp("home")) as subject:
        yield subject
