"""The scene that a cause is looked for in: what was observed and judged, who ended, what logs say, how the wait went.

Rules: a record and plain questions to it; no opinions. A member that was not looked at counts as running.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from drillyard.judge import ends
from drillyard.judge.ends import Ended
from drillyard.judge.readiness import Readiness, Status
from drillyard.observation import Observation, Probe, ProcessSeen, StartedMember, StoreSeen, StoresSeen
from drillyard.topology import Role

RECENT_S = 60.0  # older log lines are about something else
STAMP = re.compile(r"\[(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{3} [+-]\d\d:\d\d)\]")


@dataclass(frozen=True, slots=True)
class Pace:
    """How a wait went: all in seconds; a single look has waited for nothing."""

    waited_s: float = 0.0
    quiet_s: float = 0.0  # since anything in the picture last changed
    slept_s: float = 0.0  # the longest that this machine, or we on it, stood still
    clock_set_s: float = 0.0  # how far this machine's clock was set meanwhile, forwards or (negative) backwards


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that the catalogue looks at. `words` are the last log lines of each member; `option` is what a command
    needs to mean this deployment, such as " --name other"."""

    observation: Observation
    readiness: Readiness
    ends: tuple[Ended, ...] = ()
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pace: Pace = Pace()
    option: str = ""

    @property
    def pds(self) -> tuple[StartedMember, ...]:
        return self.observation.started.of_role(Role.PD)

    @property
    def tikvs(self) -> tuple[StartedMember, ...]:
        return self.observation.started.of_role(Role.TIKV)

    def process(self, name: str) -> ProcessSeen:
        seen = self.observation.answer(Probe.PROCESS, name, ProcessSeen)
        return seen if seen is not None else ProcessSeen(running=True)

    def runs(self, name: str) -> bool:
        seen = self.process(name)
        return seen.running and not seen.paused

    def age_s(self, name: str) -> float:
        """How long the member has run."""
        return self.observation.at - self.process(name).started_at

    def failures(self, name: str, probes: Iterable[Probe]) -> list[str]:
        """Why these probes have no answer from the member; one without an entry was answered or not asked."""
        asked = (self.observation.reading(probe, name) for probe in probes)
        return [reading.failure.text for reading in asked if reading is not None and reading.failure is not None]

    def answers(self, name: str, probes: Iterable[Probe]) -> bool:
        asked = (self.observation.reading(probe, name) for probe in probes)
        return any(reading is not None and reading.answer is not None for reading in asked)

    def store(self, member: StartedMember) -> StoreSeen | None:
        """PD's entry of the member, if PD was asked and has one."""
        seen = self.observation.answer_once(Probe.STORES, StoresSeen)
        return next((store for store in seen.stores if store.address == member.address), None) if seen else None

    def recent(self, name: str) -> tuple[str, ...]:
        """Log lines of the member's present run that tell their time, the newest first, none older than a minute."""
        lines = reversed(ends.of_last_run(self.words.get(name, ())))
        return tuple(line for line in lines if self.observation.at - logged_at(line, 0.0) <= RECENT_S)

    def named(self) -> tuple[str, ...]:
        """The members that keep a gate closed."""
        closed = (verdict for verdict in self.readiness.verdicts if verdict.status is not Status.HOLDS)
        return tuple(dict.fromkeys(name for verdict in closed for name in verdict.members))


def logged_at(line: str, otherwise: float) -> float:
    """When a line was written, in seconds since the epoch: PD and TiKV write [2026/09/20 08:15:30.123 +00:00]."""
    found = STAMP.match(line)
    if found is None:
        return otherwise
    try:
        return datetime.strptime(found[1], "%Y/%m/%d %H:%M:%S.%f %z").timestamp()
    except ValueError:
        return otherwise
