"""The load of `./yard bench` through client-go does what it says it does."""

from __future__ import annotations

from load_actions import check_a_call_that_fails, check_every_action

from bench.deployment import pd_addresses, standing
from bench.load import Client


def test_the_load_of_client_go() -> None:
    with standing() as deployment:
        endpoints = pd_addresses(deployment.members())
        check_every_action(Client.BATCH, endpoints)
        check_a_call_that_fails(Client.BATCH, endpoints)
