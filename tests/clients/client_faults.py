"""What happens to members while clients work, each with its own undo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from client_cluster import ClientCluster

from drillyard.faces.api import SyncCluster


@dataclass(frozen=True, slots=True)
class Fault:
    name: str
    choose: Callable[[ClientCluster], str]
    strike: Callable[[SyncCluster, str], object]
    undo: Callable[[SyncCluster, str], object]

    def __str__(self) -> str:
        return self.name


FAULTS = [
    Fault("region leader killed", ClientCluster.region_leader, SyncCluster.kill, SyncCluster.start),
    Fault("another store killed", ClientCluster.other_store, SyncCluster.kill, SyncCluster.start),
    Fault("region leader paused", ClientCluster.region_leader, SyncCluster.pause, SyncCluster.resume),
    Fault("PD leader killed", ClientCluster.pd_leader, SyncCluster.kill, SyncCluster.start),
    Fault("PD leader paused", ClientCluster.pd_leader, SyncCluster.pause, SyncCluster.resume),
]
