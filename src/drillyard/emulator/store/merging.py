"""How one region becomes part of its neighbour: the *source* ends, the *target* takes over what it holds.

Two logs cannot be changed in one step, so a merge has two. First the source's log takes PrepareMerge. A replica that
applies it serves nothing from then on: the version rises, so no earlier proposal has an effect and no reader is
answered. Then the target's log takes CommitMerge. A replica of the target that applies it has the source's replica
beside it, on the same store, because a merge begins only while both regions have their peers on the same stores and
is void once the target's epoch has moved. If that replica has not applied PrepareMerge yet, CommitMerge carries what
its log may lack, and the target waits for it. Then the range is joined and the source's replica is gone; no data moves.

**Which way it ends** must be decided once. CommitMerge has an effect only under exactly the epoch that the target had
at the beginning (`Merging.target`). Epochs never go back, so the entry that moves the target away from it decides: if
it is CommitMerge, the source is merged; if it is anything else, no CommitMerge can have an effect any more, and the
source may be rolled back. A replica of the target that got there by a snapshot has not seen the entry; therefore a
region remembers which ones it has absorbed.

Nothing here changes a replica; `Replica` and `Store` carry it out.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from msgspec.structs import replace

from drillyard.emulator.raft import Raft
from drillyard.emulator.raft.types import Entry
from drillyard.emulator.raft_codec import pack_entry, unpack_entry
from drillyard.emulator.store.commands import pack_epoch, pack_region
from drillyard.emulator.store.messages import Merging
from drillyard.emulator.store.region import Epoch, Region
from drillyard.emulator.store.settings import Settings
from drillyard.wire import drillpb

ADMIN_FIELDS = ("change", "split", "prepare_merge", "commit_merge", "rollback_merge")


class Fate(Enum):
    """What has become of a merge, as the replica of the target on the same store shows it."""

    UNDECIDED = "the target here has not come to where the merge began"
    OPEN = "the target is as it was: the merge can be committed"
    VOID = "the target has moved: the merge is to be rolled back"
    MERGED = "the source is a part of the target"


def why_not(source: Region, target: Region, wanted: Region) -> str:
    """Why the source cannot be merged into the target now; empty if it can."""
    if target.epoch != wanted.epoch:
        return f"the target region {wanted.id} is not at the epoch of the step"
    if source.id == target.id or not _are_neighbours(source, target):
        return f"regions {source.id} and {target.id} are not neighbours"
    if source.is_joint or target.is_joint:
        return "a joint state has to be left first"
    if _placement(source) != _placement(target):
        return "the two regions do not have their peers on the same stores"
    return ""


def _are_neighbours(one: Region, other: Region) -> bool:
    return bool(one.end and one.end == other.start) or bool(other.end and other.end == one.start)


def _placement(region: Region) -> set[tuple[int, int]]:
    return {(peer.store_id, int(peer.role)) for peer in region.peers}


def least_index(raft: Raft, settings: Settings) -> int:
    """The first entry that some peer may lack; 0 if too much is lacking, or something that cannot be carried."""
    progress = raft.progress()
    matched = min(known.match for known in progress.values())
    if matched < raft.first_index - 1 or raft.last_index - matched > settings.merge_log_gap:
        return 0
    gap = raft.entries(matched + 1, raft.last_index)
    if sum(len(entry.data) for entry in gap) > settings.max_entry_bytes // 2:
        return 0
    return 0 if any(_is_admin(entry) for entry in gap) else matched + 1


def _is_admin(entry: Entry) -> bool:
    if not entry.data:
        return entry.change is not None
    record = drillpb.Command.FromString(entry.data)
    return bool(record.compact_to) or any(record.HasField(field) for field in ADMIN_FIELDS)


def ended(source: Region) -> Region:
    """The source after PrepareMerge."""
    return replace(source, epoch=Epoch(source.epoch.version + 1, source.epoch.conf_ver + 1))


def resumed(source: Region) -> Region:
    """The source after RollbackMerge."""
    return replace(source, epoch=replace(source.epoch, version=source.epoch.version + 1))


def joined(target: Region, source: Region) -> Region:
    """The target after CommitMerge."""
    version = max(source.epoch.version, target.epoch.version) + 1
    absorbed = tuple(sorted({*target.absorbed, *source.absorbed, source.id}))
    epoch = replace(target.epoch, version=version)
    if source.end and source.end == target.start:
        return replace(target, start=source.start, epoch=epoch, absorbed=absorbed)
    return replace(target, end=source.end, epoch=epoch, absorbed=absorbed)


def fate_of(source_id: int, merging: Merging, here: Iterable[Region]) -> Fate:
    """Judged by the regions of this store."""
    wanted = merging.target
    regions = [region for region in here if region.is_initialized]
    target = next((region for region in regions if region.id == wanted.id), None)
    heir = target or next((region for region in regions if wanted.id in region.absorbed), None)
    if heir is None:
        return Fate.UNDECIDED
    if source_id in heir.absorbed:
        return Fate.MERGED
    if target is None:
        return Fate.VOID  # the target became part of another region, without the source
    if target.epoch == wanted.epoch:
        return Fate.OPEN
    behind = target.epoch.version < wanted.epoch.version or target.epoch.conf_ver < wanted.epoch.conf_ver
    return Fate.UNDECIDED if behind else Fate.VOID


def encode_prepare(target: Region, min_index: int, source: Region) -> bytes:
    record = _command(source)
    record.prepare_merge.target.CopyFrom(pack_region(target))
    record.prepare_merge.min_index = min_index
    return record.SerializeToString()


def encode_commit(source: Region, merging: Merging, entries: Iterable[Entry], target: Region) -> bytes:
    record = _command(target)
    commit = record.commit_merge
    commit.source.CopyFrom(pack_region(source))
    commit.index = merging.index
    commit.entries.extend(pack_entry(entry) for entry in entries)
    commit.absorbed.extend(source.absorbed)
    return record.SerializeToString()


def encode_rollback(merging: Merging, source: Region) -> bytes:
    record = _command(source)
    record.rollback_merge.index = merging.index
    return record.SerializeToString()


def _command(region: Region) -> drillpb.Command:
    epoch = pack_epoch(region.epoch)
    return drillpb.Command(version=epoch.version, conf_ver=epoch.conf_ver)


def carried_entries(commit: drillpb.CommitMerge) -> tuple[Entry, ...]:
    return tuple(unpack_entry(entry) for entry in commit.entries)
