"""The evidence bundle: everything that tells what happened, written before anything is removed.

Rules: one new directory per bundle, for its owner only, below the deployment's own `evidence` directory, which a
removal of data leaves alone. Written file by file and whole: what cannot be had (a PD that does not answer) is told in
its place and never stops the rest. Logs are bounded to their last mebibyte. No part of a bundle is ever rewritten.

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
from drillyard.runtimes.abilities import DeployedMember, Deployment
from drillyard.topology import Role

TAIL_BYTES = 1 << 20
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


async def save(scene: Scene, now: float) -> Path:
    """Write the bundle and return its directory. Raises EvidenceLost."""
    try:
        return await _save(scene, now)
    except OSError as error:
        raise EvidenceLost(f"evidence could not be saved: {error.strerror or error}") from error


async def _save(scene: Scene, now: float) -> Path:
    bundle = _new_directory(scene.deployment.evidence_dir, scene.reason, now)
    await asyncio.to_thread(_save_files, bundle, scene)
    await _save_pd_views(bundle / "pd", scene.deployment)
    return bundle


async def save_unseen_end(deployment: Deployment, now: float) -> str:
    """Save a bundle when a member ended unasked and none was written since: its directory, or empty.

    Called before anything is removed or started anew, it makes good for a command that was killed before it could.
    """
    saved_at = _newest(deployment)
    ends = (member.exit for member in deployment.members)
    if not any(end is not None and not end.asked and end.at > saved_at for end in ends):
        return ""
    return str(await save(Scene("unasked-end", deployment), now))


def _newest(deployment: Deployment) -> float:
    """When the latest bundle was begun; 0 when there is none."""
    try:
        return max((path.stat().st_mtime for path in deployment.evidence_dir.iterdir()), default=0.0)
    except OSError:
        return 0.0


def tail_lines(path: Path, count: int) -> tuple[str, ...]:
    """The last lines of a log; none when it cannot be read."""
    text = _tail(path).decode("utf-8", "replace")
    return tuple(text.splitlines()[-count:])


def by_last_written(member: DeployedMember) -> list[Path]:
    """A member's log and output, the one that it wrote to last at the end."""
    return sorted((member.log_path, member.out_path), key=_written_at)


def last_words(member: DeployedMember, count: int) -> tuple[Path, tuple[str, ...]]:
    """Where a member said its last words, and those: its output, when it wrote to that after its log, else its log."""
    out, log = _written_at(member.out_path), _written_at(member.log_path)
    path = member.out_path if out and out >= log else member.log_path
    return path, tail_lines(path, count)


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
    for member in deployment.members:
        _copy_tail(member.log_path, bundle / "logs" / member.log_path.name)
        _copy_tail(member.out_path, bundle / "logs" / member.out_path.name)
    for name in ("plan.json", "launch.json", "journal.jsonl"):
        _copy_tail(deployment.directory / name, bundle / "deployment" / name)
    for path in sorted((deployment.directory / "config").glob("*.toml")):
        _copy_tail(path, bundle / "deployment" / "config" / path.name)


async def _save_pd_views(directory: Path, deployment: Deployment) -> None:
    """What every PD says, each for itself, status and body as they came."""
    from drillyard.clients.http import HttpClient

    async def ask(member: DeployedMember) -> None:
        client = HttpClient(member.addresses["client"])
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
    return f"GET {path}\nHTTP {answer.status}\n{answer.body[:TAIL_BYTES].decode('utf-8', 'replace')}\n\n"


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
        "started_at": member.started_at,
        "exit": None if end is None else {**dataclasses.asdict(end), "signal_name": end.signal_name},
        "addresses": dict(member.addresses),
        "argv": list(member.argv),
    }


def _readings(observation: Observation) -> list[dict[str, Any]]:
    return [dataclasses.asdict(reading) for reading in observation.readings]


def _timeline_text(entries: Iterable[Entry]) -> str:
    ordered = sorted(entries, key=lambda entry: entry.at)
    return "".join(f"{clock_text(entry.at)} {entry.text}\n" for entry in ordered)


def clock_text(at: float) -> str:
    """A time of day with milliseconds, in UTC as the members' logs have it."""
    return time.strftime("%H:%M:%S", time.gmtime(at)) + f".{int(at % 1 * 1000):03d}"


def _written_at(path: Path) -> float:
    try:
        found = path.stat()
    except OSError:
        return 0.0
    return found.st_mtime if found.st_size else 0.0


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read(TAIL_BYTES)
    except OSError:
        return b""


def _copy_tail(source: Path, target: Path) -> None:
    if source.is_file():
        _write(target, _tail(source))


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
