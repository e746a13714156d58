"""What a compose deployment remembers, and one home for both runtimes: its names, its ports, whose a name is."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from fake_docker import FakeDocker, record

from drillyard.runtimes import compose_file, compose_plans, plans, ports
from drillyard.runtimes.abilities import Misuse, NoSuchDeployment, PlanDiffers, PlanUnreadable, PortTaken
from drillyard.runtimes.choice import Runtimes, Wish
from drillyard.runtimes.compose import ComposeRuntime
from drillyard.runtimes.compose_plans import ComposePlan, Images
from drillyard.runtimes.home import Home
from drillyard.runtimes.local import LocalRuntime
from drillyard.runtimes.plans import Executable, Executables, Plan
from drillyard.topology import PREFERRED_PORTS, Member, Profile, Purpose, Role, Topology

MEND = "restore the file, or remove the deployment with its data (`drillyard down --delete-data`)"
PUBLISHED = {("pd0", Purpose.CLIENT): 12379, ("tikv0", Purpose.CLIENT): 30160, ("tikv0", Purpose.STATUS): 30180}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home on a machine whose ports are all free: only what is reserved stands in the way."""
    monkeypatch.setattr(ports, "is_free", lambda host, port: True)
    monkeypatch.setattr(ports.Hold, "take", lambda hold, host, port: True)
    monkeypatch.setattr("drillyard.runtimes.ports.PREFERRED_PORTS", PREFERRED_PORTS)
    return tmp_path / "home"


@pytest.fixture
def fake(tmp_path: Path) -> FakeDocker:
    """A Docker whose daemon has nothing of anybody."""
    made = FakeDocker(tmp_path)
    made.is_empty()
    return made


@pytest.fixture
def busy(tmp_path: Path) -> FakeDocker:
    """A Docker that a test says what its daemon has."""
    directory = tmp_path / "busy"
    directory.mkdir()
    return FakeDocker(directory)


def compose(home: Path, fake: FakeDocker) -> ComposeRuntime:
    return ComposeRuntime(Home(home), fake.docker)


def plan_in(directory: Path, **changes: Any) -> ComposePlan:
    told: dict[str, Any] = {
        "name": directory.name,
        "directory": directory,
        "project": f"drillyard-{directory.name}",
        "asked": compose_file.default_topology(),
        "published": PUBLISHED,
        **changes,
    }
    return ComposePlan(**told)


# --- remembered ------------------------------------------------------------------------------------------------------

ODD = Topology(
    (
        Member("pd-a", Role.PD, ports={Purpose.CLIENT: 12379}, config={"lease": 9}),
        Member("kv", Role.TIKV, flags=("--labels=zone=a b",), config={"storage.reserve-space": "0MB"}),
    ),
    Profile.LAPTOP,
)
FOUND = Topology(
    (
        Member("pd-a", Role.PD, "pd", {Purpose.CLIENT: 2379, Purpose.PEER: 2380}),
        Member("kv", Role.TIKV, "kv", {Purpose.CLIENT: 20160, Purpose.STATUS: 20180}),
    ),
    Profile.UPSTREAM,
)
PLANS: list[tuple[str, dict[str, Any]]] = [
    ("the usual one", {}),
    ("with images", {"variables": {"PD_IMAGE": "pd:x", "TIKV_MEMORY": "2g"}}),
    ("an odd topology", {"asked": ODD, "published": {("pd-a", Purpose.CLIENT): 12379}}),
    ("an adopted one", {"asked": FOUND, "adopted": True, "services": {"pd-a": "pd"}, "project": "mine"}),
]


