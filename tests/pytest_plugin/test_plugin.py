"""The fixtures as somebody's suite sees them: a cluster as new for each test, and reports of those that failed."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from users_suite import Suite


def test_every_test_gets_the_cluster_as_new_and_nothing_is_left(suite: Suite) -> None:
    suite.write("pytest.ini", "[pytest]\n")
    suite.write(
        "test_life.py",
        """
names = []

def test_breaks_it(tikv_cluster):
    with client(tikv_cluster) as kv:
        kv.put(b"k", b"v")
        kv.put(b"\\xff" * 8, b"v")
    tikv_cluster.kill("tikv1")
    tikv_cluster.stop("pd2")
    tikv_cluster.pause("tikv2")
    names.append(tikv_cluster.name)

def test_finds_it_as_new(tikv_cluster):
    assert [row.state for row in tikv_cluster.status().members] == ["running"] * 6
    assert tikv_cluster.report.is_ready
    with client(tikv_cluster) as kv:
        assert list(kv.scan(b"", b"", limit=10)) == []
    names.append(tikv_cluster.name)

def test_has_one_of_its_own(fresh_tikv_cluster, tikv_cluster):
    with client(fresh_tikv_cluster) as mine, client(tikv_cluster) as shared:
        mine.put(b"k", b"mine")
        assert shared.get(b"k") is None
    assert tikv_cluster.name == names[0] == names[1] != fresh_tikv_cluster.name

@pytest.mark.anyio
async def test_calls_from_a_running_loop(tikv_cluster):
    import asyncio
    tikv_cluster.kill("tikv0")
    assert (await asyncio.to_thread(tikv_cluster.start, "tikv0")).state == "running"
    assert (await asyncio.to_thread(tikv_cluster.verify, 60)).is_ready

@pytest.fixture
def anyio_backend():
    return "asyncio"
""",
    )
    ran = suite.run()
    assert ran.code == 0, ran.out
    assert "= drillyard =" not in ran.out, "there is nothing to tell"
    assert suite.deployments() == {}


def test_a_failed_test_tells_how_its_clusters_were(suite: Suite) -> None:
    suite.write(
        "test_failures.py",
        """
def test_call(tikv_cluster):
    tikv_cluster.kill("tikv0")
    assert False, "in the test"

def test_that_passes(tikv_cluster):
    assert tikv_cluster.report.is_ready

@pytest.mark.xfail
def test_that_is_known_to_fail(tikv_cluster):
    assert False

@pytest.fixture
def broken(tikv_cluster):
    yield
    raise RuntimeError("in the teardown")

def test_teardown(broken):
    pass

def test_both(fresh_tikv_cluster, tikv_cluster):
    fresh_tikv_cluster.pause("pd0")
    assert False, "with two clusters"

def test_without_a_cluster():
    assert False, "with none"
""",
    )
    ran = suite.run("--junitxml=report.xml")
    assert ran.code == 1
    bundle = ran.evidence("test_failures.py::test_call: test-failed; evidence: ")
    assert "Welcome to TiKV" in (bundle / "logs" / "tikv0.log").read_text()
    assert '"signal_name": "SIGKILL"' in (bundle / "members.json").read_text()
    call = ran.out.partition("_ test_call _")[2].partition("\n____")[0]
    for words in (f"\n{bundle}\n", "stopped (SIGKILL, asked)", "\ntikv0    [2", "\npd0      [2"):
        assert words in call, call
    assert len(call.splitlines()) < 60, "bounded"
    ran.evidence("test_failures.py::test_teardown: test-failed; evidence: ")
    both = [line for line in ran.out.splitlines() if line.startswith("test_failures.py::test_both: test-failed")]
    assert len({Path(line.rpartition(": ")[2]).parents[1] for line in both}) == 2
    assert "paused" in ran.out.partition("_ test_both _")[2]
    assert ran.out.count("drillyard: members") == 4
    assert suite.leftovers() == {"evidence"}, "all else is gone"
    properties = ElementTree.parse(suite.directory / "report.xml").findall(".//testcase[@name='test_call']//property")
    assert [(one.get("name"), one.get("value")) for one in properties] == [("drillyard_evidence", str(bundle))]


def test_workers_have_clusters_of_their_own_at_the_same_time(suite: Suite) -> None:
    suite.write(
        "test_workers.py",
        """
