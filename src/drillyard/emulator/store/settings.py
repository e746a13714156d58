"""How a store behaves. Times are in ticks unless the name says otherwise."""

from __future__ import annotations

from msgspec import Struct, field

from drillyard.emulator.raft.types import Options
from drillyard.emulator.store.split_keys import SplitLimits


class Settings(Struct, frozen=True):
    raft: Options = field(default_factory=lambda: Options(max_append_bytes=256 << 10, max_committed_bytes=256 << 10))
    tick_ms: int = 1000
    max_peer_down_s: int = 600
    log_gc_ticks: int = 3
    log_gc_threshold: int = 50  # entries that every peer has before they are forgotten
    log_gc_count_limit: int = 16384  # a longer log does not wait for peers that are silent
    log_gc_bytes_limit: int = 16 << 20
    max_entry_bytes: int = 8 << 20
    max_pending_bytes: int = 32 << 20  # proposed and not applied; beyond it the store is busy
    hibernate: bool = False  # settled regions sleep; the shell then has to carry pulses
    merge_log_gap: int = 10  # entries that some peer of a region may lack when the region is to be merged
    merge_check_ticks: int = 10
    leader_missing_ticks: int = 7200  # after which PD is asked whether the peer is still one
    split: SplitLimits = field(default_factory=SplitLimits)
