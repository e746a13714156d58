"""Drillyard: a six-node TiKV cluster on one machine, proven healthy from outside.

Importing this package imports nothing else; the public names are loaded when they are first used, because six
members pay for every import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drillyard.faces.api import Cluster, NotReady, SyncCluster, cluster, cluster_sync

__all__ = ["Cluster", "NotReady", "SyncCluster", "cluster", "cluster_sync"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        # By name, so that nobody who imports this package is taken to know its faces.
        return getattr(import_module("drillyard.faces.api"), name)
    raise AttributeError(f"module 'drillyard' has no attribute {name!r}")