@pytest.mark.parametrize("mine, other", [("a", "b"), ("b", "a")])
def test_side_by_side(tikv_cluster, mine, other):
    draft = pathlib.Path(mine + ".new")
    draft.write_text(tikv_cluster.name + " " + tikv_cluster.pd_endpoints[0])
    draft.rename(mine)
    deadline = time.monotonic() + 90
    while not pathlib.Path(other).exists():
        assert time.monotonic() < deadline, "the other worker has no cluster"
        time.sleep(0.02)
    with client(tikv_cluster) as kv:
        kv.put(b"who", mine.encode())
        assert kv.get(b"who") == mine.encode()
    assert False, "so that it is told"
""",
    )
    ran = suite.run("-n", "2")
    assert ran.code == 1, ran.out
    seen = [(suite.directory / name).read_text().split() for name in ("a", "b")]
    assert sorted(name.rpartition("-")[0] for name, _ in seen) == ["pytest-gw0", "pytest-gw1"]
    assert seen[0][1] != seen[1][1]
    for name, _ in seen:
        assert f"drillyard: evidence of {name}" in ran.out, "sections come over from the workers"
    for case in ("a-b", "b-a"):
        ran.evidence(f"test_workers.py::test_side_by_side[{case}]: test-failed; evidence: ")
    assert suite.leftovers() == {"evidence"}


def test_a_cluster_that_does_not_become_ready_is_told_in_words(suite: Suite) -> None:
    broken = suite.write("tikv-server", "#!/bin/sh\necho 'no such flag' >&2\nexit 7\n")
    broken.chmod(0o755)
    suite.write("pytest.ini", "[pytest]\ndrillyard_pd = 1\ndrillyard_tikv = 1\ndrillyard_tikv_binary = ./tikv-server\n")
    suite.write("test_start.py", "def test_never_runs(tikv_cluster):\n    raise AssertionError('it ran')\n")
    ran = suite.run()
    assert ran.code == 1, ran.out
    assert "Traceback" not in ran.out.partition("ERROR at setup")[2].partition("drillyard: evidence")[0]
    assert "it ran" not in ran.out
    told = ran.line("no cluster for test_start.py::test_never_runs: ")
    assert "lost tikv0 (exit code 7, unexpected): gate processes is closed" in told
    for words in ("drillyard: gates", "drillyard: members", "drillyard: last lines of tikv0", "\nno such flag"):
        assert words in ran.out, ran.out
    ran.evidence("test_start.py::test_never_runs: test-failed; evidence: ")
    assert suite.leftovers() == {"evidence"}


def test_a_cluster_that_cannot_be_reset_is_replaced(suite: Suite) -> None:
    """A member of the first cluster cannot be started again, the second is taken away by its test, and the third has a
    member that ends unasked, which is worth a word."""
    script = f"""#!/bin/sh
case "$*" in *"$(cat {suite.directory}/broken)"*) exit 3 ;; esac
exec {sys.executable} -P -m drillyard.emulator.tikv.server "$@"
"""
    suite.write("tikv-server", script).chmod(0o755)
    suite.write("broken", "none of this name")
    suite.write("pytest.ini", "[pytest]\ndrillyard_pd = 1\ndrillyard_tikv = 1\ndrillyard_tikv_binary = ./tikv-server\n")
    suite.write(
        "test_replaced.py",
        """
names = []

@pytest.fixture(autouse=True)
def another(tikv_cluster):
    names.append(tikv_cluster.name)

