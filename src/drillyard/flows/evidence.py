"""The evidence bundle: everything that tells what happened, written before anything is removed.

Rules: one new bundle each time, below the deployment's own `evidence` directory, which a removal of data leaves alone.
Our own records are written first, then what the runtime keeps, then what PD says, then the pages: what cannot be had (a
PD that does not answer, a daemon that refuses) is told in its place and never stops the rest.

Not here: when to make one (the other flows), its files and limits (bundle), secrets (redaction), its pages (pages).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drillyard import __version__
from drillyard.flows.exhibits import Exhibits, PdAnswer
from drillyard.flows.exhibits import Scene as Scene
from drillyard.flows.report import Ending, Entry, Trouble, name_option
from drillyard.flows.report import clock_text as clock_text
from drillyard.judge import ends
from drillyard.judge.ends import Cause, Ended
from drillyard.observation import Observation
from drillyard.runtimes.abilities import DeployedMember, Deployment, Reach, Runtime, RuntimeRefusal
from drillyard.topology import Role

if TYPE_CHECKING:
    from drillyard.flows.bundle import Bundle

FORMAT = 1  # of bundle.json
VIEW_BYTES = 256 << 10
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


class EvidenceLost(Exception):
    """A bundle could not be written (no space, no right). Whoever was about to remove something must not."""


async def save(runtime: Runtime, scene: Scene, now: float) -> Path:
    """Write the bundle and return its directory. Raises EvidenceLost."""
    # What writes and draws is imported late, here and below: a cluster that comes up well does not wait for it.
    from drillyard.flows.bundle import Bundle

    try:
        bundle = Bundle(scene.deployment.evidence_dir, scene.reason, now)
        await asyncio.to_thread(_write_records, bundle, scene)
        texts: Mapping[str, str] = {}
        pd: Mapping[str, tuple[PdAnswer, ...]] = {}
        causes: Mapping[str, Cause] = {}
        try:
            texts = await asyncio.to_thread(bundle.write_all, await runtime.keepsakes(scene.deployment.name))
            causes = await _causes(runtime, scene.deployment)
            async with runtime.reach(scene.deployment) as reach:
                pd = await _pd_views(scene.deployment, reach)
        except RuntimeRefusal as refused:
            bundle.write("runtime-refused.txt", f"{refused}\n")
        exhibits = Exhibits(scene, now, texts, pd, causes)
        return await asyncio.to_thread(_finish, bundle, exhibits)
    except OSError as error:
        raise EvidenceLost(f"evidence could not be saved: {error.strerror or error}") from error


async def save_unseen_end(runtime: Runtime, deployment: Deployment, now: float) -> str:
    """Save a bundle when a member ended unasked and none tells of it: its directory, or empty.

    Called before anything is removed or started anew, it makes good for a command that was killed before it could.
    """
    unasked = [(m.name, m.exit) for m in deployment.members if m.exit is not None and not m.exit.asked]
    told = _ends_told(deployment.evidence_dir) if unasked else set()
    unseen = [(name, end) for name, end in unasked if (name, end.at) not in told]
    if not unseen:
        return ""
    words = "; ".join(f"{name} ended: {end}" for name, end in unseen)
    trouble = Trouble(Ending.MEMBER_EXITED, f"{deployment.name}: {words}", culprit=unseen[0][0])
    return str(await save(runtime, Scene("unasked-end", deployment, trouble=trouble), now))


def _ends_told(directory: Path) -> set[tuple[str, float]]:
    """The ends that the newest bundle tells of: an end stays on record until the next one of its member. Nothing is
    concluded from the time of a file: a member may end while a bundle is being written."""
    from drillyard.flows.bundle import newest

    try:
        bundle = newest(directory)
        members = json.loads((bundle / "members.json").read_bytes()) if bundle is not None else []
        return {(one["name"], one["exit"]["at"]) for one in members if one["exit"] is not None}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _write_records(bundle: Bundle, scene: Scene) -> None:
    from drillyard.flows.pages.parts import time_line

    bundle.write("members.json", _json([_member_record(member) for member in scene.deployment.members]))
    bundle.write("timeline.txt", _timeline_text(time_line(scene)))
    if scene.report is not None:
        bundle.write("report.json", _json(scene.report))
    if scene.picture is not None:
        bundle.write("readings.json", _json(_readings(scene.picture.observation)))
        bundle.write("verdicts.json", _json(scene.picture.readiness))


def _finish(bundle: Bundle, exhibits: Exhibits) -> Path:
    """PD's words, the facts of the machine, the pages, and the summary for programs."""
    from drillyard.flows import host_facts
    from drillyard.flows.pages.index import pages_of

    for name, answers in exhibits.pd.items():
        bundle.write(f"pd/{name}.txt", "".join(_answer_text(answer) for answer in answers))
    whole = dataclasses.replace(
        exhibits,
        versions=_versions(exhibits.texts),
        host=host_facts.read(_directories(exhibits)),
        kept=tuple(bundle.kept),
        redacted=bundle.redacted,
    )
    trouble = exhibits.scene.what_is_wrong
    summary = {
        "format": FORMAT,
        "deployment": exhibits.deployment.name,
        "runtime": exhibits.deployment.runtime,
        "reason": exhibits.scene.reason,
        "at": exhibits.at,
        "text": trouble.text if trouble is not None else "",
        "causes": {name: dataclasses.asdict(cause) for name, cause in exhibits.causes.items()},
        "versions": whole.versions,
        "host": dataclasses.asdict(whole.host),
        "redacted": whole.redacted,
        "files": [dataclasses.asdict(one) for one in whole.kept],
    }
    bundle.write("bundle.json", _json(summary))
    for path, text in pages_of(whole):
        bundle.write_page(path, text)
    return bundle.finish()


