"""Ports on this machine: which are free, who has the others, and a choice of free ones for a topology.

Rules: a port is free when it can be bound and nobody answers on it; a deployment that exists but does not run still
owns its ports. Chosen ports stay below the range from which the system hands out ports to connecting programs, so that
a restart finds them free again. Deployments under other homes are not known by their plans, and their members take a
moment until they listen; so a chosen port is also held, by binding the same number in UDP, which no member uses. The
keeper holds it on. A stranger may still come between the choice and the member's own bind, and then the start names it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable, Mapping

from drillyard.runtimes.abilities import PortTaken, StartRefused
from drillyard.topology import PREFERRED_PORTS, PURPOSES, Member, Purpose, Topology

HIGHEST = 32767


def is_free(host: str, port: int) -> bool:
    """Whether a member could listen there now; StartRefused when no program of this user ever could."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger are no owner
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            mend = "use a port from 1024 on, and an address of this machine"
            raise StartRefused(f"nobody could listen on {host}:{port} here ({error.strerror})", mend) from error
    with socket.socket(family, socket.SOCK_STREAM) as probe:  # some systems let us bind beside a wildcard listener
        probe.settimeout(0.2)
        return probe.connect_ex((host, port)) != 0


class Hold:
    """Ports held against other deployments of this machine until released, or until every process that got `handles`
    is gone. A port that a stranger uses in UDP cannot be held, and does not have to be."""

    def __init__(self) -> None:
        self._handles: dict[int, int] = {}

    @property
    def handles(self) -> tuple[int, ...]:
        return tuple(self._handles.values())

    def take(self, host: str, port: int) -> bool:
        """Whether the port is held now."""
        if port not in self._handles:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with contextlib.closing(socket.socket(family, socket.SOCK_DGRAM)) as held:
                try:
                    held.bind((host, port))
                except OSError:
                    return False
                self._handles[port] = held.detach()
        return True

    def release(self) -> None:
        while self._handles:
            os.close(self._handles.popitem()[1])

    def __del__(self) -> None:
        self.release()


def owner_of(port: int) -> str:
    """Who listens on the port, as far as this user may see."""
    import psutil  # a third of what a command imports, and only needed when something is in the way

    pids: Iterable[int | None] = ()
    try:
        found = psutil.net_connections("tcp")
        pids = {c.pid for c in found if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port}
    except psutil.AccessDenied:
        pids = _pids_one_by_one(port)
    for pid in pids:
        if pid is not None:
            try:
                return f"pid {pid} ({psutil.Process(pid).name()})"
            except psutil.Error:
                return f"pid {pid}"
    return "an unknown owner (not visible to this user)"


def _pids_one_by_one(port: int) -> Iterable[int]:
    """Where the system-wide table needs root, one's own processes can still be asked."""
    import psutil

    for process in psutil.process_iter():
        try:
            if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in process.net_connections("tcp")):
                yield process.pid
        except psutil.Error:
            continue


def claims(topology: Topology) -> dict[int, str]:
    """Every settled port of the topology and the member that wants it."""
    return {port: member.name for member in topology.members for port in member.ports.values()}


def assign(
    topology: Topology, reserved: Mapping[int, str], kept: Mapping[tuple[str, Purpose], int], hold: Hold
) -> Topology:
    """Settle the topology: asked-for ports first, then those it had before (`kept`), then free ones, which are held.

    `reserved` are the ports of other deployments with their owners. A port that was asked for and cannot be had raises
    PortTaken; a kept one is left to the start to check, for it is the deployment's own.
    """
    for member in topology.members:
        for purpose, port in member.ports.items():
            if port in reserved:
                raise PortTaken(port, member.name, reserved[port])
            if kept.get((member.name, purpose)) != port and not is_free(member.host, port):
                raise PortTaken(port, member.name, owner_of(port))
    used = set(reserved) | set(claims(topology))
    chosen: dict[tuple[str, Purpose], int] = {}
    for key, port in kept.items():
        if port not in used:
            chosen[key] = port
            used.add(port)
    for role, purposes in PURPOSES.items():
        for purpose in purposes:
            port, step = PREFERRED_PORTS[role, purpose]
            for member in topology.of_role(role):
                if purpose in member.ports or (member.name, purpose) in chosen:
                    continue
                while port <= HIGHEST and (
                    port in used or not is_free(member.host, port) or not hold.take(member.host, port)
                ):
                    port += step
                if port > HIGHEST:
                    raise StartRefused(f"no free port is left for {member.name}", "remove a deployment")
                chosen[member.name, purpose] = port
                used.add(port)
    return topology.settle(chosen)


def check_free(members: Iterable[Member], reserved: Mapping[int, str]) -> None:
    """Raise PortTaken for the first port of the members that somebody has now."""
    for member in members:
        for port in member.ports.values():
            if not is_free(member.host, port):
                owner = owner_of(port)
                ours = reserved.get(port)
                raise PortTaken(port, member.name, f"{owner}, {ours}" if ours else owner)
