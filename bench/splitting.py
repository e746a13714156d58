"""Regions to measure on: made by splits through PD, and their leaders spread over the stores by steps of its."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any

from bench.deployment import pd_addresses
from bench.plan import BenchFailed
from drillyard.clients.calls import split_address
from drillyard.wire import pdpb, services
from drillyard.wire.rpc import Channel

SPLIT_AT_ONCE = 100
SPLIT_S = 120.0
SPLIT_ATTEMPTS = 5
LIMIT_S = 60.0


def split(members: dict[str, dict[str, Any]], keys: list[bytes]) -> None:
    """Cuts the key space at these keys, through PD."""

    async def split() -> None:
        channel = Channel(*split_address(members[pd_leader(members)]["addresses"]["client"]))
        try:
            cluster_id = (await channel.unary(services.PD.GetMembers, pdpb.GetMembersRequest())).header.cluster_id
            for start in range(0, len(keys), SPLIT_AT_ONCE):
                await _split_at(channel, cluster_id, keys[start : start + SPLIT_AT_ONCE])
        finally:
            channel.close()

    if keys:
        asyncio.run(split())


async def _split_at(channel: Channel, cluster_id: int, keys: list[bytes]) -> None:
    """PD gives up on a region that is just being moved; it is asked again."""
    request = pdpb.SplitRegionsRequest(header=pdpb.RequestHeader(cluster_id=cluster_id), split_keys=keys, retry_limit=3)
    for _ in range(SPLIT_ATTEMPTS):
        answer = await channel.unary(services.PD.SplitRegions, request, timeout_s=SPLIT_S)
        if answer.finished_percentage == 100:
            return
    raise BenchFailed(f"only {answer.finished_percentage} % of the regions were split")


def spread(members: dict[str, dict[str, Any]]) -> None:
    """Each store leads as many regions as the others, as far as their number allows."""
    pd = f"http://{pd_addresses(members)[0]}/pd/api/v1"
    ids = sorted(store["store"]["id"] for store in ask(f"{pd}/stores")["stores"])
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        regions = sorted(ask(f"{pd}/regions")["regions"], key=lambda region: str(region["start_key"]))
        wanted = {region["id"]: ids[number % len(ids)] for number, region in enumerate(regions)}
        wrong = [region["id"] for region in regions if region["leader"]["store_id"] != wanted[region["id"]]]
        if not wrong:
            return
        for region in wrong:
            step = {"name": "transfer-leader", "region_id": region, "to_store_id": wanted[region]}
            with suppress(urllib.error.HTTPError):  # the region has a step already, which is waited for
                post(f"{pd}/operators", step)
        time.sleep(0.2)
    raise BenchFailed(f"after {LIMIT_S:g} s the leaders of {len(wrong)} regions are elsewhere")


def stores(members: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in members.values() if row["role"] == "tikv"]


def ask(url: str) -> Any:
    """PD answers 503 while it has no leader."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            return json.load(urllib.request.urlopen(url, timeout=30))
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def post(url: str, document: dict[str, Any]) -> None:
    request = urllib.request.Request(url, json.dumps(document).encode(), {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=30).close()


def pd_leader(members: dict[str, dict[str, Any]]) -> str:
    return str(ask(f"http://{pd_addresses(members)[0]}/pd/api/v1/leader")["name"])
