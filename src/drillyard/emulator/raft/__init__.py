"""The Raft core: pure, one for PD and for regions. `core` is the place to start reading; `types` is the vocabulary."""

from __future__ import annotations

from drillyard.emulator.raft.configuration import electors, is_joint, members
from drillyard.emulator.raft.core import Raft
from drillyard.emulator.raft.progress import Progress, ProgressState
from drillyard.emulator.raft.types import (
    Change,
    ChangeKind,
    Configuration,
    ConfigurationChange,
    Entry,
    HardState,
    Message,
    MessageKind,
    NotLeader,
    Options,
    ProposalDropped,
    ProtocolBroken,
    ReadState,
    Ready,
    Restored,
    Role,
    SnapshotMeta,
)

__all__ = [
    "Change",
    "ChangeKind",
    "Configuration",
    "ConfigurationChange",
    "Entry",
    "HardState",
    "Message",
    "MessageKind",
    "NotLeader",
    "Options",
    "Progress",
    "ProgressState",
    "ProposalDropped",
    "ProtocolBroken",
    "Raft",
    "ReadState",
    "Ready",
    "Restored",
    "Role",
    "SnapshotMeta",
    "electors",
    "is_joint",
    "members",
]
