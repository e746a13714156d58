"""What the fixtures of the pytest plugin do: one cluster for the session, others for one test, and the story of each
when a test fails.

Rules: a shared cluster is reset before it is given to the next test, and replaced by a new one when it cannot be, or
when other options are wanted. Evidence is saved while the cluster is as the failed test left it. All clusters belong to
this process: they end with it, however it ends. Nothing that goes wrong here is a traceback to the user: what keeps a
test from its cluster fails the test in words; what happens beside the tests is a note for the summary.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from typing import Any

import pytest

from drillyard.faces import console
from drillyard.faces.api import NotReady, SyncCluster, Wanted, cluster_sync, down_orphans_sync, new_name
from drillyard.flows.evidence import EvidenceLost
from drillyard.flows.report import Ending, Report, Silence, Trouble, name_option
from drillyard.runtimes.abilities import NoSuchDeployment, RuntimeRefusal
from drillyard.topology import TopologyError

TAIL_LINES = 6
LINE_LENGTH = 240
REFUSALS = (RuntimeRefusal, TopologyError)

Note = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Story:
    """How a cluster was when its test failed: sections for the test's report, and the bundle's directory."""

    sections: tuple[tuple[str, str], ...]
    evidence: str = ""


class Clusters:
    """The clusters of one pytest process; `note` takes a line for the summary at its end."""

    def __init__(self, keep: bool, worker: str, note: Note) -> None:
        self._keep = keep
        self._stem = "-".join(("pytest", *re.findall("[a-z0-9]{1,8}", worker.lower())[:1]))
        self._note = note
        self._shared: _Begun | None = None
        self._in_use: dict[str, SyncCluster] = {}  # by the test that runs now, until its story is told
        self._untold: list[Story] = []
        for gone in down_orphans_sync():
            words = "is taken down: the process that it belonged to was killed"
            note(f"{gone.deployment} {words}{_evidence(gone.evidence)}")

    def shared(self, test: str, options: Mapping[str, Any]) -> SyncCluster:
        """The session's cluster, as new."""
        if self._shared is not None:
            why = self._reset(self._shared, test) if self._shared.options == options else "other options"
            if why:
                self._end_shared()
        if self._shared is None:
            self._shared = self._begin(test, options)
        self._in_use[self._shared.cluster.name] = self._shared.cluster
        return self._shared.cluster

    @contextmanager
    def fresh(self, test: str, options: Mapping[str, Any]) -> Iterator[SyncCluster]:
        begun = self._begin(test, options)
        self._in_use[begun.cluster.name] = begun.cluster
        try:
            yield begun.cluster
        finally:
            self._in_use.pop(begun.cluster.name, None)
            self._end(begun)

    def stories(self, test: str, reason: str) -> list[Story]:
        """What there is to tell of the test that runs now. Saves evidence, once a test."""
        told = [*self._untold, *(_story(cluster, reason) for cluster in self._in_use.values())]
        for story in told:
            self._note(f"{test}: {reason}{_evidence(story.evidence)}")
        self.end_test()
        return told

    def end_test(self) -> None:
        self._untold.clear()
        self._in_use.clear()

    def close(self) -> None:
        self._end_shared()

    def _reset(self, begun: _Begun, test: str) -> str:
        """Why the cluster could not be reset, or empty."""
        name = begun.cluster.name
        try:
            done = begun.cluster.reset(begun.timeout_s)
        except RuntimeRefusal as refused:
            why = str(refused)
        else:
            if done.evidence:
                self._note(f"{name}: a member had ended unasked before {test}{_evidence(done.evidence)}")
            if done.ending is Ending.OK:
                return ""
            why = _trouble_words(done.report.trouble)
        self._note(f"{name} could not be reset before {test} and is replaced by a new cluster: {why}")
        return why

    def _begin(self, test: str, options: Mapping[str, Any]) -> _Begun:
        known = [field.name for field in fields(Wanted)]
        for name in options:
            if name not in known:
                pytest.fail(f"tikv_cluster_options: {name!r} is no option; there are {', '.join(known)}", pytrace=False)
        context = cluster_sync(new_name(self._stem), keep=self._keep, listener=_Ears(self._note), **options)
        try:
            cluster = context.__enter__()
        except NotReady as error:
            self._untold.append(_story_of(error.report))
            why = str(error)
        except REFUSALS as error:
            why = str(error)
        else:
            return _Begun(cluster, context, dict(options))
        pytest.fail(f"no cluster for {test}: {why}", pytrace=False)

    def _end_shared(self) -> None:
        begun, self._shared = self._shared, None
        if begun is not None:
            self._end(begun)

    def _end(self, begun: _Begun) -> None:
        """Take it down and see that it is gone; or say that it stays."""
        name = begun.cluster.name
        try:
            if self._keep:
                option = name_option(name)
                self._note(f"{name} is kept: `drillyard status{option}`, `drillyard down --delete-data{option}`")
            else:
                self._down(begun.cluster)
        finally:
            with contextlib.suppress(RuntimeRefusal):
                begun.context.__exit__(None, None, None)

    def _down(self, cluster: SyncCluster) -> None:
        try:
            down = cluster.down(delete_data=True)
        except NoSuchDeployment:  # its test took it down already
            return
        except RuntimeRefusal as refused:
            self._note(f"{cluster.name} could not be taken down: {refused}")
            return
        if down.evidence:
            self._note(f"{cluster.name}: a member had ended unasked{_evidence(down.evidence)}")
        if not down.is_clean:
            self._note(f"{cluster.name} is not down: left are {', '.join(down.left)}")