def test_breaks_it(tikv_cluster):
    tikv_cluster.stop("tikv0")
    pathlib.Path("broken").write_text(tikv_cluster.name)

def test_takes_it_down(tikv_cluster):
    tikv_cluster.down(delete_data=True)

def test_crashes_a_member(tikv_cluster):
    os.kill(next(row.pid for row in tikv_cluster.status().members if row.name == "tikv0"), signal.SIGKILL)

def test_goes_on(tikv_cluster):
    assert tikv_cluster.verify().is_ready
    assert names[0] != names[1] != names[2] == names[3]
""",
    )
    ran = suite.run()
    assert ran.code == 0, ran.out
    replaced = "could not be reset before test_replaced.py::{} and is replaced by a new cluster: "
    assert "gate processes is closed" in ran.line(replaced.format("test_takes_it_down"))
    ran.evidence(replaced.format("test_takes_it_down"))
    assert "there is no deployment" in ran.line(replaced.format("test_crashes_a_member"))
    ran.evidence("a member had ended unasked before test_replaced.py::test_goes_on; evidence: ")


def test_options_by_file_by_command_line_and_by_fixture(suite: Suite) -> None:
    suite.write(
        "test_a_asked.py",
        """
def test_members(tikv_cluster):
    assert sorted(row.name for row in tikv_cluster.status().members) == ["pd0", "tikv0", "tikv1"]
""",
    )
    suite.write(
        "test_b_overridden.py",
        """
@pytest.fixture(scope="session")
def tikv_cluster_options(tikv_cluster_options):
    return {**tikv_cluster_options, "tikv": 1, "timeout_s": 90}

def test_members(tikv_cluster):
    assert [row.name for row in tikv_cluster.status().members] == ["pd0", "tikv0"]
""",
    )
    suite.write(
        "test_c_wrong.py",
        """
@pytest.fixture(scope="session")
def tikv_cluster_options():
    return {"stores": 3}

def test_never_runs(tikv_cluster):
    pass
""",
    )
    ran = suite.run("--drillyard-tikv=2", "--drillyard-keep")
    assert ran.code == 1
    assert "2 passed, 1 error" in ran.out
    assert "tikv_cluster_options: 'stores' is no option; there are pd, tikv, profile" in ran.out
    assert "Traceback" not in ran.out
    kept = [line for line in ran.out.splitlines() if " is kept: `drillyard status --name pytest-" in line]
    assert len(kept) == 2
    assert sorted(line.split()[0] for line in kept) == sorted(suite.deployments())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--drillyard-pd", "many"], "argument --drillyard-pd: invalid int value: 'many'"),
        (["-o", "drillyard_timeout=soon"], "drillyard_timeout = 'soon': give a number"),
    ],
    ids=["command line", "file"],
)
def test_a_value_that_cannot_be_one_is_told_before_any_test(suite: Suite, options: list[str], told: str) -> None:
    ran = suite.run(*options)
    assert ran.code == pytest.ExitCode.USAGE_ERROR
    assert told in ran.out


def test_a_cluster_that_cannot_be_had_is_refused_in_words(suite: Suite) -> None:
    suite.write("test_refused.py", "def test_never_runs(fresh_tikv_cluster):\n    pass\n")
    ran = suite.run("--drillyard-tikv=0", "--drillyard-profile=fast")
    assert ran.code == 1
    assert (
        "no cluster for test_refused.py::test_never_runs: tikv: 0 TiKV members; give a number from 1 to 50" in ran.out
    )
    assert suite.deployments() == {}


def test_every_pytest_of_the_environment_loads_next_to_nothing() -> None:
    program = """
import sys, pytest
before = set(sys.modules)
import drillyard.faces.pytest_plugin
print(sorted(set(sys.modules) - before))
"""
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert loaded == "['drillyard', 'drillyard.faces', 'drillyard.faces.pytest_plugin']\n"
