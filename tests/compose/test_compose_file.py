"""The Compose file: the committed one is the printed one, its fields, and what a topology may ask of it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from drillyard.faces.api import Wanted, render_compose
from drillyard.runtimes import compose_file
from drillyard.runtimes.abilities import Misuse
from drillyard.topology import Config, Files, Member, Profile, Purpose, Role, Topology
from drillyard.topology_file import parse_topology

SUBJECT = Path(__file__).parents[2] / "subjects" / "tikv"
PD_FLAGS = [
    "--name=pd1",
    "--data-dir=/data",
    "--client-urls=http://0.0.0.0:2379",
    "--advertise-client-urls=http://pd1:2379",
    "--peer-urls=http://0.0.0.0:2380",
    "--advertise-peer-urls=http://pd1:2380",
    "--initial-cluster=pd0=http://pd0:2380,pd1=http://pd1:2380,pd2=http://pd2:2380",
]
TIKV_FLAGS = [
    "--addr=0.0.0.0:20160",
    "--advertise-addr=tikv2:20160",
    "--status-addr=0.0.0.0:20180",
    "--advertise-status-addr=tikv2:20180",
    "--data-dir=/data",
    "--pd=pd0:2379,pd1:2379,pd2:2379",
]
ODD_NAMES = ["yes", "1", "On", "a.b", "null", "pd", "0x1", "1e1", "N", "PD-1", "x_"]


def default() -> str:
    return compose_file.render(compose_file.default_topology())


def of(*members: Member, profile: Profile = Profile.UPSTREAM) -> Topology:
    return Topology(members, profile)


def blocks(text: str, part: str) -> dict[str, list[str]]:
    """The entries of one part of a file ("services", …) by their keys as written, each with its lines."""
    lines = text.splitlines()
    found: dict[str, list[str]] = {}
    for line in lines[lines.index(f"{part}:") + 1 :]:
        if line and not line.startswith(" "):
            break
        if re.match(r"  \S", line):
            key = line.strip().removesuffix(":")
            found[key] = []
        elif line.strip():
            found[key].append(line.removeprefix("    "))
    return found


def under(lines: list[str], field: str) -> list[str]:
    """The lines that belong to one field of an entry, without their indent."""
    at = next(at for at, line in enumerate(lines) if line.startswith(f"{field}:"))
    found = []
    for line in lines[at + 1 :]:
        if not line.startswith("  "):
            break
        found.append(line[2:])
    return found


def words(lines: list[str]) -> list[str]:
    """What Compose makes of a command: the folded lines, its variables filled in, cut as a shell would."""
    text = " ".join(under(lines, "command"))
    assert "$" not in text.replace("$$", ""), "no variable of ours is in a command"
    return shlex.split(text.replace("$$", "$"))


# --- the file that is committed --------------------------------------------------------------------------------------


def test_the_committed_file_is_the_printed_one_to_the_letter() -> None:
    committed = (SUBJECT / "docker-compose.yaml").read_bytes()
    assert committed == default().encode()
    assert committed == render_compose(Wanted()).encode()


@pytest.mark.parametrize(("member", "flags"), [("pd1", PD_FLAGS), ("tikv2", TIKV_FLAGS)])
def test_a_container_runs_with_exactly_these_flags(member: str, flags: list[str]) -> None:
    lines = blocks(default(), "services")[member]
    assert under(lines, "command") == flags, "one flag on each line, as it is"
    assert words(lines) == flags


def test_each_tikv_waits_until_every_pd_is_healthy() -> None:
    waits = re.findall(r"depends_on.*service_healthy.*", default())
    assert len(waits) == 3
    for line in waits:
        assert re.findall(r"(\w+): \{condition: service_healthy\}", line) == ["pd0", "pd1", "pd2"]
    services = blocks(default(), "services")
    assert [name for name, lines in services.items() if any("depends_on" in line for line in lines)] == [
        "tikv0",
        "tikv1",
        "tikv2",
    ]


def test_only_the_first_pd_and_the_first_tikv_are_published_and_only_on_loopback() -> None:
    services = blocks(default(), "services")
    published = {name: under(lines, "ports") for name, lines in services.items() if "ports:" in lines}
    assert published == {
        "pd0": ['- "127.0.0.1:${PD_PORT:-2379}:2379"'],
        "tikv0": ['- "127.0.0.1:${TIKV_PORT:-20160}:20160"', '- "127.0.0.1:${TIKV_STATUS_PORT:-20180}:20180"'],
    }


def test_six_members_have_six_named_volumes() -> None:
    names = ["pd0", "pd1", "pd2", "tikv0", "tikv1", "tikv2"]
    services = blocks(default(), "services")
    assert list(services) == names
    assert list(blocks(default(), "volumes")) == [f"{name}-data" for name in names]
    for name in names:
        assert under(services[name], "volumes") == [f"- {name}-data:/data"]


@pytest.mark.parametrize("name", ["pd0", "pd1", "pd2", "tikv0", "tikv1", "tikv2"])
def test_every_member_has_its_image_its_limit_its_policy_and_its_health_check(name: str) -> None:
    lines = blocks(default(), "services")[name]
    role = Role.PD if name.startswith("pd") else Role.TIKV
    image, memory, grace = {
        Role.PD: ("image: ${PD_IMAGE:-pingcap/pd:v8.5.5}", "mem_limit: ${PD_MEMORY:-512m}", "30s"),
        Role.TIKV: ("image: ${TIKV_IMAGE:-pingcap/tikv:v8.5.5}", "mem_limit: ${TIKV_MEMORY:-1536m}", "20s"),
    }[role]
    assert {image, memory, f"stop_grace_period: {grace}", "restart: on-failure"} <= set(lines)
    check, *others = under(lines, "healthcheck")
    assert json.loads(check.removeprefix("test: ")) == ["CMD-SHELL", compose_file.health_check(role)]
    assert others == ["interval: 2s", "timeout: 3s", "retries: 10", "start_period: 30s"]
    assert ("nofile: ${TIKV_OPEN_FILES:-100000}" in "\n".join(lines)) == (role is Role.TIKV)


def test_nothing_in_the_usual_file_needs_a_new_compose() -> None:
    for word in ("configs:", "start_interval", "name:", "version:"):
        assert word not in {line.strip() for line in default().splitlines()}


@pytest.mark.parametrize(
    ("role", "url"), [(Role.PD, "localhost:2379/pd/api/v1/health"), (Role.TIKV, "localhost:20180/status")]
)
def test_the_health_check_asks_with_curl_or_with_wget(role: Role, url: str) -> None:
    numeric = url.replace("localhost", "127.0.0.1")
    assert compose_file.health_check(role) == (
        "if command -v curl >/dev/null; "
        f"then curl -fsS -m 2 -o /dev/null http://{url}; "
        f"else wget -q -T 1 -O /dev/null http://{url} || wget -q -T 1 -O /dev/null http://{numeric}; fi"
    )


@pytest.mark.parametrize(
    ("file", "variables"),
    [
        ("arm64.env", {"PD_IMAGE": "pingcap/pd-arm64:v6.0.0", "TIKV_IMAGE": "pingcap/tikv-arm64:v6.0.0"}),
        (
            "local.env",
            {
                "PD_IMAGE": "drillyard/pd-source:local",
                "TIKV_IMAGE": "drillyard/tikv-emulator:local",
                "TIKV_OPEN_FILES": "20000",
            },
        ),
    ],
)
def test_an_env_file_holds_exactly_the_images_that_it_is_for(file: str, variables: dict[str, str]) -> None:
    lines = [line for line in (SUBJECT / file).read_text().splitlines() if line and not line.startswith("#")]
    assert dict(line.split("=", 1) for line in lines) == variables
    assert variables.keys() <= compose_file.DEFAULTS.keys(), "the file knows each of them"


def test_the_head_tells_counts_and_memory_of_this_topology() -> None:
    assert default().startswith("# A TiKV cluster of 3 PD and 3 TiKV.")
    assert "are limits, 6 GiB in all" in default()
    smaller = compose_file.render(compose_file.default_topology(1, 2))
    assert smaller.startswith("# A TiKV cluster of 1 PD and 2 TiKV.")
    assert "are limits, 3.5 GiB in all" in smaller


# --- what a topology asks for ----------------------------------------------------------------------------------------


def test_asked_client_ports_become_the_defaults_of_their_variables() -> None:
    asked = parse_topology("[[pd]]\nclient-port = 12379\n[[tikv]]\nclient-port = 30160\nstatus-port = 30180\n")
    services = blocks(compose_file.render(asked), "services")
    assert under(services["pd0"], "ports") == ['- "127.0.0.1:${PD_PORT:-12379}:2379"']
    assert under(services["tikv0"], "ports") == [
        '- "127.0.0.1:${TIKV_PORT:-30160}:20160"',
        '- "127.0.0.1:${TIKV_STATUS_PORT:-30180}:20180"',
    ]


def test_another_member_is_published_where_that_was_asked_for() -> None:
    asked = parse_topology("[[pd]]\n[[pd]]\nclient-port = 22379\n[[tikv]]\n[[tikv]]\nstatus-port = 20181\n")
    assert compose_file.published(asked) == {
        ("pd0", Purpose.CLIENT): None,
        ("pd1", Purpose.CLIENT): 22379,
        ("tikv0", Purpose.CLIENT): None,
        ("tikv0", Purpose.STATUS): None,
        ("tikv1", Purpose.STATUS): 20181,
    }
    services = blocks(compose_file.render(asked), "services")
    assert under(services["pd1"], "ports") == ['- "127.0.0.1:22379:2379"']
    assert under(services["tikv1"], "ports") == ['- "127.0.0.1:20181:20180"']


def test_inside_a_container_everybody_has_the_servers_own_ports() -> None:
    asked = parse_topology("[[pd]]\nclient-port = 12379\n[[tikv]]\nclient-port = 30160\n")
    inside = compose_file.in_containers(asked)
    assert inside.is_settled
    assert inside.member("pd0").addresses == {"client": "pd0:2379", "peer": "pd0:2380"}
    assert inside.member("tikv0").addresses == {"client": "tikv0:20160", "status": "tikv0:20180"}


CONFIGS: list[tuple[str, Topology, dict[str, list[str]]]] = [
    ("the usual one", compose_file.default_topology(), {}),
    ("fewer stores than replicas", compose_file.default_topology(1, 2), {"pd0": ["[replication]", "max-replicas = 1"]}),
    ("a setting as the server has it", of(Member("pd0", Role.PD, config={"lease": 3})), {"pd0": ["[replication]"]}),
    (
        "a setting of one member",
        of(
            Member("pd0", Role.PD, config={"replication.max-replicas": 3}),
            Member("tikv0", Role.TIKV, config={"raftstore.raft-heartbeat-ticks": 2, "storage.reserve-space": "0MB"}),
        ),
        {"tikv0": ["[storage]", 'reserve-space = "0MB"']},
    ),
]


@pytest.mark.parametrize(("asked", "expected"), [case[1:] for case in CONFIGS], ids=[case[0] for case in CONFIGS])
def test_only_what_differs_from_the_servers_own_becomes_a_config(
    asked: Topology, expected: dict[str, list[str]]
) -> None:
    text = compose_file.render(asked)
    configs = blocks(text, "configs") if expected else {}
    assert [f"{name}-config" for name in expected] == list(configs)
    assert ("configs:" in text) == bool(expected)
    for name, lines in expected.items():
        content = under(configs[f"{name}-config"], "content")
        assert content[: len(lines)] == lines
        service = blocks(text, "services")[name]
        assert under(service, "configs") == [f"- source: {name}-config", "  target: /etc/drillyard/config.toml"]
        assert words(service)[-1] == "--config=/etc/drillyard/config.toml"
    for name, service in blocks(text, "services").items():
        assert ("configs:" in service) == (name in expected)


def test_the_laptop_profile_is_a_config_of_every_member() -> None:
    text = compose_file.render(Topology.of(profile=Profile.LAPTOP))
    configs = blocks(text, "configs")
    assert list(configs) == [f"{name}-config" for name in blocks(text, "services")]
    pd = under(configs["pd1-config"], "content")
    assert pd == ['election-interval = "1s"', "lease = 2", 'tick-interval = "100ms"']
    assert "raft-heartbeat-ticks" not in "\n".join(configs["tikv0-config"]), "that is the servers' own"


def test_compose_sees_no_variable_in_a_config() -> None:
    config: Config = {"security.key-path": "$HOME/${x}"}
    text = compose_file.render(of(Member("pd0", Role.PD), Member("tikv0", Role.TIKV, config=config)))
    assert 'key-path = "$$HOME/$${x}"' in under(blocks(text, "configs")["tikv0-config"], "content")


@pytest.mark.parametrize(
    "flag",
    ["--labels=zone=a b", "--x=$HOME", "--x=${HOME}$", "--x=it's", '--x="y"', "--x=a\\b", "#", "--x=a: b", "*", "-"],
)
def test_a_flag_arrives_as_it_was_given(flag: str) -> None:
    member = Member("tikv0", Role.TIKV, flags=(flag, "--last"))
    asked = of(Member("pd0", Role.PD, config={"replication.max-replicas": 3}), member)
    inside = compose_file.in_containers(asked)
    found = words(blocks(compose_file.render(asked), "services")["tikv0"])
    assert tuple(found) == inside.flags_of(inside.member("tikv0"), Files("/data"))
    assert found[-2:] == [flag, "--last"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_that_yaml_may_read_as_something_else_is_quoted_wherever_it_stands(name: str) -> None:
    pd = Member(name, Role.PD, config={"lease": 9})
    text = compose_file.render(of(pd, Member("tikv0", Role.TIKV)))
    assert f'"{name}"' in blocks(text, "services")
    assert f'"{name}-data"' in blocks(text, "volumes")
    assert f'"{name}-config"' in blocks(text, "configs")
    assert f'depends_on: {{"{name}": {{condition: service_healthy}}}}' in blocks(text, "services")["tikv0"]
    assert under(blocks(text, "services")[f'"{name}"'], "configs")[0] == f'- source: "{name}-config"'


@pytest.mark.parametrize("name", ["yes", "a.b"])
def test_a_mount_of_such_a_name_is_quoted_as_a_whole(name: str) -> None:
    """After a quoted word YAML wants a space behind the colon."""
    text = compose_file.render(of(Member(name, Role.PD), Member("tikv0", Role.TIKV)))
    assert under(blocks(text, "services")[f'"{name}"'], "volumes") == [f'- "{name}-data:/data"']


@pytest.mark.parametrize("name", ["pd0", "tikv12", "kv-a1", "a_b2"])
def test_a_plain_name_stays_plain(name: str) -> None:
    text = compose_file.render(of(Member(name, Role.PD), Member("tikv0", Role.TIKV)))
    assert name in blocks(text, "services")
    assert under(blocks(text, "services")[name], "volumes") == [f"- {name}-data:/data"]


REFUSED = [
    (
        "a host",
        Member("pd0", Role.PD, host="10.0.0.1"),
        "pd0: host '10.0.0.1' cannot be had in containers",
        "leave the host out: a container is found by its name",
    ),
    (
        "a peer port",
        Member("pd0", Role.PD, ports={Purpose.PEER: 2380}),
        "pd0: a peer port is not published",
        "leave it out: PD members find each other inside the network",
    ),
]


@pytest.mark.parametrize(("member", "wrong", "mend"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_a_container_cannot_have_is_refused_with_its_mend(member: Member, wrong: str, mend: str) -> None:
    asked = of(member, Member("tikv0", Role.TIKV))
    for make in (compose_file.in_containers, compose_file.render):
        with pytest.raises(Misuse) as raised:
            make(asked)
        assert (raised.value.wrong, raised.value.mend) == (wrong, mend)
