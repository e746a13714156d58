"""The load of `./yard bench` through tikv-client does what it says it does."""

from __future__ import annotations

from client_cluster import ClientCluster
from load_actions import check_a_call_that_fails, check_every_action

from bench.load import Client


def test_the_load_of_tikv_client(cluster: ClientCluster) -> None:
    check_every_action(Client.UNARY, cluster.pd_endpoints)
    check_a_call_that_fails(Client.UNARY, cluster.pd_endpoints)
