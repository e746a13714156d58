"""Operations with --measure by the command line, on emulated members: what is told, and how it ends."""

from __future__ import annotations

import asyncio
import signal

from shell import PATIENCE_S, Shell

from drillyard.clients.tikv import RawClient
from drillyard.faces import exits

OURS = b"drillyard/probe/"


def keys_of_ours(pd_endpoints: list[str]) -> list[bytes]:
    async def run() -> list[bytes]:
        client = RawClient(pd_endpoints)
        try:
            found = await client.scan(b"", b"", 1000)
            assert found.is_ok, found
            return [key for key, _ in found.pairs if OURS in key]
        finally:
            client.close()

    return asyncio.run(run())


def test_an_outage_is_measured_told_and_cleaned_up_after(drillyard: Shell) -> None:
    up = drillyard("up", "--topology", str(drillyard.topology()), "--json")
    assert up.code == exits.OK, up
    leaders = []
    for member in ("tikv0", "tikv1", "tikv2"):
        ran = drillyard("kill", member, "--measure", "--json")
        assert ran.code == exits.OK, ran
        told = ran.document
        assert (told["member"]["state"], told["member"]["exit"]["signal"]) == ("stopped", "SIGKILL"), "it stays killed"
        outage = told["outage"]
        assert (outage["timestamps"], outage["regions_left_out"], outage["keys_left"]) == (None, 0, [])
        (region,) = outage["regions"]
        assert (region["is_served"], region["lost"]) == (True, 0)
        if region["outage_s"] is not None:
            assert region["first_good_at"] - region["last_good_at"] > 0
            leaders.append(member)
        drillyard("start", member)
        assert drillyard("verify", "--wait").code == exits.OK
    assert leaders, "one of three led the region when it was killed"
    ran = drillyard("restart", "pd0", "--measure")
    assert ran.code == exits.OK, ran
    assert "pd0 restarted at " in ran.out
    assert "timestamps: " in ran.out
    assert "; timestamps that went back: 0" in ran.out
    assert keys_of_ours(up.document["report"]["pd_endpoints"]) == []


def test_a_lost_quorum_is_told_by_its_exit_code_and_an_interruption_by_what_is_known(drillyard: Shell) -> None:
    assert drillyard("up", "--topology", str(drillyard.topology())).code == exits.OK
    drillyard("kill", "tikv0")
    assert drillyard("verify").code == exits.NOT_READY
    ran = drillyard("pause", "tikv1", "--measure", "--timeout", "3")
    assert ran.code == exits.NOT_READY, ran
    assert "error: not served again within 3 s: region " in ran.err
    assert "next: drillyard verify" in ran.err
    assert "not served again within " in ran.out
    assert "keys of ours that may be left" in ran.out

    refused = drillyard("kill", "tikv2", "--measure", "--timeout", "1", "--json").document
    assert refused["exit_code"] == exits.COULD_NOT_START
    assert "nothing was done to tikv2" in refused["error"]["text"]
    assert {row["name"]: row["state"] for row in drillyard("status", "--json").document["deployment"]["members"]}[
        "tikv2"
    ] == "running"

    drillyard("resume", "tikv1")
    drillyard("start", "tikv0")
    assert drillyard("verify", "--wait").code == exits.OK
    drillyard("stop", "tikv0")
    measuring = drillyard.begin("kill", "tikv1", "--measure", "--timeout", "100")
    assert measuring.stdout is not None
    while "not served: region " not in (line := measuring.stdout.readline()):
        assert line, "it ended before it was interrupted"
    measuring.send_signal(signal.SIGINT)
    _, err = measuring.communicate(timeout=PATIENCE_S)
    assert measuring.returncode == exits.INTERRUPTED
    assert "error: interrupted; tikv1 is killed, and " in err
    assert "last good write " in err