# --- what is known ---------------------------------------------------------------------------------------------------


async def _causes(runtime: Runtime, deployment: Deployment) -> dict[str, Cause]:
    """Why the members that are down ended unasked, where that is known. One that runs again speaks of other things."""
    found = {}
    for member in deployment.members:
        end = member.exit
        if end is None or end.asked or member.running:
            continue
        tails = await runtime.tails(deployment.name, member.name, ends.LINES, end.at)
        lines = tuple(line for tail in tails for line in tail.lines)
        cause = ends.cause_of(ended(deployment, member, lines))
        if cause is not None:
            found[member.name] = cause
    return found


def ended(deployment: Deployment, member: DeployedMember, lines: tuple[str, ...]) -> Ended:
    """The latest end of a member that has one, for the catalogue of causes."""
    end = member.exit
    assert end is not None
    return Ended(
        member=member.name,
        role=member.role,
        code=end.code,
        signal=end.signal,
        is_asked=end.asked,
        is_oom=end.is_oom,
        note=end.note,
        in_container=member.container is not None,
        lines=lines,
        at=end.at,
        option=name_option(deployment.name),
    )


async def _pd_views(deployment: Deployment, reach: Reach) -> dict[str, tuple[PdAnswer, ...]]:
    """What every PD says, each for itself, status and body as they came."""
    from drillyard.clients.http import HttpClient

    async def ask(member: DeployedMember) -> tuple[PdAnswer, ...]:
        client = HttpClient(member.addresses["client"], reach.dial)
        answers = await asyncio.gather(*(_view(client, path) for path in PD_VIEWS))
        client.close()
        return tuple(answers)

    members = deployment.of_role(Role.PD)
    found = await asyncio.gather(*(ask(member) for member in members))
    return {member.name: answers for member, answers in zip(members, found, strict=True)}


async def _view(client: Any, path: str) -> PdAnswer:
    from drillyard.clients.calls import CallFailed

    try:
        answer = await client.get(path, timeout_s=VIEW_PATIENCE_S)
    except CallFailed as failed:
        return PdAnswer(path, failure=failed.text)
    body, over = answer.body[:VIEW_BYTES].decode("utf-8", "replace"), len(answer.body) - VIEW_BYTES
    return PdAnswer(path, answer.status, f"{body}\n[drillyard: {over} bytes are left out here]" if over > 0 else body)


def _versions(texts: Mapping[str, str]) -> dict[str, str]:
    """What made the bundle; the members' own versions are theirs to tell."""
    versions = {"drillyard": __version__, "Python": platform.python_version()}
    with contextlib.suppress(ValueError, KeyError, TypeError):
        docker = json.loads(texts["docker/version.json"])
        for side in ("Client", "Server"):
            if docker.get(side):
                versions[f"Docker {side.lower()}"] = str(docker[side]["Version"])
    return versions


def _directories(exhibits: Exhibits) -> Iterator[Path]:
    """Where the members' data is, as far as it is on this machine, and where we write."""
    for member in exhibits.deployment.members:
        if member.files is not None:
            yield member.files.data_dir
        with contextlib.suppress(ValueError, KeyError, TypeError):
            for mount in json.loads(exhibits.texts[f"docker/{member.name}.json"])["Mounts"]:
                yield Path(mount["Source"])
    yield exhibits.deployment.directory


# --- as text ---------------------------------------------------------------------------------------------------------


def _answer_text(answer: PdAnswer) -> str:
    told = f"no answer: {answer.failure}" if answer.failure else f"HTTP {answer.status}\n{answer.body}"
    return f"GET {answer.path}\n{told}\n\n"


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
    return "".join(f"{clock_text(entry.at)} {entry.text}\n" for entry in entries)


def _json(content: object) -> str:
    return json.dumps(content, indent=1, default=_plain) + "\n"


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.repr}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return value.hex()
    return str(value)
