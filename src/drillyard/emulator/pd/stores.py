"""The stores in PD's replicated state: who registered, in which state each is, and what was said about it.

A store's life: it registers (`put`), is *Up*, is asked to leave (`remove`: *Offline*), and when it holds no region any
more it is buried (*Tombstone*). Up and Offline may change into each other; a tombstone is final, its id is never taken
again, and its record stays until somebody forgets it. A store that is said to be physically destroyed cannot come back,
and its address is free at once.

Rules: nothing here knows regions or configuration: how many regions a store holds, and how many replicas are wanted,
come as arguments. What is refused changes nothing, in the words of the real PD. Who moves the regions away is the
scheduler's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from drillyard.emulator.pd.outcomes import DONE, Outcome, Refusal, refuse
from drillyard.wire import drillpb, metapb, pdpb

NORMAL_RATE = 15.0  # steps a minute for one store, of each kind
UNLIMITED_RATE = 1e8
TOMBSTONE_KEPT_NS = 30 * 24 * 3600 * 10**9
Version = tuple[int, int, int]

_LABEL_KEY = r"^[$]?[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?$"
_LABEL_VALUE = r"^[-A-Za-z0-9_./]*$"


class StoreBook:
    def __init__(self) -> None:
        self.metas: dict[int, metapb.Store] = {}
        self._profiles: dict[int, drillpb.PdStoreProfile] = {}

    # ---- views ----

    def profile(self, store_id: int) -> drillpb.PdStoreProfile:
        return self._profiles.get(store_id) or drillpb.PdStoreProfile(
            store_id=store_id, leader_weight=1, region_weight=1, add_peer=NORMAL_RATE, remove_peer=NORMAL_RATE
        )

    def profiles(self) -> list[drillpb.PdStoreProfile]:
        """Of the stores that are not as all are at first."""
        return list(self._profiles.values())

    def load(self, metas: Iterable[metapb.Store], profiles: Iterable[drillpb.PdStoreProfile]) -> None:
        self.metas.update({store.id: store for store in metas})
        self._profiles.update({profile.store_id: profile for profile in profiles})

    def lowest_version(self) -> tuple[Version, str]:
        """The oldest release among the stores that are no tombstones."""
        living = [store for store in self.metas.values() if store.state != metapb.Tombstone]
        versions = [(parse_version(store.version) or (0, 0, 0), store.version) for store in living]
        return min(versions, default=((0, 0, 0), ""))

    # ---- registration ----

    def put(self, store: metapb.Store, cluster_version: str) -> Outcome:
        known = self.metas.get(store.id)
        if known is not None and known.state == metapb.Tombstone:
            return Outcome(refusal=Refusal(pdpb.STORE_TOMBSTONE, "store is tombstone"))
        if store.id == 0:
            return refuse("invalid put store: id is 0")
        version = parse_version(store.version)
        if version is None:
            return refuse(f"invalid put store: {store.version!r} is not a version")
        if not is_compatible(parse_version(cluster_version) or (0, 0, 0), version):
            return refuse(f"version should compatible with version  {cluster_version}, got {store.version}")
        for other in self.metas.values():
            if other.id != store.id and other.address == store.address and _holds_its_address(other):
                return refuse(
                    f'duplicated store address: id:{store.id} address:"{store.address}", '
                    f'already registered by id:{other.id} address:"{other.address}"'
                )
        self.take(store)
        return DONE

    def take(self, store: metapb.Store) -> None:
        """Registers a store, or takes in what it says of itself now; PD's own words about it stay."""
        known = self.metas.get(store.id)
        taken = metapb.Store()
        taken.CopyFrom(store)
        taken.state = metapb.Up
        taken.node_state = metapb.Preparing
        if known is not None:
            taken.state, taken.node_state = known.state, known.node_state
            taken.physically_destroyed = known.physically_destroyed
            taken.last_heartbeat = known.last_heartbeat
            labels = merged_labels(known.labels, store.labels)
            del taken.labels[:]
            taken.labels.extend(labels)
        self.metas[store.id] = taken

    def beat(self, store_id: int, at_ns: int) -> Outcome:
        store = self.metas.get(store_id)
        if store is None:
            return refuse(f"store {store_id} not found")
        store.last_heartbeat = max(store.last_heartbeat, at_ns)
        if store.node_state == metapb.Preparing:
            store.node_state = metapb.Serving
        return DONE

    # ---- leaving and coming back ----

    def remove(self, removal: drillpb.PdStoreRemoval) -> Outcome:
        """Asks a store to leave: Offline, unless too few would be left for the replicas that are wanted."""
        store = self.metas.get(removal.store_id)
        if store is None:
            return _no_such_store(removal.store_id)
        if store.state == metapb.Offline and store.physically_destroyed == removal.physically_destroyed:
            return DONE
        if store.state == metapb.Tombstone:
            return refuse(f"[PD:core:ErrStoreRemoved]store {store.id} has been removed")
        if store.physically_destroyed:
            return _destroyed(store.id)
        if store.state == metapb.Up and not removal.physically_destroyed:
            left = sum(1 for each in self.metas.values() if each.state == metapb.Up) - 1
            if left < removal.replicas:
                return refuse(
                    f"[PD:core:ErrStoresNotEnough]can not remove store {store.id} since the number of up stores would "
                    f"be {left} while need {removal.replicas}"
                )
        store.state, store.node_state = metapb.Offline, metapb.Removing
        store.physically_destroyed = removal.physically_destroyed
        profile = self.profile(store.id)
        if not profile.HasField("former_remove_peer"):
            profile.former_remove_peer = profile.remove_peer
        profile.remove_peer = UNLIMITED_RATE  # it should become empty as fast as the others can take its peers
        self._profiles[store.id] = profile
        return DONE

    def rise(self, store_id: int) -> Outcome:
        """Takes the wish that a store leaves back."""
        store = self.metas.get(store_id)
        if store is None:
            return _no_such_store(store_id)
        if store.state == metapb.Tombstone:
            return refuse(f"[PD:core:ErrStoreRemoved]store {store_id} has been removed")
        if store.physically_destroyed:
            return _destroyed(store_id)
        if store.state == metapb.Offline:
            store.state, store.node_state = metapb.Up, metapb.Serving
            profile = self.profile(store_id)
            if profile.HasField("former_remove_peer"):
                profile.remove_peer = profile.former_remove_peer
                profile.ClearField("former_remove_peer")
                self._profiles[store_id] = profile
        return DONE

    def bury(self, store_id: int, regions: int) -> Outcome:
        """An Offline store without regions is no more."""
        store = self.metas.get(store_id)
        if store is None:
            return _no_such_store(store_id)
        if store.state == metapb.Up:
            return refuse("[PD:cluster:ErrStoreIsUp]store is still up, please remove store gracefully")
        if regions:
            return refuse(f"store {store_id} still holds {regions} regions")
        store.state, store.node_state = metapb.Tombstone, metapb.Removed
        self._profiles.pop(store_id, None)
        return DONE

    def forget(self, store_id: int, regions: int) -> Outcome:
        """Drops the record of a tombstone, unless a region still names the store."""
        store = self.metas.get(store_id)
        if store is not None and store.state == metapb.Tombstone:
            if regions:
                return refuse(f"failed stores: {store_id}")
            del self.metas[store_id]
            self._profiles.pop(store_id, None)
        return DONE

    # ---- what is said about a store ----

    def label(self, wanted: drillpb.PdStoreLabels) -> Outcome:
        store = self.metas.get(wanted.store_id)
        if store is None:
            return refuse(f"[PD:cluster:ErrInvalidStoreID]invalid store id {wanted.store_id}, not found")
        del store.labels[:]
        store.labels.extend(wanted.labels)
        return DONE

    def weigh(self, wanted: drillpb.PdStoreWeight) -> Outcome:
        if wanted.store_id not in self.metas:
            return _no_such_store(wanted.store_id)
        profile = self.profile(wanted.store_id)
        profile.leader_weight, profile.region_weight = wanted.leader, wanted.region
        self._profiles[wanted.store_id] = profile
        return DONE

    def limit(self, wanted: drillpb.PdStoreLimit) -> Outcome:
        if wanted.store_id not in self.metas:
            return _no_such_store(wanted.store_id)
        profile = self.profile(wanted.store_id)
        if wanted.add_peer:
            profile.add_peer = wanted.rate
        if wanted.remove_peer:
            profile.remove_peer = wanted.rate
        self._profiles[wanted.store_id] = profile
        return DONE