@dataclass(frozen=True, slots=True)
class _Begun:
    cluster: SyncCluster
    context: AbstractContextManager[SyncCluster]
    options: Mapping[str, Any]

    @property
    def timeout_s(self) -> float:
        return float(self.options.get("timeout_s", Wanted().timeout_s))


class _Ears(Silence):
    """Hears where the evidence of a start is that was interrupted."""

    def __init__(self, note: Note) -> None:
        self._note = note

    def cut_short(self, trouble: Trouble) -> None:
        self._note(_trouble_words(trouble))


def _story(cluster: SyncCluster, reason: str) -> Story:
    """Save evidence of the cluster as it is, and tell how its members are and what they said last."""
    evidence, words = "", ""
    try:
        evidence = words = str(cluster.save_evidence(reason))
    except (EvidenceLost, RuntimeRefusal) as lost:
        words = f"none: {lost}"
    sections = [(f"drillyard: evidence of {cluster.name}", words)]
    with contextlib.suppress(RuntimeRefusal):
        rows = cluster.status().members
        sections.append(("drillyard: members", "\n".join(console.member_lines(rows))))
        lines = [console.cut(f"{one.member:<8} {one.text}", LINE_LENGTH) for one in cluster.logs(lines=TAIL_LINES)]
        sections.append(("drillyard: last lines of the logs", "\n".join(lines)))
    return Story(tuple(sections), evidence)


def _story_of(report: Report) -> Story:
    """The story of a cluster that did not become ready, and is gone."""
    trouble = report.trouble
    sections = [("drillyard: members", "\n".join(console.member_lines(report.members)))]
    gates = [f"{gate.gate:<11} {gate.status:<8} {gate.text}".rstrip() for gate in report.gates]
    sections.append(("drillyard: gates", "\n".join(gates)))
    if trouble is None:
        return Story(tuple(sections))
    sections.insert(0, (f"drillyard: evidence of {report.deployment}", trouble.evidence))
    if trouble.log_lines:
        title = f"drillyard: last lines of {trouble.culprit}"
        sections.append((title, "\n".join(console.cut(line, LINE_LENGTH) for line in trouble.log_lines)))
    return Story(tuple(sections), trouble.evidence if trouble.is_saved else "")


def _trouble_words(trouble: Trouble | None) -> str:
    return "" if trouble is None else f"{trouble.text}{_evidence(trouble.evidence)}"


def _evidence(where: str) -> str:
    return f"; evidence: {where}" if where else ""
