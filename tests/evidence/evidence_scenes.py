"""A deployment as a bundle finds it, without one that runs: members, readings, logs, PD's answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from drillyard.flows.exhibits import Disk, Exhibits, Host, Kept, PdAnswer, Scene
from drillyard.flows.report import Ending, Entry, Picture, Trouble, report_of
from drillyard.judge.ends import Cause
from drillyard.judge.readiness import judge
from drillyard.observation import Failure, Observation, Probe, ProcessSeen, Reading, SelfSeen, Started, StartedMember
from drillyard.runtimes.abilities import DeployedMember, Deployment, Exit, MemberContainer, MemberFiles
from drillyard.topology import PURPOSES, Purpose, Role, Topology

AT = 1_700_000_000.25
TOPOLOGY = Topology.of(1, 2).settle(
    {
        (member.name, purpose): 10_000 + 10 * number + at
        for number, member in enumerate(Topology.of(1, 2).members)
        for at, purpose in enumerate(PURPOSES[member.role])
    }
)
HOSTILE = "<script>alert(1)</script>"


def deployment(directory: Path = Path("/yard/x"), **changes: Any) -> Deployment:
    """`changes` of members by name: each a dict of fields."""
    members = []
    for member in TOPOLOGY.members:
        files = MemberFiles(directory / "data" / member.name, directory / f"{member.name}.log", directory / "out")
        one = DeployedMember(
            name=member.name,
            role=member.role,
            kind="emulated",
            pid=100,
            running=True,
            paused=False,
            exit=None,
            starts=1,
            started_at=AT - 60,
            addresses=member.addresses,
            argv=("server", f"--name={member.name}", "--password", "hunter2", HOSTILE),
            files=files,
        )
        members.append(replace(one, **changes.get(member.name, {})))
    return Deployment("x", "local", frozenset(), directory, TOPOLOGY, tuple(members), 1, AT - 60)


KILLED = {"running": False, "pid": None, "exit": Exit(None, 9, asked=False, at=AT - 5)}
BOX = MemberContainer("x-tikv1-1", "f" * 64, "pingcap/tikv:v8.5.5", "unhealthy", f"curl: (7) {HOSTILE}")


def exhibits(texts: Mapping[str, str] | None = None, **changes: Any) -> Exhibits:
    """tikv1 was killed during a wait, and PD does not answer in full. `changes` as in `deployment`."""
    there = deployment(**(changes or {"tikv1": KILLED}))
    picture = Picture(there, observation(there), judge(observation(there)), 12.5)
    timeline = (
        Entry(AT - 4, "gate pd-quorum is closed: late", gate="pd-quorum"),
        Entry(AT - 50, "gate processes is open", gate="processes"),
    )
    trouble = Trouble(
        Ending.MEMBER_EXITED,
        f"x lost tikv1 (SIGKILL, unexpected) {HOSTILE}",
        lacks=("tikv1 was ended by signal 9", "and one more thing"),
        culprit="tikv1",
        log_lines=("its last words",),
        next_command="drillyard logs tikv1 --name x",
        cause=Cause("killed", "tikv1 was ended by somebody", "its data is safe", "`drillyard start tikv1`"),
    )
    report = replace(report_of(picture, timeline, {}, Ending.MEMBER_EXITED), trouble=trouble)
    stores = {"stores": [{"store": {"id": 4, "address": there.members[1].addresses["client"], "state_name": "Up"}}]}
    pd = (PdAnswer("/health", 200, '{"health":"true"}'), PdAnswer("/pd/api/v1/stores", 200, json.dumps(stores)))
    return Exhibits(
        Scene("member-exited", there, picture, report, timeline),
        AT,
        texts if texts is not None else {"logs/tikv1.log": LOG},
        {"pd0": pd},
        versions={"drillyard": "1.2.3", "Python": "3.11.7"},
        host=Host("Linux 6.1 x86_64", cpus=2, memory=1 << 33, disks=(Disk("/yard/x", 1 << 40, 1 << 30),)),
        kept=(Kept("logs/tikv1.log", 2048, 100),),
        redacted=2,
    )


def observation(there: Deployment) -> Observation:
    started = tuple(StartedMember(one.name, one.role, one.addresses[Purpose.CLIENT.value]) for one in there.members)
    readings = [
        Reading(one.name, Probe.PROCESS, AT - 1, AT - 1, ProcessSeen(one.running, signal=9, ended_at=AT - 5))
        for one in there.members
    ]
    readings.append(Reading("pd0", Probe.PD_SELF, AT - 1, AT - 0.5, SelfSeen(healthy=False, text=HOSTILE)))
    failed = Failure("refused", f"nothing listens {HOSTILE}")
    readings += [Reading(one.name, Probe.STORE_SELF, AT - 1, AT, failure=failed) for one in there.of_role(Role.TIKV)]
    return Observation(1, AT - 1, Started(started), tuple(readings))


LOG = f"""[2023/11/14 22:13:10.000 +00:00] [INFO] [lib.rs:80] ["Welcome to TiKV"]
[2023/11/14 22:13:11.000 +00:00] [WARN] [x.rs:1] ["slow"] [key={HOSTILE}]
[2023/11/14 22:13:12.000 +00:00] [ERROR] [x.rs:2] ["cannot write"] [password=hunter2]
[2023/11/14 22:13:13.000 +00:00] [INFO] [x.rs:3] ["No space left on device"]
[2023/11/14 22:13:14.000 +00:00] [FATAL] [x.rs:4] ["giving up"]
"""
