"""Members that are known by one address and reached at another: every client asks for the known one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from stub_cluster import PDS, TIKVS, StubCluster

from drillyard.clients import calls
from drillyard.clients.calls import CallFailed, Dial
from drillyard.clients.http import HttpClient
from drillyard.clients.pd import PdClient
from drillyard.clients.tikv import RawClient, Result
from drillyard.observation import Observation, Probe, ProcessSeen, Reading, Started, StartedMember
from drillyard.probes import Prober
from drillyard.topology import Role

PATIENCE_S = 60.0
NONCE = b"dial"


class Names:
    """A dial that knows names, as a container network does; it remembers what it was asked for."""

    def __init__(self, places: dict[str, str]) -> None:
        self.places = places
        self.asked: list[str] = []

    def __call__(self, address: str) -> str:
        self.asked.append(address)
        if address not in self.places:
            raise ConnectionRefusedError(f"no container that runs has {address}")
        return self.places[address]


def nobody(address: str) -> str:
    raise ConnectionRefusedError(f"no container that runs has {address}")


def known(name: str) -> str:
    return f"{name}:{2379 if name in PDS else 20160}"


def status_of(name: str) -> str:
    return f"{name}:20180"


async def in_a_network(stub: StubCluster) -> Names:
    """Let the stubs tell of each other by names that only the dial knows."""
    places = {known(name): address for name, address in stub.addresses.items()}
    deployment = await stub.runtime.deployment("stub")
    places |= {status_of(name): deployment.member(name).addresses["status"] for name in TIKVS}
    stub.addresses.update({name: known(name) for name in stub.addresses})
    return Names(places)


def with_names(directory: Path, work: Callable[[Names], Awaitable[None]]) -> None:
    async def run() -> None:
        async with StubCluster(directory) as stub:
            await work(await in_a_network(stub))

    asyncio.run(run())


STARTED = Started(
    (
        *(StartedMember(name, Role.PD, known(name)) for name in PDS),
        *(StartedMember(name, Role.TIKV, known(name), status_of(name)) for name in TIKVS),
    )
)


async def everything_asked(dial: Dial) -> Observation:
    """Every question of a prober, asked once."""
    now = time.time()
    running = [Reading(m.name, Probe.PROCESS, now, now, ProcessSeen(True, 1, now - 30)) for m in STARTED.members]
    seen = Observation(1, now, STARTED, tuple(running))
    prober = Prober(STARTED, time.time, NONCE, timeout_s=PATIENCE_S, dial=dial)
    try:
        for ask in (
            prober.pd_quorum,
            prober.timestamps,
            prober.stores_up,
            prober.replicated,
            prober.data_path,
            prober.regions,
        ):
            seen = seen.with_readings(await ask(seen))
    finally:
        await prober.close()
    return seen


# --- where the dial says ---------------------------------------------------------------------------------------------


def test_http_goes_where_the_dial_says_and_asks_for_the_known_address() -> None:
    heads: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhi")
        writer.close()

    async def run() -> bytes:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = HttpClient("pd0:2379", lambda address: {"pd0:2379": place}[address])
        try:
            return (await client.get("/health", timeout_s=PATIENCE_S)).body
        finally:
            client.close()
            server.close()

    assert asyncio.run(run()) == b"hi"
    assert [line for line in heads[0].split("\r\n") if line.lower().startswith("host:")] == ["Host: pd0:2379"]


def test_a_new_connection_goes_where_the_dial_says_by_then(tmp_path: Path) -> None:
    """A container that was started again may have another address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%d" % writer.get_extra_info("sockname")[1])
        writer.close()

    async def run() -> None:
        servers = [await asyncio.start_server(serve, "127.0.0.1", 0) for _ in range(2)]
        ports = [server.sockets[0].getsockname()[1] for server in servers]
        places = Names({"pd0:2379": f"127.0.0.1:{ports[0]}"})
        client = HttpClient("pd0:2379", places)
        assert (await client.get("/", timeout_s=PATIENCE_S)).body == b"%d" % ports[0]
        places.places["pd0:2379"] = f"127.0.0.1:{ports[1]}"
        assert (await client.get("/", timeout_s=PATIENCE_S)).body == b"%d" % ports[1]
        assert places.asked == ["pd0:2379"] * 2
        client.close()
        for server in servers:
            server.close()

    asyncio.run(run())


