"""The home: the directory under which every deployment of this user lies, whichever runtime runs it.

`home`/deployments/<name>/ holds a deployment. What its plan is called tells its runtime: plan.json is the local one's,
compose.json the compose one's. Rules: a name is one deployment's, over all runtimes; so is a port, also while its
deployment is down; ports are planned under one lock for all.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from drillyard.runtimes import compose_plans, owners, plans, ports
from drillyard.runtimes.abilities import Misuse, PlanUnreadable, StopReport
from drillyard.runtimes.owners import Orphan, Ownership

DEPLOYMENT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
PLAN_FILES = (plans.FILE, compose_plans.FILE)


def default_home() -> Path:
    """DRILLYARD_HOME, or the place the system has for the state of programs."""
    asked = os.environ.get("DRILLYARD_HOME")
    if asked:
        return Path(asked).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_state_dir("drillyard"))


class Home:
    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or default_home()).absolute()
        self._owned: dict[str, Ownership] = {}

    def directory(self, name: str) -> Path:
        if not DEPLOYMENT_NAME.fullmatch(name):
            raise Misuse(f"{name!r} is no deployment name", "use 1 to 32 small letters, digits, '-' or '_'")
        return self.root / "deployments" / name

    def names(self, *files: str) -> tuple[str, ...]:
        """Every deployment with one of these plan files (all runtimes' when none is named), readable or not."""
        found = {path.parent.name for file in files or PLAN_FILES for path in self.root.glob(f"deployments/*/{file}")}
        return tuple(sorted(found))

    def reserved(self, but: str) -> dict[int, str]:
        """The ports of every other deployment. One whose plan is damaged cannot say, and is passed over."""
        reserved: dict[int, str] = {}
        for name in self.names():
            if name != but:
                owned = {}
                with contextlib.suppress(PlanUnreadable):
                    local = plans.load(self.directory(name))
                    owned = ports.claims(local.topology) if local else {}
                with contextlib.suppress(PlanUnreadable):
                    composed = compose_plans.load(self.directory(name))
                    owned |= composed.claims if composed else {}
                reserved |= {port: f"{member} of deployment {name!r}" for port, member in owned.items()}
        return reserved

    @contextmanager
    def planning(self) -> Iterator[None]:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self.root / "ports.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    @contextmanager
    def own(self, name: str) -> Iterator[None]:
        """A deployment that is to be, or its members and data, live no longer than this process; what is still there
        at the end of the block stays."""
        directory = self.directory(name)
        with self.planning():
            ownership = self._owned[name] = Ownership(directory)
        try:
            yield
        finally:
            del self._owned[name]
            ownership.release()

    def lifeline(self, name: str) -> int | None:
        """The open file that comes to its end when the deployment's owner does; None when we own it not."""
        return self._owned[name].lifeline if name in self._owned else None

    def orphans(self) -> tuple[Orphan, ...]:
        """Every deployment whose owner is gone. Close each."""
        if not any(self.root.glob(f"deployments/*/{owners.FILE}")):
            return ()
        with self.planning():
            found = [owners.orphan_in(path.parent) for path in sorted(self.root.glob(f"deployments/*/{owners.FILE}"))]
        return tuple(orphan for orphan in found if orphan is not None)


def remove_data(directory: Path, report: StopReport) -> StopReport:
    """Remove everything but evidence that was gathered; the plan and whose it was last, so that a break on the way can
    be taken up."""
    evidence = directory / "evidence"
    kept = (evidence,) if evidence.is_dir() and any(evidence.iterdir()) else ()
    parts = sorted(path for path in directory.iterdir() if path not in kept)
    last = (*PLAN_FILES, "command.lock", owners.FILE)
    for path in sorted(parts, key=lambda path: last.index(path.name) if path.name in last else -1):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    left = tuple(path for path in parts if path.exists())
    if not kept and not left:
        directory.rmdir()
    return replace(report, data_deleted=not left, left_paths=left, kept=kept)
