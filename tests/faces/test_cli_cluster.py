"""The command line on a real cluster of emulated members: the whole life, and the ways it goes wrong."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import stat
import tarfile
import time
from pathlib import Path
from typing import Any

from shell import PATIENCE_S, Shell

from drillyard.clients.tikv import RawClient
from drillyard.faces import exits

GATES = ["processes", "pd-quorum", "timestamps", "stores-up", "replicated", "data-path"]


def get(address: str, path: str) -> Any:
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 200
    return json.loads(answer.read())


def pids(document: dict[str, Any]) -> dict[str, int]:
    return {member["name"]: member["pid"] for member in document["members"]}


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def evidence_of(error: dict[str, Any]) -> Path:
    bundle = Path(error["evidence"])
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o700
    return bundle


def test_a_reset_makes_a_used_cluster_as_new(drillyard: Shell) -> None:
    assert drillyard("up", "--topology", str(drillyard.topology(1, 1))).code == exits.OK
    address = drillyard("connect").out.strip()

    async def put() -> bool:
        client = RawClient([address])
        try:
            return (await client.put(b"k", b"v")).is_ok
        finally:
            client.close()

    assert asyncio.run(put())
    assert "say so with --delete-data" in drillyard("reset").err
    drillyard("stop", "tikv0")
    document = drillyard("reset", "--delete-data", "--json").document
    assert document["exit_code"] == exits.OK
    assert document["reset"] == {"started": ["tikv0"], "resumed": [], "is_data_deleted": True, "evidence": ""}
    assert document["report"]["is_ready"]
    last = drillyard("reset", "--delete-data").out.splitlines()[-1]
    assert last == "default is as new: there was no key; 6 of 6 gates are open, and a scan finds nothing"


def test_the_life_of_a_cluster(drillyard: Shell) -> None:
    topology = str(drillyard.topology())

    ran = drillyard("up", "--topology", topology, "--json")
    assert ran.code == exits.OK, ran
    report = ran.document["report"]
    assert [(gate["gate"], gate["status"]) for gate in report["gates"]] == [(gate, "holds") for gate in GATES]
    assert report["proven"].startswith("emulated PD ")
    assert ", emulated TiKV " in report["proven"]
    stores = get(report["pd_endpoints"][0], "/pd/api/v1/stores")["stores"]
    assert [store["store"]["state_name"] for store in stores] == ["Up"] * 3

    again = drillyard("up")
    assert again.code == exits.OK
    last = again.out.splitlines()[-1]
    assert last.startswith("default is ready after ")
    assert f"proven from outside on {report['proven']}; connect to {','.join(report['pd_endpoints'])}" in last
    assert "gate data-path is open" in again.out
    assert pids(drillyard("status", "--json").document["deployment"]) == pids(report), "nothing was started anew"

    assert drillyard("connect").out == ",".join(report["pd_endpoints"]) + "\n"
    assert drillyard("list", "--json").document["deployments"][0]["is_up"]
    lines = drillyard("logs", "tikv0", "--json").document["lines"]
    assert any("Welcome to TiKV" in line["text"] for line in lines)

    killed = drillyard("kill", "tikv1", "--json").document["member"]
    assert (killed["state"], killed["exit"]) == (
        "stopped",
        {"code": None, "signal": "SIGKILL", "asked": True, "oom": False},
    )
    ran = drillyard("verify")
    assert ran.code == exits.NOT_READY
    assert "processes   closed   tikv1 was ended by signal 9 (asked for)" in ran.out
    assert "gate processes is closed: tikv1 was ended by signal 9 (asked for)" in ran.err
    assert "last lines of tikv1" in ran.err
    assert "next: drillyard start tikv1" in ran.err
    assert drillyard("start", "tikv1", "--json").document["member"]["state"] == "running"
    healed = drillyard("verify", "--wait", "--json")
    assert healed.code == exits.OK, healed

    assert drillyard("pause", "pd1", "--json").document["member"]["state"] == "paused"
    error = drillyard("verify", "--json").document["error"]
    assert error["lacks"][0] == "pd1 is paused"
    assert error["next_command"] == "drillyard resume pd1"
    drillyard("resume", "pd1")
    assert drillyard("verify", "--wait").code == exits.OK

    running = pids(drillyard("status", "--json").document["deployment"])
    down = drillyard("down", "--delete-data", "--json")
    assert down.code == exits.OK
    told = down.document["down"]
    assert (told["is_clean"], told["left"], told["is_data_deleted"]) == (True, [], True)
    assert sorted(told["stopped"]) == sorted(running)
    assert not any(is_running(pid) for pid in running.values())
    assert drillyard("list", "--json").document["deployments"] == []


def test_an_end_that_nobody_asked_for(drillyard: Shell) -> None:
    """A wait that sees it ends at once; the evidence survives the removal of the data."""
    ran = drillyard("up", "--topology", str(drillyard.topology()), "--json")
    assert ran.code == exits.OK, ran
    running = pids(ran.document["report"])
    drillyard("pause", "tikv0")
    waiting = drillyard.begin("verify", "--wait", "--timeout", "100")
    assert waiting.stdout is not None
    assert waiting.stdout.readline(), "it waits, for it has told that a gate is open"
    os.kill(running["tikv2"], signal.SIGKILL)
    out, err = waiting.communicate(timeout=PATIENCE_S)
    assert waiting.returncode == exits.MEMBER_EXITED, (out, err)
    assert "tikv2 ended: SIGKILL, unexpected" in out
    assert "tikv2 was ended by signal 9" in err
    evidence = next(line for line in err.splitlines() if line.startswith("  evidence: "))
    bundle = Path(evidence.removeprefix("  evidence: "))
    assert json.loads((bundle / "report.json").read_text())["ending"] == "member-exited"
    assert "tikv2 ended: SIGKILL, unexpected" in (bundle / "timeline.txt").read_text()
    check_bundle(bundle, "pd0", "pd1", "pd2", "tikv0", "tikv1", "tikv2")
    down = drillyard("down", "--delete-data", "--json").document["down"]
    assert down["is_data_deleted"]
    assert bundle.is_dir()
    assert down["evidence"] == "", "the end has its bundle already"


def test_down_saves_what_nobody_saved(drillyard: Shell) -> None:
    ran = drillyard("up", "--topology", str(drillyard.topology(1, 1)), "--json")
    assert ran.code == exits.OK, ran
    os.kill(pids(ran.document["report"])["tikv0"], signal.SIGKILL)
    deadline = time.monotonic() + 60
    while drillyard("status", "--json").document["deployment"]["members"][1]["state"] != "exited":
        assert time.monotonic() < deadline
    down = drillyard("down", "--delete-data", "--json").document["down"]
    bundle = Path(down["evidence"])
    members = json.loads((bundle / "members.json").read_text())
    assert [one["exit"]["signal_name"] for one in members if one["exit"]] == ["SIGKILL"]
    assert "Welcome to TiKV" in (bundle / "logs" / "tikv0.log").read_text()


def test_ctrl_c_saves_evidence_and_says_what_runs(drillyard: Shell) -> None:
    assert drillyard("up", "--topology", str(drillyard.topology(1, 1))).code == exits.OK
    drillyard("pause", "tikv0")
    for number, code in ((signal.SIGINT, exits.INTERRUPTED), (signal.SIGTERM, exits.TERMINATED)):
        waiting = drillyard.begin("verify", "--wait", "--timeout", "100")
        assert waiting.stdout is not None
        assert waiting.stderr is not None
        assert waiting.stdout.readline(), "it waits, for it has told that a gate is open"
        waiting.send_signal(number)
        assert waiting.wait(PATIENCE_S) == code
        told = waiting.stderr.read()
        waiting.stdout.close()
        waiting.stderr.close()
        assert "Traceback" not in told
        assert "error: default: interrupted; the members go on as they are" in told
        assert "state: 1 of 2 members run (tikv0 paused)" in told
        evidence = next(line for line in told.splitlines() if line.startswith("  evidence: "))
        check_bundle(Path(evidence.removeprefix("  evidence: ")), "pd0", "tikv0")
    drillyard("resume", "tikv0")
    assert drillyard("verify", "--wait").code == exits.OK


def test_a_member_that_cannot_start_ends_up_at_once(drillyard: Shell, tmp_path: Path) -> None:
    broken = tmp_path / "tikv-server"
    broken.write_text("#!/bin/sh\necho 'the disk is on fire' >&2\nexit 3\n")
    broken.chmod(0o755)
    topology = str(drillyard.topology())
    ran = drillyard("up", "--topology", topology, "--tikv-binary", str(broken), "--timeout", "100")
    assert ran.code == exits.MEMBER_EXITED, ran
    assert "(exit code 3, unexpected): gate processes is closed: tikv0 exited with code 3" in ran.err
    assert "    | the disk is on fire" in ran.err
    assert "next: drillyard logs tikv0" in ran.err


def test_a_wait_that_is_too_short_says_what_was_missing(drillyard: Shell) -> None:
    assert drillyard("up", "--topology", str(drillyard.topology(1, 1))).code == exits.OK
    drillyard("stop", "tikv0")
    ran = drillyard("verify", "--wait", "--timeout", "0.5", "--json")
    assert ran.code == exits.NOT_READY
    error = ran.document["error"]
    assert error["kind"] == "not-ready"
    assert error["gate"] == "processes"
    assert error["lacks"] == ["tikv0 exited with code 0 (asked for)"]
    assert error["next_command"] == "drillyard start tikv0"
    evidence_of(error)


def test_prove_is_the_whole_procedure_in_one_exit_code(drillyard: Shell) -> None:
    ran = drillyard("prove", "--topology", str(drillyard.topology()), "--json")
    assert ran.code == exits.OK, ran
    document = ran.document
    assert all(check["holds"] for check in document["checks"])
    names = [check["check"] for check in document["checks"]]
    assert "PD health 200, 3 of 3 healthy in the body" in names
    assert "3 stores Up" in names
    assert names[-1] == "taken down, nothing left"
    assert document["down"]["is_clean"]
    assert document["report"]["timeline"][-1]["text"] == "down, nothing left"
    assert not any(is_running(pid) for pid in pids(document["report"]).values())
    assert list((drillyard.home / "deployments").iterdir()) == []


def test_a_proof_that_fails_still_cleans_up_and_keeps_its_evidence(drillyard: Shell, tmp_path: Path) -> None:
    broken = tmp_path / "tikv-server"
    broken.write_text("#!/bin/sh\nexit 7\n")
    broken.chmod(0o755)
    ran = drillyard("prove", "--topology", str(drillyard.topology()), "--tikv-binary", str(broken), "--json")
    assert ran.code == exits.MEMBER_EXITED, ran
    document = ran.document
    assert document["error"]["culprit"] == "tikv0"
    assert document["down"]["is_clean"]
    assert document["down"]["is_data_deleted"]
    assert evidence_of(document["error"]).is_dir()
    assert [check["holds"] for check in document["checks"]][-1] is True
    assert drillyard("list", "--json").document["deployments"] == []


def test_prove_starts_from_nothing(drillyard: Shell) -> None:
    assert drillyard("up", "--topology", str(drillyard.topology(1, 1))).code == exits.OK
    ran = drillyard("prove", "--name", "default", "--json")
    assert ran.code == exits.BAD_INPUT
    assert "exists, and a proof starts from nothing" in ran.document["error"]["text"]
    assert drillyard("verify").code == exits.OK, "it was left alone"


def test_a_taken_port_is_named_with_its_owner(drillyard: Shell) -> None:
    topology = str(drillyard.topology(1, 1))
    assert drillyard("up", "--topology", topology).code == exits.OK
    ran = drillyard("up", "--topology", topology, "--name", "second", "--json")
    assert ran.code == exits.COULD_NOT_START
    assert "is taken by" in ran.document["error"]["text"]


def test_a_deployment_that_is_down_is_not_ready_and_comes_back_the_same(drillyard: Shell) -> None:
    first = drillyard("up", "--topology", str(drillyard.topology(1, 1)), "--json").document["report"]
    assert drillyard("down").code == exits.OK
    error = drillyard("verify", "--json").document["error"]
    assert error["gate"] == "processes"
    assert error["next_command"] == "drillyard up"
    assert len(error["lacks"]) == 2, "programs are told everything"
    told = drillyard("verify")
    assert told.out == ""
    assert told.err.splitlines() == ["error: default is down: none of its members runs", "  next: drillyard up"]
    again = drillyard("up", "--json").document["report"]
    assert (again["cluster_id"], again["pd_endpoints"]) == (first["cluster_id"], first["pd_endpoints"])


def test_an_operation_that_the_state_refuses_names_the_command_that_changes_it(drillyard: Shell) -> None:
    assert drillyard("up", "--topology", str(drillyard.topology(1, 2)), "--name", "n").code == exits.OK

    def mend(*words: str) -> str:
        ran = drillyard(*words, "--name", "n", "--json")
        assert ran.code == exits.BAD_INPUT
        return str(ran.document["error"]["mend"])

    drillyard("stop", "tikv1", "--name", "n")
    assert mend("stop", "tikv1") == "`drillyard start tikv1 --name n`"
    assert mend("pause", "tikv1") == "`drillyard start tikv1 --name n`"
    drillyard("pause", "tikv0", "--name", "n")
    assert mend("pause", "tikv0") == "`drillyard resume tikv0 --name n`"
    assert mend("start", "tikv0") == "`drillyard resume tikv0 --name n`"
    assert mend("start", "pd0") == "see `drillyard status`"
    drillyard("down", "--name", "n")
    assert mend("stop", "tikv1") == "`drillyard up --name n`"


def test_a_lost_keeper_ends_the_wait_with_evidence(drillyard: Shell) -> None:
    assert drillyard("up", "--topology", str(drillyard.topology(1, 1))).code == exits.OK
    drillyard("pause", "tikv0")
    waiting = drillyard.begin("verify", "--wait", "--timeout", "100")
    assert waiting.stdout is not None
    assert waiting.stdout.readline()
    journal = (drillyard.home / "deployments" / "default" / "journal.jsonl").read_text().splitlines()
    keeper = next(record for record in map(json.loads, journal) if record["what"] == "keeper-started")["keeper"]
    os.kill(keeper, signal.SIGKILL)
    _, err = waiting.communicate(timeout=PATIENCE_S)
    assert waiting.returncode == exits.MEMBER_EXITED, err
    assert "keeper lost" in err
    evidence = next(line for line in err.splitlines() if line.startswith("  evidence: "))
    assert (Path(evidence.removeprefix("  evidence: ")) / "deployment" / "journal.jsonl").exists()
    assert drillyard("up").code == exits.OK, "it comes back on the same data"


def test_an_interrupted_proof_leaves_nothing_but_evidence(drillyard: Shell, tmp_path: Path) -> None:
    silent = tmp_path / "tikv-server"
    silent.write_text("#!/bin/sh\nexec sleep 1000\n")
    silent.chmod(0o755)
    topology = str(drillyard.topology(1, 1))
    proving = drillyard.begin("prove", "--name", "p", "--topology", topology, "--tikv-binary", str(silent))
    assert proving.stdout is not None
    while "gate timestamps is open" not in (line := proving.stdout.readline()):
        assert line, "it ended before it was interrupted"
    running = pids(drillyard("status", "--name", "p", "--json").document["deployment"])
    proving.send_signal(signal.SIGINT)
    _, err = proving.communicate(timeout=PATIENCE_S)
    assert proving.returncode == exits.INTERRUPTED
    evidence = next(line for line in err.splitlines() if line.startswith("  evidence: "))
    assert Path(evidence.removeprefix("  evidence: ")).is_dir()
    assert not any(is_running(pid) for pid in running.values())
    assert [path.name for path in (drillyard.home / "deployments" / "p").iterdir()] == ["evidence"]


def test_a_damaged_plan_is_listed_refused_and_removed(drillyard: Shell) -> None:
    assert drillyard("up", "--topology", str(drillyard.topology(1, 1))).code == exits.OK
    assert drillyard("down").code == exits.OK
    (drillyard.home / "deployments" / "default" / "plan.json").write_text("{")
    assert drillyard("list", "--json").document["unreadable"] == ["default"]
    ran = drillyard("verify", "--json")
    assert ran.code == exits.BAD_INPUT
    assert "plan.json is damaged" in ran.document["error"]["text"]
    assert drillyard("down", "--delete-data").code == exits.OK
    assert drillyard("list", "--json").document["unreadable"] == []


def test_diagnose_says_what_is_wrong_and_where_the_page_is(drillyard: Shell) -> None:
    """In the words of `verify`, whether nothing is wrong, a member is, or all is down."""
    assert drillyard("up", "--topology", str(drillyard.topology(1, 1))).code == exits.OK
    ran = drillyard("diagnose")
    assert ran.code == exits.OK, ran
    assert "default is ready: 6 of 6 gates are open" in ran.out
    check_bundle(page_of(ran.out).parent, "pd0", "tikv0")
    drillyard("kill", "tikv0")
    ran = drillyard("diagnose")
    assert ran.code == exits.NOT_READY, ran
    page = page_of(ran.out)
    error = "default is not ready: gate processes is closed: tikv0 was ended by signal 9 (asked for)"
    assert f"error: {error}" in ran.err
    assert f"  evidence: {page.parent}" in ran.err
    assert error in page.read_text()
    told = drillyard("diagnose", "--json").document
    assert told["error"]["text"] == drillyard("verify", "--json").document["error"]["text"] == error
    assert told["evidence"] == told["error"]["evidence"] == str(evidence_of(told["error"]))
    assert drillyard("down").code == exits.OK
    ran = drillyard("diagnose")
    assert ran.code == exits.NOT_READY
    assert "is down: none of its members runs" in ran.err
    assert "is down: none of its members runs" in page_of(ran.out).read_text()


def test_a_diagnosis_that_cannot_be_kept_is_told_all_the_same(drillyard: Shell) -> None:
    assert drillyard("up", "--topology", str(drillyard.topology(1, 1))).code == exits.OK
    evidence = drillyard.home / "deployments" / "default" / "evidence"
    evidence.rmdir()
    evidence.write_text("no directory")
    ran = drillyard("diagnose", "--json")
    assert ran.code == exits.COULD_NOT_START, ran
    assert ran.document["report"]["is_ready"]
    assert "evidence could not be saved" in ran.document["error"]["text"]
    assert "error: evidence could not be saved" in drillyard("diagnose").err
    evidence.unlink()


def page_of(out: str) -> Path:
    page = Path(next(line for line in out.splitlines() if line.startswith("page: ")).removeprefix("page: "))
    assert page.is_file()
    return page


def check_bundle(bundle: Path, *members: str) -> None:
    """It is whole: records, logs, a page for the whole and for each member, and all of that in the archive."""
    expected = {"index.html", "bundle.json", "members.json", "timeline.txt", "deployment/plan.json"}
    expected |= {f"members/{member}.html" for member in members} | {f"logs/{member}.log" for member in members}
    with tarfile.open(bundle.with_name(f"{bundle.name}.tar.gz")) as archive:
        packed = {name.removeprefix(f"{bundle.name}/") for name in archive.getnames()}
    assert expected <= packed
    assert {str(path.relative_to(bundle)) for path in bundle.rglob("*")} == packed - {bundle.name}
    assert {Path(page).name for page in members} <= {
        one["name"] for one in json.loads((bundle / "members.json").read_text())
    }


def test_an_end_that_nobody_was_left_to_see_is_saved_by_the_next_command(drillyard: Shell) -> None:
    """SIGKILL to a command of ours that waits, after a member ended: the next `up` saves the evidence before it starts
    anything, and the one after that has nothing to add."""
    topology = str(drillyard.topology(1, 1))
    ran = drillyard("up", "--topology", topology, "--json")
    assert ran.code == exits.OK, ran
    running = pids(ran.document["report"])
    drillyard("pause", "tikv0")
    waiting = drillyard.begin("verify", "--wait", "--timeout", "100")
    assert waiting.stdout is not None
    assert waiting.stdout.readline(), "it waits, for it has told that a gate is open"
    waiting.kill()
    waiting.communicate(timeout=PATIENCE_S)
    for pid in running.values():
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(one["state"] != "exited" for one in drillyard("status", "--json").document["deployment"]["members"]):
        assert time.monotonic() < deadline
    parent = drillyard.home / "deployments" / "default" / "evidence"
    assert list(parent.iterdir()) == []
    assert drillyard("up", "--topology", topology).code == exits.OK
    bundle = next(path for path in parent.iterdir() if path.is_dir())
    assert bundle.name.endswith("-unasked-end")
    check_bundle(bundle, "pd0", "tikv0")
    page = (bundle / "index.html").read_text()
    assert "pd0 ended: SIGKILL, unexpected" in page
    assert "tikv0 was ended by somebody outside of drillyard" in page
    assert drillyard("down", "--json").document["down"]["evidence"] == ""
