"""The evidence bundle: everything that tells what happened, written before anything is removed.

Rules: one new directory per bundle, for its owner only, below the deployment's own `evidence` directory, which a
removal of data leaves alone. Written file by file and whole: what cannot be had (a PD that does not answer) is told in
its place and never stops the rest. Logs and what else the runtime knows come from the runtime, bounded. No part of a
bundle is ever rewritten.

Not here: when to write one, and what it means.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from drillyard.flows.report import Entry, Picture, Report
from drillyard.observation import Observation
from drillyard.runtimes.abilities import DeployedMember, Deployment, Reach, Runtime, RuntimeRefusal
from drillyard.topology import Role

VIEW_BYTES = 1 << 20
VIEW_PATIENCE_S = 1.0
PD_VIEWS = (
    "/health",
    "/pd/api/v1/health",
    "/pd/api/v1/members",
    "/pd/api/v1/cluster/status",
    "/pd/api/v1/stores",
    "/pd/api/v1/regions/count",
    "/pd/api/v1/regions/check/miss-peer",
    "/pd/api/v1/regions/check/down-peer",
    "/pd/api/v1/regions/check/pending-peer",
    "/pd/api/v1/operators",
    "/pd/api/v1/config",
)


@dataclass(frozen=True, slots=True)
class Scene:
    """What a bundle is made of, and why it is made."""

    reason: str
    deployment: Deployment
    picture: Picture | None = None
    report: Report | None = None
    timeline: tuple[Entry, ...] = ()


class EvidenceLost(Exception):
    """A bundle could not be written (no space, no right). Whoever was about to remove something must not."""


async def save(runtime: Runtime, scene: Scene, now: float) -> Path:
    """Write the bundle and return its directory. Raises EvidenceLost."""
    try:
        bundle = _new_directory(scene.deployment.evidence_dir, scene.reason, now)
        await asyncio.to_thread(_save_files, bundle, scene)
        try:
            for path, content in (await runtime.keepsakes(scene.deployment.name)).items():
                _write(bundle / path, content)
            async with runtime.reach(scene.deployment) as reach:
                await _save_pd_views(bundle / "pd", scene.deployment, reach)
        except RuntimeRefusal as refused:
            _write(bundle / "runtime-refused.txt", f"{refused}\n")
    except OSError as error:
        raise EvidenceLost(f"evidence could not be saved: {error.strerror or error}") from error
    return bundle


async def save_unseen_end(runtime: Runtime, deployment: Deployment, now: float) -> str:
    """Save a bundle when a member ended unasked and none was written since: its directory, or empty.

    Called before anything is removed or started anew, it makes good for a command that was killed before it could.
    """
    saved_at = _newest(deployment)
    ends = (member.exit for member in deployment.members)
    if not any(end is not None and not end.asked and end.at > saved_at for end in ends):
        return ""
    return str(await save(runtime, Scene("unasked-end", deployment), now))


def _newest(deployment: Deployment) -> float:
    """When the latest bundle was begun; 0 when there is none."""
    try:
        return max((path.stat().st_mtime for path in deployment.evidence_dir.iterdir()), default=0.0)
    except OSError:
        return 0.0


def _new_directory(parent: Path, reason: str, now: float) -> Path:
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    stem = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(now))}-{reason}"
    for number in range(1, 1000):
        path = parent / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"{parent} holds a thousand bundles of one second")


def _save_files(bundle: Path, scene: Scene) -> None:
    deployment = scene.deployment
    _write(bundle / "timeline.txt", _timeline_text(scene.timeline))
    _write_json(bundle / "members.json", [_member_record(member) for member in deployment.members])
    if scene.report is not None:
        _write_json(bundle / "report.json", scene.report)
    if scene.picture is not None:
        _write_json(bundle / "readings.json", _readings(scene.picture.observation))
        _write_json(bundle / "verdicts.json", scene.picture.readiness)


async def _save_pd_views(directory: Path, deployment: Deployment, reach: Reach) -> None:
    """What every PD says, each for itself, status and body as they came."""
    from drillyard.clients.http import HttpClient

    async def ask(member: DeployedMember) -> None:
        client = HttpClient(member.addresses["client"], reach.dial)
        answers = await asyncio.gather(*(_view(client, path) for path in PD_VIEWS))
        client.close()
        _write(directory / f"{member.name}.txt", "".join(answers))

    await asyncio.gather(*(ask(member) for member in deployment.of_role(Role.PD)))


async def _view(client: Any, path: str) -> str:
    from drillyard.clients.calls import CallFailed

    try:
        answer = await client.get(path, timeout_s=VIEW_PATIENCE_S)
    except CallFailed as failed:
        return f"GET {path}\nno answer: {failed.text}\n\n"
    return f"GET {path}\nHTTP {answer.status}\n{answer.body[:VIEW_BYTES].decode('utf-8', 'replace')}\n\n"


def _member_record(member: DeployedMember) -> dict[str, Any]:
    end = member.exit
    return {
        "name": member.name,
        "role": member.role.value,
        "kind": member.kind,
        "pid": member.pid,
        "running": member.running,
        "paused": member.paused,
        "starts": member.starts,
        "restarts": member.restarts,
        "started_at": member.started_at,
        "exit": None if end is None else {**dataclasses.asdict(end), "signal_name": end.signal_name},
        "addresses": dict(member.addresses),
        "argv": list(member.argv),
        "container": None if member.container is None else dataclasses.asdict(member.container),
    }


def _readings(observation: Observation) -> list[dict[str, Any]]:
    return [dataclasses.asdict(reading) for reading in observation.readings]


def _timeline_text(entries: Iterable[Entry]) -> str:
    ordered = sorted(entries, key=lambda entry: entry.at)
    return "".join(f"{clock_text(entry.at)} {entry.text}\n" for entry in ordered)


def clock_text(at: float) -> str:
    """A time of day with milliseconds, in UTC as the members' logs have it."""
    return time.strftime("%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03d}"


def _write_json(path: Path, content: object) -> None:
    _write(path, json.dumps(content, indent=1, default=_plain) + "\n")


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.repr}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return value.hex()
    return str(value)


def _write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
