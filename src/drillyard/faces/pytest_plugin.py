"""The pytest plugin: fixtures that give a test a proven cluster, and reports that tell how it was when a test failed.

    def test_something(tikv_cluster):
        client = connect(tikv_cluster.pd_endpoints)
        tikv_cluster.kill("tikv1")

Rules: it is loaded in every pytest of the environment in which drillyard is installed, so this module imports pytest
and nothing of ours; `pytest_clusters` comes in when a fixture is first used. Options are taken from the command line,
then from the configuration file; a `tikv_cluster_options` fixture of the user's takes their place.

Not here: what is done with clusters.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from drillyard.faces.api import SyncCluster
    from drillyard.faces.pytest_clusters import Clusters

# Name, type, what stands for its value, help. The names are those of the fields of `drillyard.faces.api.Wanted`.
OPTIONS: tuple[tuple[str, type, str, str], ...] = (
    ("pd", int, "N", "how many PD members (3)"),
    ("tikv", int, "N", "how many TiKV members (3)"),
    ("profile", str, "NAME", "timings: laptop or upstream"),
    ("topology", str, "FILE", "a topology in TOML"),
    ("pd_binary", str, "FILE", "a real pd-server to run"),
    ("tikv_binary", str, "FILE", "a real tikv-server to run"),
    ("timeout_s", float, "SECONDS", "how long to wait for all gates (60)"),
    ("runtime", str, "NAME", "what runs it: local or compose"),
    ("version", str, "TAG", "compose: the release of both images"),
    ("pd_image", str, "IMAGE", "compose: the image of PD"),
    ("tikv_image", str, "IMAGE", "compose: the image of TiKV"),
)
FILES = ("topology", "pd_binary", "tikv_binary")
KEEP = "leave the clusters up, with their data, when the tests are done"

CLUSTERS = pytest.StashKey["Clusters"]()
NOTES = pytest.StashKey[list[str]]()


def _ini(name: str) -> str:
    return f"drillyard_{name.removesuffix('_s')}"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("drillyard", "TiKV clusters for tests (drillyard)")
    for name, kind, metavar, words in OPTIONS:
        flag = f"--{_ini(name).replace('_', '-')}"
        group.addoption(flag, dest=_ini(name), type=kind, default=None, metavar=metavar, help=words)
        parser.addini(_ini(name), words, default="")
    group.addoption("--drillyard-keep", dest="drillyard_keep", action="store_true", default=None, help=KEEP)
    parser.addini("drillyard_keep", KEEP, type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[NOTES] = []
    _options_of(config)  # a value that cannot be one is told before any test runs


def _options_of(config: pytest.Config) -> dict[str, Any]:
    """What is asked for, by the fields of `Wanted`; what is not asked for is left out."""
    found: dict[str, Any] = {}
    for name, kind, _, _ in OPTIONS:
        asked = config.getoption(_ini(name))
        text = config.getini(_ini(name))
        if asked is None and text:
            try:
                asked = kind(text)
            except ValueError:
                words = "a number" if kind is float else "a whole number"
                raise pytest.UsageError(f"{_ini(name)} = {text!r}: give {words}") from None
            if name in FILES and config.inipath is not None and (name == "topology" or os.sep in text):
                asked = str(config.inipath.parent / text)
        if asked is not None:
            found[name] = asked
    return found


@pytest.fixture(scope="session")
def tikv_cluster_options(pytestconfig: pytest.Config) -> dict[str, Any]:
    """What cluster the tests get: fields of `drillyard.faces.api.Wanted`. Override it to ask for another."""
    return _options_of(pytestconfig)


@pytest.fixture(scope="session")
def _drillyard_clusters(pytestconfig: pytest.Config) -> Iterator[Clusters]:
    from drillyard.faces.pytest_clusters import Clusters

    keep = pytestconfig.getoption("drillyard_keep")
    is_kept = pytestconfig.getini("drillyard_keep") if keep is None else keep
    worker = getattr(pytestconfig, "workerinput", {}).get("workerid", "")
    clusters = pytestconfig.stash[CLUSTERS] = Clusters(is_kept, worker, pytestconfig.stash[NOTES].append)
    yield clusters
    clusters.close()


@pytest.fixture
def tikv_cluster(
    request: pytest.FixtureRequest, _drillyard_clusters: Clusters, tikv_cluster_options: dict[str, Any]
) -> SyncCluster:
    """A cluster that is as new: proven, empty, every member running. One for the session (under xdist for each worker),
    brought up at its first use and reset before each test that uses it."""
    return _drillyard_clusters.shared(request.node.nodeid, tikv_cluster_options)


@pytest.fixture
def fresh_tikv_cluster(
    request: pytest.FixtureRequest, _drillyard_clusters: Clusters, tikv_cluster_options: dict[str, Any]
) -> Iterator[SyncCluster]:
    """A cluster for this test only, gone with its data after it."""
    with _drillyard_clusters.fresh(request.node.nodeid, tikv_cluster_options) as cluster:
        yield cluster


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    clusters = item.config.stash.get(CLUSTERS, None)
    if clusters is not None and report.failed:
        for story in clusters.stories(item.nodeid, "test-failed"):
            report.sections.extend(story.sections)
            if story.evidence:
                evidence = ("drillyard_evidence", story.evidence)
                item.user_properties.append(evidence)
                report.user_properties.append(evidence)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Evidence comes before everything else, also when the whole session is interrupted."""
    try:
        return (yield)
    except (KeyboardInterrupt, pytest.exit.Exception):
        if (clusters := item.config.stash.get(CLUSTERS, None)) is not None:
            clusters.stories(item.nodeid, "interrupted")
        raise
    finally:
        if (clusters := item.config.stash.get(CLUSTERS, None)) is not None:
            clusters.end_test()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["drillyard_notes"] = session.config.stash[NOTES]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of xdist is done: what it has to say is told in the one summary."""
    node.config.stash[NOTES].extend(getattr(node, "workeroutput", {}).get("drillyard_notes", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[NOTES]:
        terminalreporter.section("drillyard")
        for note in config.stash[NOTES]:
            terminalreporter.write_line(note)


def pytest_unconfigure(config: pytest.Config) -> None:
    clusters = config.stash.get(CLUSTERS, None)
    if clusters is not None:
        clusters.close()
