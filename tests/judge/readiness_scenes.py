"""Scenes for the judge: a healthy six-member observation, and small changes to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from drillyard.observation import (
    REGION_CHECKS,
    Answer,
    CountSeen,
    DataPathSeen,
    Failure,
    Observation,
    PdHealthSeen,
    PdMemberSeen,
    PdMembersSeen,
    Probe,
    ProcessSeen,
    Reading,
    SelfSeen,
    Started,
    StartedMember,
    StoreSeen,
    StoresSeen,
    TimestampsSeen,
)
from drillyard.topology import Role

NOW = 1_000_000.0
CLUSTER = 7711284821453302416
PDS = ("pd0", "pd1", "pd2")
TIKVS = ("tikv0", "tikv1", "tikv2")


def pd_address(name: str) -> str:
    return f"127.0.0.1:{2379 + 2 * int(name[-1])}"


def store_address(name: str) -> str:
    return f"127.0.0.1:{20160 + int(name[-1])}"


STARTED = Started(
    members=(
        *(StartedMember(name, Role.PD, pd_address(name)) for name in PDS),
        *(
            StartedMember(name, Role.TIKV, store_address(name), f"127.0.0.1:{20180 + i}")
            for i, name in enumerate(TIKVS)
        ),
    ),
    cluster_id=CLUSTER,
    heartbeat_fresh_s=5.0,
)


def read(member: str, probe: Probe, answer: Answer) -> Reading:
    return Reading(member, probe, NOW - 0.01, NOW, answer)


def members_seen() -> PdMembersSeen:
    listed = tuple(PdMemberSeen(name, (f"http://{pd_address(name)}",)) for name in PDS)
    return PdMembersSeen(CLUSTER, "pd0", listed)


def stores_seen() -> StoresSeen:
    return StoresSeen(
        tuple(
            StoreSeen(i + 1, store_address(name), "Up", NOW - 0.5, leader_count=1 if i == 0 else 0, region_count=1)
            for i, name in enumerate(TIKVS)
        )
    )


def healthy() -> Observation:
    """Three PD and three TiKV, one region, everything right."""
    readings = [read(name, Probe.PROCESS, ProcessSeen(True, 100, NOW - 60)) for name in (*PDS, *TIKVS)]
    for name in PDS:
        readings.append(read(name, Probe.PD_MEMBERS, members_seen()))
        readings.append(read(name, Probe.PD_SELF, SelfSeen(True)))
        readings.append(read(name, Probe.PD_HEALTH, PdHealthSeen(tuple((pd, True) for pd in PDS))))
    readings += [read(name, Probe.STORE_SELF, SelfSeen(True)) for name in TIKVS]
    readings.append(read("pd0", Probe.TIMESTAMPS, TimestampsSeen((1_000_000_000, 1), (1_000_000_000, 2))))
    readings.append(read("pd0", Probe.STORES, stores_seen()))
    readings.append(read("pd0", Probe.REGION_COUNT, CountSeen(1)))
    readings.append(read("pd0", Probe.MAX_REPLICAS, CountSeen(3)))
    readings += [read("pd0", check, CountSeen(0)) for check in REGION_CHECKS]
    readings.append(read("tikv0", Probe.DATA_PATH, DataPathSeen(2, "tikv0")))
    return Observation(1, NOW, STARTED, tuple(readings))


def without(observation: Observation, gone: Reading) -> Observation:
    return replace(observation, readings=tuple(r for r in observation.readings if r is not gone))


def failing(observation: Observation, gone: Reading, failure: Failure) -> Observation:
    failed = replace(gone, answer=None, failure=failure)
    return replace(observation, readings=tuple(failed if r is gone else r for r in observation.readings))


def saying(probe: Probe, answer: Answer, member: str = "") -> Callable[[Observation], Observation]:
    """A change: this probe (at this member, or at all) is answered so."""

    def change(observation: Observation) -> Observation:
        return replace(
            observation,
            readings=tuple(
                replace(r, answer=answer) if r.probe is probe and member in ("", r.member) else r
                for r in observation.readings
            ),
        )

    return change


def store(name: str, **changes: object) -> Callable[[Observation], Observation]:
    """A change: PD's entry of one store differs; `gone=True` removes it."""

    def change(observation: Observation) -> Observation:
        stores = []
        listed = observation.answer_once(Probe.STORES, StoresSeen) or stores_seen()
        for seen in listed.stores:
            if seen.address != store_address(name):
                stores.append(seen)
            elif not changes.get("gone"):
                stores.append(replace(seen, **changes))  # type: ignore[arg-type]
        return saying(Probe.STORES, StoresSeen(tuple(stores)))(observation)

    return change
