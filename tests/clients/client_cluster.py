"""A cluster as the client tests see it: who leads what, by PD's word, and waits that poll with a deadline."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import drillyard
from drillyard.faces.api import SyncCluster
from drillyard.flows.report import Ending
from drillyard.topology import PURPOSES, Topology
from ports import free_port

T = TypeVar("T")

READY_S = 40.0  # on a busy machine; a quiet one needs less than three seconds
SERVED_S = 20.0


def eventually(look: Callable[[], T | None], what: str, timeout_s: float = SERVED_S) -> T:
    """What `look` brings as soon as it brings something true."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)


class ClientCluster:
    """A running cluster and the questions that the tests ask of it."""

    def __init__(self, cluster: SyncCluster) -> None:
        self.cluster = cluster
        self.pd_endpoints = list(cluster.pd_endpoints)

    def region_leader(self) -> str:
        """The TiKV member that leads the first region, once PD knows one that runs."""
        return eventually(self._region_leader, "PD names a region leader that runs")

    def other_store(self) -> str:
        """A TiKV member that does not lead the first region."""
        leader = self.region_leader()
        return next(name for name in self._members("tikv") if name != leader)

    def pds(self) -> dict[str, str]:
        """The client address of every PD that runs."""
        return self._members("pd")

    def pd_leader(self) -> str:
        return eventually(self._pd_leader, "PD members name a leader that runs")

    def pids(self) -> list[int]:
        return [row.pid for row in self.cluster.status().members if row.pid is not None]

    def kill_all(self) -> None:
        """SIGKILL to every member at once."""
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: not self.pids(), "the keeper has seen every member end")

    def split(self, *keys: bytes) -> None:
        """Has the regions that hold these keys cut there, one after the other, as an administrator would."""
        for key in keys:
            self._split_at(key.hex().upper())

    def _split_at(self, wanted: str) -> None:
        regions = eventually(lambda: (self.ask("regions") or {}).get("regions"), "PD lists the regions")
        held = next(
            each for each in regions if each["start_key"] < wanted and (not each["end_key"] or wanted < each["end_key"])
        )
        order = {"name": "split-region", "region_id": held["id"], "policy": "usekey", "keys": [wanted]}
        url = f"http://{self.pds()[self.pd_leader()]}/pd/api/v1/operators"
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(order).encode(), method="POST"), timeout=5):
            pass
        eventually(lambda: self._is_cut(wanted, len(regions) + 1), f"PD knows who leads on both sides of {wanted}")

    def _is_cut(self, wanted: str, count: int) -> bool:
        """A client that asks PD between the meta of a region and its leader is told of none, and not all ask again."""
        regions = (self.ask("regions") or {}).get("regions", [])
        starts = {each["start_key"] for each in regions if each["leader"].get("id")}
        return wanted in starts and len(starts) == count

    def start(self, *members: str) -> None:
        for member in members:
            self.cluster.start(member)

    def all_members(self) -> list[str]:
        return [row.name for row in self.cluster.status().members]

    def heal(self) -> None:
        """All six gates open again."""
        report = self.cluster.verify(wait_s=READY_S)
        assert report.ending is Ending.OK, report.trouble

    def _members(self, role: str) -> dict[str, str]:
        """The members of a role that run: name -> client address."""
        rows = self.cluster.status().members
        return {row.name: row.addresses["client"] for row in rows if row.role == role and row.state == "running"}

    def _region_leader(self) -> str | None:
        stores = {s["store"]["id"]: s["store"]["address"] for s in (self.ask("stores") or {}).get("stores", [])}
        regions = (self.ask("regions") or {}).get("regions") or [{}]
        address = stores.get(regions[0].get("leader", {}).get("store_id"))
        return next((name for name, own in self._members("tikv").items() if own == address), None)

    def _pd_leader(self) -> str | None:
        name = (self.ask("leader") or {}).get("name")
        return name if name in self.pds() else None

    def ask(self, path: str) -> Any | None:
        """The first answer of any PD that runs; None while none has one."""
        for address in self.pds().values():
            try:
                with urllib.request.urlopen(f"http://{address}/pd/api/v1/{path}", timeout=2) as answer:
                    return json.load(answer)
            except (OSError, ValueError):
                continue
        return None


@contextmanager
def started(home: Path) -> Iterator[ClientCluster]:
    with drillyard.cluster_sync(home=home, topology=settled(Topology.of()), timeout_s=READY_S) as cluster:
        yield ClientCluster(cluster)


def settled(topology: Topology) -> Topology:
    """The topology on ports that are free now."""
    wanted = [(member.name, purpose) for member in topology.members for purpose in PURPOSES[member.role]]
    return topology.settle({key: free_port() for key in wanted})
