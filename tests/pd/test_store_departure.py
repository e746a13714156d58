"""A store leaves: its regions move away, it becomes a tombstone, and its process is not taken back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pd_processes import PdProcesses, until

from ports import free_ports

V1 = "/pd/api/v1"
CONFIG = '[raftstore]\npd-store-heartbeat-tick-interval = "500ms"\nraft-base-tick-interval = "100ms"\n'


class Cluster:
    """One PD, two TiKV."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.pd = PdProcesses(home, members=1)
        self.pd.start()
        self.pd.wait_for_leader()
        (home / "tikv.toml").write_text(CONFIG)
        self.ports = [free_ports(2) for _ in range(2)]
        self.processes = [self.start(place) for place in range(2)]

    def start(self, place: int) -> subprocess.Popen[bytes]:
        port, status_port = self.ports[place]
        flags = {
            "addr": f"127.0.0.1:{port}",
            "status-addr": f"127.0.0.1:{status_port}",
            "pd": f"127.0.0.1:{self.pd.client_ports[0]}",
            "data-dir": str(self.home / f"tikv{place}"),
            "config": str(self.home / "tikv.toml"),
            "log-file": str(self.home / f"tikv{place}.log"),
        }
        command = [sys.executable, "-m", "drillyard.emulator.tikv.server"]
        return subprocess.Popen(
            [*command, *(f"--{name}={value}" for name, value in flags.items())], stderr=subprocess.PIPE
        )

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        self.pd.close()

    def stores(self) -> dict[int, Any]:
        answer = self.pd.ask(0, f"{V1}/stores?state=0&state=1&state=2")
        return {each["store"]["id"]: each for each in answer["stores"]} if answer else {}

    def place_of(self, store_id: int) -> int:
        address = self.stores()[store_id]["store"]["address"]
        return next(place for place in range(2) if address.endswith(f":{self.ports[place][0]}"))


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_a_store_leaves(cluster: Cluster) -> None:
    pd = cluster.pd
    assert pd.send(0, "POST", f"{V1}/config", {"max-replicas": 1}) == (200, "The config is updated.")
    until(lambda: [each["store"]["state_name"] for each in cluster.stores().values()] == ["Up", "Up"], "two stores up")
    region = until(lambda: (pd.ask(0, f"{V1}/regions") or {}).get("regions"), "a region")[0]
    leaving = region["peers"][0]["store_id"]
    staying = next(store_id for store_id in cluster.stores() if store_id != leaving)
    assert pd.send(0, "DELETE", f"{V1}/store/{leaving}") == (200, "The store is set as Offline.")
    refusal = pd.send(0, "DELETE", f"{V1}/store/{staying}")
    assert (refusal[0], "ErrStoresNotEnough" in refusal[1]) == (400, True)
    until(lambda: cluster.stores()[leaving]["store"]["state_name"] == "Tombstone", "it is a tombstone", within_s=40)
    peers = pd.told(0, f"{V1}/regions")["regions"][0]["peers"]
    assert [peer["store_id"] for peer in peers] == [staying]
    assert leaving not in {each["store"]["id"] for each in pd.told(0, f"{V1}/stores")["stores"]}
    place = cluster.place_of(leaving)
    log = cluster.home / f"tikv{place}.log"
    until(lambda: "store is tombstone" in log.read_text(), "the store is told")
    assert cluster.processes[place].poll() is None  # like the real one it stays up until somebody stops it
    cluster.processes[place].kill()
    cluster.processes[place].communicate()
    cluster.processes[place] = again = cluster.start(place)
    _, errors = again.communicate(timeout=30)
    assert (again.returncode, b"is a tombstone" in errors) == (1, True), errors
    assert pd.send(0, "DELETE", f"{V1}/stores/remove-tombstone") == (200, "Remove tombstone successfully.")
    assert set(cluster.stores()) == {staying}
