"""How this machine reaches members that live in a container network.

On Linux and under OrbStack the containers' own addresses answer. Elsewhere a short-lived container in the network, the
relay, publishes one loopback port for each address of the members and passes bytes on. Which one it is, is tried and
not guessed. Rules: the relay lives as long as the pipe to its standard input, so it ends with its caller, however that
ends; it is made from an image with Python and runs the few lines below.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

from drillyard.runtimes.abilities import Deployment, Network, Reach
from drillyard.runtimes.docker import Docker, DockerRefused, end
from drillyard.topology import LOOPBACK

WAYS = BY_ADDRESS, BY_RELAY = "addresses", "relay"
TRY_S = 1.0  # a bridge of this machine answers at once, also with a refusal
PULL_S, RELAY_START_S, RELAY_END_S = 600.0, 30.0, 10.0
RELAY_MEND = "name an image with Python that is here in DRILLYARD_RELAY_IMAGE"
RELAY_IMAGE = "python:3-alpine"  # for whoever has another one: DRILLYARD_RELAY_IMAGE
RELAY_LABEL = "drillyard.relay"  # holds the deployment's name
FIRST_PORT = 40000  # inside the relay

# Listens on FIRST_PORT and the ports after it, one for each address given, and passes bytes on; ends with its stdin.
RELAY = """
import asyncio, sys
async def passed_on(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()
async def main(first, addresses):
    def to(address):
        host, _, port = address.rpartition(":")
        async def serve(reader, writer):
            try:
                far_reader, far_writer = await asyncio.open_connection(host, int(port))
            except OSError:
                writer.transport.abort()
                return
            await asyncio.gather(passed_on(reader, far_writer), passed_on(far_reader, writer))
            writer.close()
            far_writer.close()
        return serve
    for at, address in enumerate(addresses):
        await asyncio.start_server(to(address), "0.0.0.0", first + at)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
asyncio.run(main(int(sys.argv[1]), sys.argv[2:]))
"""


class ByAddress(Reach):
    """The containers' addresses are reached from here."""

    words = "by the containers' addresses"

    def __init__(self, deployment: Deployment) -> None:
        self._dials = dials_of(deployment)

    def dial(self, address: str) -> str:
        try:
            return self._dials[address]
        except KeyError:
            raise ConnectionRefusedError(f"no container that runs has {address}") from None

    def renew(self, deployment: Deployment) -> None:
        self._dials = dials_of(deployment)


class ByRelay(Reach):
    """A relay in the network passes on what arrives at these loopback ports."""

    def __init__(self, container: str, ports: dict[str, int]) -> None:
        self.words = f"through the relay {container}"
        self._ports = ports

    def dial(self, address: str) -> str:
        try:
            return f"{LOOPBACK}:{self._ports[address]}"
        except KeyError:
            raise ConnectionRefusedError(f"the relay does not know {address}") from None


def dials_of(deployment: Deployment) -> dict[str, str]:
    """Every member's addresses, as the cluster has them, to where the container has them now."""
    hosts = deployment.network.hosts if deployment.network else {}
    return {
        address: f"{hosts[member.name]}:{address.rpartition(':')[2]}"
        for member in deployment.members
        if member.name in hosts
        for address in member.addresses.values()
    }


@asynccontextmanager
async def reach(docker: Docker, deployment: Deployment, decided: str | None = None) -> AsyncIterator[Reach]:
    """The way to the members of a deployment, for as long as the block lasts. `decided` is the way instead of a
    trial."""
    if decided == BY_ADDRESS or (decided is None and await is_reachable(dials_of(deployment).values())):
        yield ByAddress(deployment)
        return
    assert deployment.network is not None
    addresses = [address for member in deployment.members for address in member.addresses.values()]
    async with _relay(docker, deployment.network, addresses, deployment.name) as relay:
        yield relay


async def is_reachable(dials: Iterable[str]) -> bool:
    """Whether any of the addresses answers from here, be it with a refusal; true when there is none to try."""
    trials = [asyncio.ensure_future(_answers(dial)) for dial in dials]
    if not trials:
        return True
    try:
        for trial in asyncio.as_completed(trials):
            if await trial:
                return True
        return False
    finally:
        for trial in trials:
            trial.cancel()
        await asyncio.gather(*trials, return_exceptions=True)


async def _answers(dial: str) -> bool:
    host, _, port = dial.rpartition(":")
    try:
        async with asyncio.timeout(TRY_S):
            _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


@asynccontextmanager
async def _relay(docker: Docker, network: Network, addresses: Sequence[str], name: str) -> AsyncIterator[Reach]:
    image = os.environ.get("DRILLYARD_RELAY_IMAGE") or RELAY_IMAGE
    if not await docker.inspect("image", image):
        try:
            await docker.run("pull", "--quiet", image, timeout_s=PULL_S)
        except DockerRefused as refused:
            wrong = f"the relay's image {image} is not here and cannot be pulled"
            raise DockerRefused(f"{wrong}: {refused.wrong}", RELAY_MEND, refused.output) from refused
    container = f"drillyard-relay-{name}-{os.urandom(4).hex()}"
    ports = [part for at in range(len(addresses)) for part in ("-p", f"{LOOPBACK}::{FIRST_PORT + at}")]
    where = ("--name", container, "--network", network.name, "--label", f"{RELAY_LABEL}={name}")
    program = ("--entrypoint", "python3", image, "-c", RELAY, str(FIRST_PORT), *addresses)
    process = await docker.piped("run", "--rm", "-i", *where, *ports, *program)
    try:
        await _until_ready(process, network.name)
        bindings = (await docker.inspect("container", container))[0]["NetworkSettings"]["Ports"]
        given = [int(bindings[f"{FIRST_PORT + at}/tcp"][0]["HostPort"]) for at in range(len(addresses))]
        yield ByRelay(container, dict(zip(addresses, given, strict=True)))
    finally:
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RELAY_END_S):
                await process.wait()
        await end(process)


async def _until_ready(process: asyncio.subprocess.Process, network: str) -> None:
    """Read the relay's output up to the word that it listens; docker may have something to say before that."""
    assert process.stdout is not None
    told: list[str] = []
    try:
        async with asyncio.timeout(RELAY_START_S):
            while line := (await process.stdout.readline()).decode("utf-8", "replace"):
                if line.strip() == "ready":
                    return
                told.append(line)
    except TimeoutError:
        told.append(f"no word within {RELAY_START_S:g} s")
    said = " ".join("".join(told).split())[-300:]
    raise DockerRefused(f"the relay into {network} did not start: {said}", RELAY_MEND)