def merged_labels(known: Iterable[metapb.StoreLabel], new: Iterable[metapb.StoreLabel]) -> list[metapb.StoreLabel]:
    """The labels of a store after it was given more. Keys differ only by their letters; an empty value takes away."""
    merged: dict[str, metapb.StoreLabel] = {}
    for label in (*known, *new):
        kept = merged.get(label.key.lower())
        merged[label.key.lower()] = metapb.StoreLabel(
            key=kept.key if kept is not None else label.key, value=label.value
        )
    return [label for label in merged.values() if label.value]


def label_mistake(labels: Iterable[metapb.StoreLabel]) -> str:
    """What is wrong with the form of labels; nothing if nothing is."""
    for label in labels:
        for text, form in ((label.key, _LABEL_KEY), (label.value, _LABEL_VALUE)):
            if re.match(form, text) is None:
                return f'{text} does not match format "{form}"'
    return ""


def strict_mistake(labels: Sequence[metapb.StoreLabel], location_labels: Sequence[str]) -> str:
    """Why a store with these labels is not taken while labels must match the location labels; nothing if it is."""
    given = {label.key.lower(): label.value for label in labels}
    for key in location_labels:
        if not given.get(key.lower()):
            return f"label configuration is incorrect, need to specify the key: {key} "
    for label in labels:
        if label.key not in location_labels:
            return f"key matching the label was not found in the PD, store label key: {label.key} "
    return ""


def parse_version(text: str) -> Version | None:
    """The three numbers of a version; an empty one counts as the oldest, and what follows a hyphen does not count."""
    if not text:
        return (1, 0, 0)
    parts = text.removeprefix("v").partition("-")[0].partition("+")[0].split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        return None
    return int(parts[0]), int(parts[1]), int(parts[2])


def is_compatible(cluster: Version, store: Version) -> bool:
    """A store may be newer than the cluster, or of the same minor release."""
    return store > cluster or store[:2] == cluster[:2]


def _no_such_store(store_id: int) -> Outcome:
    return refuse(f"[PD:core:ErrStoreNotFound]store {store_id} not found")


def _destroyed(store_id: int) -> Outcome:
    return refuse(f"[PD:core:ErrStoreDestroyed]store {store_id} has been physically destroyed")


def _holds_its_address(store: metapb.Store) -> bool:
    return store.state != metapb.Tombstone and not store.physically_destroyed