def test_a_pd_is_asked_by_both_its_protocols(tmp_path: Path) -> None:
    async def work(names: Names) -> None:
        client = PdClient("pd1", known("pd1"), names)
        view = await client.members(timeout_s=PATIENCE_S)
        assert view.leader.client_urls == ["http://pd0:2379"], "as the cluster has it"
        assert (await client.own_health(timeout_s=PATIENCE_S)).status == 200
        assert set(names.asked) == {"pd1:2379"}
        client.close()

    with_names(tmp_path, work)


def test_a_key_goes_to_the_store_that_pd_names(tmp_path: Path) -> None:
    async def work(names: Names) -> None:
        client = RawClient([known(name) for name in PDS], timeout_s=PATIENCE_S, dial=names)
        written = await client.put(b"a", b"1")
        assert written.is_ok, written
        assert written.store == "tikv0:20160", "told by the known address"
        assert (await client.get(b"a")).value == b"1"
        assert set(names.asked) == {"pd0:2379", "tikv0:20160"}
        client.close()

    with_names(tmp_path, work)


def test_a_prober_gets_every_answer_through_the_dial(tmp_path: Path) -> None:
    async def work(names: Names) -> None:
        seen = await everything_asked(names)
        assert [reading for reading in seen.readings if reading.failure is not None] == []
        assert {reading.probe for reading in seen.readings} == set(Probe)
        assert set(names.asked) == {*map(known, PDS), *map(status_of, TIKVS), known("tikv0")}

    with_names(tmp_path, work)


# --- no way ----------------------------------------------------------------------------------------------------------


def test_http_without_a_way_is_refused() -> None:
    with pytest.raises(CallFailed, match="nothing listens at pd0:2379") as raised:
        asyncio.run(HttpClient("pd0:2379", nobody).get("/health", timeout_s=PATIENCE_S))
    assert raised.value.kind == calls.REFUSED


ASKS: list[tuple[str, Callable[[PdClient], Awaitable[object]]]] = [
    ("gRPC", lambda pd: pd.members(timeout_s=PATIENCE_S)),
    ("a stream", lambda pd: pd.timestamps(7, 2, timeout_s=PATIENCE_S)),
    ("HTTP", lambda pd: pd.own_health(timeout_s=PATIENCE_S)),
]


@pytest.mark.parametrize("ask", [case[1] for case in ASKS], ids=[case[0] for case in ASKS])
def test_a_pd_without_a_way_is_refused(ask: Callable[[PdClient], Awaitable[object]]) -> None:
    async def run() -> None:
        client = PdClient("pd0", "pd0:2379", nobody)
        try:
            await ask(client)
        finally:
            client.close()

    with pytest.raises(CallFailed, match="nothing listens at pd0:2379") as raised:
        asyncio.run(run())
    assert raised.value.kind == calls.REFUSED


@pytest.mark.parametrize("gone", ["pd", "tikv0"])
def test_a_write_without_a_way_certainly_did_not_happen(tmp_path: Path, gone: str) -> None:
    async def work(names: Names) -> None:
        names.places = {address: place for address, place in names.places.items() if not address.startswith(gone)}
        client = RawClient([known(name) for name in PDS], timeout_s=PATIENCE_S, dial=names)
        outcome = await client.put(b"a", b"1")
        assert (outcome.result, outcome.kind) == (Result.FAILED, calls.REFUSED)
        client.close()

    with_names(tmp_path, work)


def test_a_prober_without_a_way_has_only_failures() -> None:
    seen = asyncio.run(everything_asked(nobody))
    kinds = {reading.probe: reading.failure.kind for reading in seen.readings if reading.failure is not None}
    for probe in (Probe.PD_MEMBERS, Probe.PD_SELF, Probe.PD_HEALTH, Probe.STORE_SELF, Probe.DATA_PATH):
        assert kinds[probe] == calls.REFUSED
    assert kinds[Probe.TIMESTAMPS] == calls.NO_LEADER
    assert all(reading.answer is None for reading in seen.readings if reading.probe is not Probe.PROCESS)