@pytest.mark.parametrize("changes", [case[1] for case in PLANS], ids=[case[0] for case in PLANS])
def test_a_plan_that_was_saved_is_the_one_that_is_loaded(tmp_path: Path, changes: dict[str, Any]) -> None:
    plan = plan_in(tmp_path / "deployments" / "one", **changes)
    compose_plans.save(plan)
    assert compose_plans.load(plan.directory) == plan
    assert stat.S_IMODE((plan.directory / "compose.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(plan.directory.stat().st_mode) == 0o700


def test_there_is_no_plan_where_none_was_saved(tmp_path: Path) -> None:
    assert compose_plans.load(tmp_path) is None


DAMAGE: list[tuple[str, object, str]] = [
    ("no JSON", b"{", "JSONDecodeError"),
    ("no bytes", b"", "JSONDecodeError"),
    ("no record", b"[]", "TypeError"),
    ("nothing in it", {}, "KeyError"),
    ("no topology", {"asked": None}, "TypeError"),
    ("no port", {"published": [["pd0", "client", "many"]]}, "ValueError"),
    ("no purpose", {"published": [["pd0", "door", 1]]}, "ValueError"),
    ("no variables", {"variables": 7}, "AttributeError"),
    ("no PD", {"asked": {"profile": "laptop", "members": []}}, "TopologyError"),
]


@pytest.mark.parametrize(("damage", "words"), [case[1:] for case in DAMAGE], ids=[case[0] for case in DAMAGE])
def test_a_damaged_plan_is_refused_with_its_path_and_a_mend(tmp_path: Path, damage: object, words: str) -> None:
    compose_plans.save(plan_in(tmp_path))
    path = tmp_path / "compose.json"
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    elif damage == {}:
        path.write_text("{}")
    else:
        assert isinstance(damage, dict)
        path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(PlanUnreadable) as raised:
        compose_plans.load(tmp_path)
    assert raised.value.wrong.startswith(f"{path} is damaged ({words}: ")
    assert raised.value.mend == MEND


def test_a_plan_of_another_format_is_refused_with_both_formats(tmp_path: Path) -> None:
    compose_plans.save(plan_in(tmp_path))
    path = tmp_path / "compose.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(PlanUnreadable) as raised:
        compose_plans.load(tmp_path)
    assert raised.value.wrong == f"{path} has format 2, this version reads 1"
    assert raised.value.mend == "use the version that wrote it, or remove the deployment with its data"


def test_every_variable_of_the_file_is_set_so_that_the_callers_own_shape_nothing(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, variables={"PD_IMAGE": "pd:x", "TIKV_OPEN_FILES": "20000"})
    assert plan.environment == {
        "PD_IMAGE": "pd:x",
        "TIKV_IMAGE": "pingcap/tikv:v8.5.5",
        "PD_MEMORY": "512m",
        "TIKV_MEMORY": "1536m",
        "TIKV_OPEN_FILES": "20000",
        "PD_PORT": "12379",
        "TIKV_PORT": "30160",
        "TIKV_STATUS_PORT": "30180",
    }
    assert plan.image_of(Role.PD) == "pd:x"
    assert plan.image_of(Role.TIKV) == "pingcap/tikv:v8.5.5"


def test_a_port_that_is_written_into_the_file_is_no_variable(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, published={**PUBLISHED, ("pd1", Purpose.CLIENT): 22379})
    assert "22379" not in plan.environment.values()


def test_a_plan_claims_every_published_port(tmp_path: Path) -> None:
    assert plan_in(tmp_path).claims == {12379: "pd0", 30160: "tikv0", 30180: "tikv0"}


def test_a_plans_topology_is_that_of_its_containers(tmp_path: Path) -> None:
    assert plan_in(tmp_path).topology.member("pd0").addresses == {"client": "pd0:2379", "peer": "pd0:2380"}
    adopted = plan_in(tmp_path, asked=FOUND, adopted=True, services={"pd-a": "pd"})
    assert adopted.topology == FOUND, "as it was found"
    assert (adopted.service_of("pd-a"), adopted.service_of("kv")) == ("pd", "kv")


def test_the_written_file_has_the_planned_ports_and_the_variables_lie_beside_it(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, published={**PUBLISHED, ("tikv1", Purpose.STATUS): 20181}, variables={"PD_IMAGE": "pd:x"})
    plan.write_file()
    text = plan.file.read_text()
    assert '- "127.0.0.1:${PD_PORT:-12379}:2379"' in text
    assert '- "127.0.0.1:20181:20180"' in text
    lines = (tmp_path / ".env").read_text().splitlines()
    assert dict(line.split("=", 1) for line in lines) == plan.environment
    assert lines == sorted(lines)


# --- planned ---------------------------------------------------------------------------------------------------------


def test_the_usual_plan_has_the_servers_own_ports_and_timings(home: Path, fake: FakeDocker) -> None:
    plan = asyncio.run(compose(home, fake).plan())
    assert plan.published == {
        ("pd0", Purpose.CLIENT): 2379,
        ("tikv0", Purpose.CLIENT): 20160,
        ("tikv0", Purpose.STATUS): 20180,
    }
    assert (plan.project, plan.asked, plan.variables) == ("drillyard-default", compose_file.default_topology(), {})
    assert compose(home, fake).remembered() == plan
    label = "--filter label=com.docker.compose.project=drillyard-default"
    asked = [f"ps -a --format {{{{.Names}}}} {label}", f"volume ls --format {{{{.Name}}}} {label}"]
    assert fake.calls == asked, "whether somebody else has the project already, and no more"


CONTAINER, VOLUME = "container drillyard-default-pd0-1", "volume drillyard-default_pd0-data"


@pytest.mark.parametrize("left", [(CONTAINER,), (VOLUME,), (CONTAINER, VOLUME)], ids=["containers", "volumes", "both"])
def test_a_new_deployment_does_not_come_upon_what_another_home_left(
    home: Path, busy: FakeDocker, left: tuple[str, ...]
) -> None:
    busy.says("ps *", CONTAINER.split()[1] + "\n" if CONTAINER in left else "")
    busy.says("volume ls *", VOLUME.split()[1] + "\n" if VOLUME in left else "")
    with pytest.raises(PlanDiffers) as raised:
        asyncio.run(compose(home, busy).plan())
    words = f"project drillyard-default is there already, and not from this home: {', '.join(left)}"
    assert raised.value.wrong == words
    assert raised.value.mend == "use another name (--name), or remove what it names if nobody needs it"
    assert compose(home, busy).names() == (), "and nothing was planned"


def test_what_a_deployment_of_this_home_left_is_its_own(home: Path, busy: FakeDocker) -> None:
    """Down with its volumes kept: it comes back to them, and asks nobody."""
    runtime = compose(home, busy)
    plan = plan_in(runtime.home.directory("default"))
    compose_plans.save(plan)
    assert asyncio.run(runtime.plan()) == plan
    assert busy.calls == []


def test_the_environments_variables_shape_the_plan_as_they_shape_the_file(
    home: Path, fake: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PD_IMAGE": "pd:env", "TIKV_IMAGE": "kv:env", "PD_PORT": "12379", "TIKV_PORT": "30160"}.items():
        monkeypatch.setenv(name, value)
    plan = asyncio.run(compose(home, fake).plan(images=Images(tikv="kv:asked")))
    assert plan.variables == {"PD_IMAGE": "pd:env", "TIKV_IMAGE": "kv:asked"}
    assert plan.claims == {12379: "pd0", 30160: "tikv0", 20180: "tikv0"}


def test_a_variable_that_is_no_port_is_named(home: Path, fake: FakeDocker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKV_PORT", "many")
    with pytest.raises(Misuse, match="TIKV_PORT='many' is no port; give a number from 1 to 65535"):
        asyncio.run(compose(home, fake).plan())


def test_a_known_plan_is_kept_and_asked_for_again_found(home: Path, fake: FakeDocker) -> None:
    runtime = compose(home, fake)
    first = asyncio.run(runtime.plan(compose_file.default_topology(1, 1), images=Images(pd="pd:x")))
    assert asyncio.run(runtime.plan()) == first
    assert asyncio.run(runtime.plan(compose_file.default_topology(1, 1))) == first
    assert asyncio.run(runtime.plan(images=Images(pd="pd:x"))) == first
    assert len(fake.calls) == 2, "Docker was asked for the first of them alone"


def test_a_plan_is_changed_only_while_nothing_runs(home: Path, busy: FakeDocker) -> None:
    runtime = compose(home, busy)
    plan = plan_in(runtime.home.directory("default"))
    compose_plans.save(plan)
    busy.holds(record(file=plan.file))
    with pytest.raises(PlanDiffers, match="deployment 'default' runs with another plan; take it down first"):
        asyncio.run(runtime.plan(images=Images(pd="pd:x")))


def test_other_images_keep_the_ports(home: Path, fake: FakeDocker) -> None:
    runtime = compose(home, fake)
    before = asyncio.run(runtime.plan())
    changed = asyncio.run(runtime.plan(images=Images(pd="pd:x")))
    assert changed.published == before.published
    assert changed.variables == {"PD_IMAGE": "pd:x"}


def test_what_an_emulated_store_is_content_with_is_not_what_a_real_one_gets(home: Path, fake: FakeDocker) -> None:
    """The start of an emulated TiKV remembers that it needs few open files; a real one would exit with so few."""
    runtime = compose(home, fake)
    variables = {"TIKV_IMAGE": "drillyard/tikv-emulator:local", "TIKV_OPEN_FILES": "20000"}
    compose_plans.save(plan_in(runtime.home.directory("default"), variables=variables))
    same = asyncio.run(runtime.plan(images=Images(tikv="drillyard/tikv-emulator:local")))
    assert same.environment["TIKV_OPEN_FILES"] == "20000"
    real = asyncio.run(runtime.plan(images=Images(tikv="pingcap/tikv:v8.5.5")))
    assert real.environment["TIKV_OPEN_FILES"] == "100000"


@pytest.mark.parametrize(("volumes", "is_refused"), [("", False), ("drillyard-default_pd0-data\n", True)])
def test_other_members_want_a_deployment_without_data(
    home: Path, busy: FakeDocker, volumes: str, is_refused: bool
) -> None:
    runtime = compose(home, busy)
    compose_plans.save(plan_in(runtime.home.directory("default")))
    busy.says("ps *")
    busy.says("volume ls *", volumes)
    wanted = compose_file.default_topology(1, 1)
    if is_refused:
        with pytest.raises(PlanDiffers, match="deployment 'default' exists with other members"):
            asyncio.run(runtime.plan(wanted))
    else:
        assert asyncio.run(runtime.plan(wanted)).asked == wanted


def test_an_adopted_project_keeps_its_own_file(home: Path, fake: FakeDocker) -> None:
    runtime = compose(home, fake)
    plan = plan_in(runtime.home.directory("mine"), project="mine", asked=FOUND, adopted=True)
    compose_plans.save(plan)
    assert asyncio.run(runtime.plan(name="mine")) == plan
    with pytest.raises(PlanDiffers, match="mine was started by somebody else; change its own Compose file"):
        asyncio.run(runtime.plan(name="mine", images=Images(pd="x")))


# --- one home for both runtimes --------------------------------------------------------------------------------------


def test_a_home_knows_the_deployments_of_both_runtimes(home: Path, fake: FakeDocker) -> None:
    runtime = compose(home, fake)
    asyncio.run(LocalRuntime(runtime.home).plan(name="by-process"))
    asyncio.run(runtime.plan(name="by-container"))
    assert runtime.home.names() == ("by-container", "by-process")
    assert runtime.names() == ("by-container",)
    assert runtime.home.names(plans.FILE) == ("by-process",)
    with pytest.raises(NoSuchDeployment, match="there are: by-container, by-process"):
        asyncio.run(runtime.deployment("other"))


def test_a_port_is_one_deployments_over_both_runtimes(home: Path, fake: FakeDocker) -> None:
    runtime = compose(home, fake)
    local = asyncio.run(LocalRuntime(runtime.home).plan(name="by-process"))
    composed = asyncio.run(runtime.plan(name="by-container"))
    third = asyncio.run(LocalRuntime(runtime.home).plan(name="third"))
    taken = [set(ports.claims(local.topology)), set(composed.claims), set(ports.claims(third.topology))]
    assert len(set.union(*taken)) == sum(len(some) for some in taken)
    reserved = runtime.home.reserved("third")
    assert set(reserved) == taken[0] | taken[1]
    assert reserved[2379] == "pd0 of deployment 'by-process'"
    assert reserved[composed.published["tikv0", Purpose.STATUS]] == "tikv0 of deployment 'by-container'"
    assert set(runtime.home.reserved("by-process")) == taken[1] | taken[2]


def test_an_asked_port_of_the_other_runtimes_deployment_is_refused(home: Path, fake: FakeDocker) -> None:
    runtime = compose(home, fake)
    asyncio.run(LocalRuntime(runtime.home).plan(name="by-process"))
    pd = Member("pd0", Role.PD, ports={Purpose.CLIENT: 2381})
    with pytest.raises(PortTaken, match="port 2381, wanted by pd0, is taken by pd1 of deployment 'by-process'"):
        asyncio.run(runtime.plan(Topology((pd, Member("tikv0", Role.TIKV)), Profile.UPSTREAM)))
    assert runtime.names() == ()


@pytest.mark.parametrize("file", [plans.FILE, compose_plans.FILE])
def test_a_damaged_plan_reserves_nothing_and_stops_nobody(home: Path, fake: FakeDocker, file: str) -> None:
    broken = home / "deployments" / "broken"
    broken.mkdir(parents=True)
    (broken / file).write_text("{")
    runtime = compose(home, fake)
    asyncio.run(runtime.plan(name="sound"))
    assert runtime.home.names() == ("broken", "sound")
    assert set(runtime.home.reserved("other")) == {2379, 20160, 20180}


@pytest.mark.parametrize("name", ["", "Default", "-x", "a/b", "..", "x" * 33])
def test_no_other_name_becomes_a_path(home: Path, name: str) -> None:
    with pytest.raises(Misuse, match="is no deployment name; use 1 to 32 small letters"):
        Home(home).directory(name)


def test_a_home_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRILLYARD_HOME", os.fspath(tmp_path / "there"))
    assert Home().root == tmp_path / "there"


# --- whose a name is -------------------------------------------------------------------------------------------------


def both(home: Path, fake: FakeDocker) -> Runtimes:
    """Both runtimes, with a deployment of each."""
    made = Runtimes(home, compose(home, fake))
    asyncio.run(made.plan(Wish("by-process")))
    asyncio.run(made.plan(Wish("by-container", runtime="compose")))
    return made


def test_a_deployment_is_found_on_its_own_runtime(home: Path, fake: FakeDocker) -> None:
    made = both(home, fake)
    assert made.names() == ("by-container", "by-process")
    assert isinstance(made.remembered("by-process"), Plan)
    assert isinstance(made.remembered("by-container"), ComposePlan)
    assert made.remembered("other") is None


def test_what_exists_needs_no_runtime_to_be_named(home: Path, fake: FakeDocker) -> None:
    made = both(home, fake)
    assert isinstance(asyncio.run(made.plan(Wish("by-container"))), ComposePlan)
    assert isinstance(asyncio.run(made.plan(Wish("by-process"))), Plan)
    assert isinstance(asyncio.run(made.plan(Wish("new"))), Plan), "local is the usual one"


BINARY = Executables(Executable.real("/bin/true"), Executable.real("/bin/true"))
WRONG: list[tuple[str, Wish, str]] = [
    (
        "an unknown runtime",
        Wish("new", runtime="podman"),
        "'podman' is no runtime; use local or compose",
    ),
    (
        "a name of the local runtime",
        Wish("by-process", runtime="compose"),
        "deployment 'by-process' exists on the local runtime; use another name, or take it down with its data first",
    ),
    (
        "a name of the compose runtime",
        Wish("by-container", runtime="local"),
        "deployment 'by-container' exists on the compose runtime; use another name",
    ),
    (
        "an image for processes",
        Wish("new", images=Images(pd="x")),
        "an image is for containers; add `--runtime compose`, or name an executable instead",
    ),
    (
        "an image for existing processes",
        Wish("by-process", images=Images(tikv="x")),
        "an image is for containers",
    ),
    (
        "an executable for containers",
        Wish("new", runtime="compose", executables=BINARY),
        "an executable is for local members; name an image instead (`--pd-image`, `--tikv-image`)",
    ),
    (
        "an executable for existing containers",
        Wish("by-container", executables=BINARY),
        "an executable is for local members",
    ),
]


@pytest.mark.parametrize(("wish", "words"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_what_the_other_runtime_is_for_is_refused(home: Path, fake: FakeDocker, wish: Wish, words: str) -> None:
    made = both(home, fake)
    before = (made.names(), made.remembered(wish.name))
    with pytest.raises(Misuse) as raised:
        asyncio.run(made.plan(wish))
    assert str(raised.value).startswith(words)
    assert (made.names(), made.remembered(wish.name)) == before, "and nothing was planned"
