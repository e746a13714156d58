"""What an evidence bundle is made of: the records that its pages are drawn from.

Rules: frozen records of what was seen, asked and read. Texts of others (logs, bodies, facts of Docker) are redacted and
bounded already when they are here; what our own records hold is redacted where it is written or drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from drillyard.flows.report import Entry, Picture, Report, Trouble
from drillyard.judge.ends import Cause
from drillyard.observation import Reading
from drillyard.runtimes.abilities import Deployment


@dataclass(frozen=True, slots=True)
class Scene:
    """What a bundle is about, and why it is made. `trouble` is told where there is no report that has it."""

    reason: str
    deployment: Deployment
    picture: Picture | None = None
    report: Report | None = None
    timeline: tuple[Entry, ...] = ()
    trouble: Trouble | None = None

    @property
    def what_is_wrong(self) -> Trouble | None:
        return self.report.trouble if self.report is not None else self.trouble


@dataclass(frozen=True, slots=True)
class PdAnswer:
    """What one PD said to one question: a status and a body, or why there is none."""

    path: str
    status: int = 0
    body: str = ""
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system that a directory is in. Bytes."""

    directory: str
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Host:
    """The machine when the bundle was made. Bytes and seconds; what it does not tell is 0 or empty."""

    kernel: str = ""
    system: str = ""
    cpus: int = 0
    usable_cpus: int = 0  # by this process; a container or a cpuset may have fewer
    load: tuple[float, ...] = ()
    memory: int = 0
    memory_available: int = 0
    swap_used: int = 0
    open_files: str = ""  # soft and hard limit of this command
    uptime_s: float = 0.0
    timezone: str = ""
    disks: tuple[Disk, ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """One file of the bundle; `cut` is how many bytes were left out of it."""

    path: str
    size: int
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Exhibits:
    """Everything that the pages show."""

    scene: Scene
    at: float
    texts: Mapping[str, str]  # what the runtime kept: path in the bundle -> text
    pd: Mapping[str, tuple[PdAnswer, ...]] = field(default_factory=dict)
    causes: Mapping[str, Cause] = field(default_factory=dict)  # member -> why it ended, where that is known
    versions: Mapping[str, str] = field(default_factory=dict)  # drillyard, Python, Docker: name -> version
    host: Host = Host()
    kept: tuple[Kept, ...] = ()
    redacted: int = 0

    @property
    def deployment(self) -> Deployment:
        return self.scene.deployment

    def logs_of(self, member: str) -> dict[str, str]:
        """The member's logs: path in the bundle -> text."""
        names = (f"logs/{member}.log", f"logs/{member}.out")
        return {name: self.texts[name] for name in names if name in self.texts}

    @property
    def readings(self) -> tuple[Reading, ...]:
        return self.scene.picture.observation.readings if self.scene.picture is not None else ()
