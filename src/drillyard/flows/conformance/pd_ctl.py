"""What pd-ctl is made to do: every one of its sub-commands that asks or changes a running cluster.

A command succeeds by what it prints, because its exit code is 0 whatever happened: JSON where it shows something, a
word of success where it changes something. All of them pass on a real PD 8.1, which a row of the table shows. `{…}`
stands for what the cluster has: a region, its stores, the PD members.

Data and judgement only; `suite` runs it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

JSON = ""  # what it prints is JSON, and no error


@dataclass(frozen=True, slots=True)
class Command:
    """Its words, and what it prints when it has done what it was told: an expression, or JSON."""

    words: str
    prints: str = JSON

    def failure(self, printed: str) -> str:
        """Why it failed, empty if it has not."""
        said = printed.strip()
        if self.prints:
            return "" if re.search(self.prints, said) else said or "it printed nothing"
        try:
            value = json.loads(said)
        except ValueError:
            return said or "it printed nothing"
        return str(value) if isinstance(value, str) and value.startswith("[PD:") else ""


DONE = "[Ss]uccess"
AREAS: Mapping[str, tuple[Command, ...]] = {
    "health, members and the cluster": (
        Command("health"),
        Command("ping", r"time: "),
        Command("cluster"),
        Command("cluster status"),
        Command("member"),
        Command("member leader show"),
        Command("member leader_priority pd1 3", DONE),
        Command("member leader_priority pd1 0", DONE),
        Command("tso 395181938313123110", r"system: +20"),
        Command("log info", DONE),
    ),
    "configuration": (
        Command("config show"),
        Command("config show all"),
        Command("config show schedule"),
        Command("config show replication"),
        Command("config show server"),
        Command("config show label-property"),
        Command("config show cluster-version"),
        Command("config show replication-mode"),
        Command("config set max-store-down-time 45m", DONE),
        Command("config set leader-schedule-limit 8", DONE),
        Command("config set region-schedule-limit 1024", DONE),
        Command("config set low-space-ratio 0.85", DONE),
        Command("config set location-labels zone,host", DONE),
        Command('config set location-labels ""', DONE),
        Command("config set cluster-version 8.1.0", DONE),
        Command("config placement-rules show"),
        Command("config placement-rules show --group=pd"),
        Command("config placement-rules rule-group show"),
        Command("config placement-rules rule-bundle get pd"),
    ),
    "stores": (
        Command("store"),
        Command("store {store}"),
        Command("store check up"),
        Command("store label {store} zone z1", DONE),
        Command("store label {store} zone --delete", DONE),
        Command("store weight {store} 2 3", DONE),
        Command("store weight {store} 1 1", DONE),
        Command("store limit"),
        Command("store limit {store} 20 add-peer", DONE),
        Command("store limit all 15", DONE),
        Command("label"),
        Command("label store zone z1"),
    ),
    "regions": (
        Command("region"),
        Command("region {region}"),
        Command("region key --format=raw a"),
        Command("region key --format=hex 61"),
        Command("region keys --format=raw a"),
        Command("region scan"),
        Command("region sibling {region}"),
        Command("region store {store}"),
        *(
            Command(f"region check {kind}")
            for kind in (
                "miss-peer",
                "extra-peer",
                "down-peer",
                "learner-peer",
                "pending-peer",
                "offline-peer",
                "empty-region",
                "oversized-region",
                "undersized-region",
                "hist-size",
                "hist-keys",
            )
        ),
        *(
            Command(f"region top{measure} 3")
            for measure in ("read", "write", "confver", "version", "size", "keys", "cpu")
        ),
        Command("region range-holes"),
    ),
    "hot regions and safe points": (
        Command("hot read"),
        Command("hot write"),
        Command("hot store"),
        Command("hot history 0 1"),
        Command("service-gc-safepoint"),
        Command("min-resolved-ts"),
    ),
    "schedulers": (
        Command("scheduler show"),
        Command("scheduler add evict-leader-scheduler {spare}", DONE),
        Command("scheduler config evict-leader-scheduler"),
        Command("scheduler remove evict-leader-scheduler-{spare}", DONE),
        Command("scheduler pause balance-region-scheduler 60", DONE),
        Command("scheduler show --status paused"),
        Command("scheduler resume balance-region-scheduler", DONE),
        Command("scheduler config balance-hot-region-scheduler"),
        Command("scheduler config balance-leader-scheduler"),
        Command("scheduler describe balance-region-scheduler"),
        Command("scheduler remove balance-leader-scheduler", DONE),
        Command("scheduler add balance-leader-scheduler", DONE),
        Command("scheduler remove balance-leader-scheduler", DONE),
        Command("scheduler remove balance-region-scheduler", DONE),
    ),
    "operators": (
        Command("operator show"),
        Command("operator add transfer-leader {region} {other}", DONE),
        Command("operator check {region}", r"status: \w+\b"),
        Command("operator add add-peer {region} {spare}", DONE),
        Command("operator remove {region}", f"{DONE}|operator not found"),
        Command("operator add scatter-region {region}", DONE),
        Command("operator show leader"),
        Command("operator show region"),
        Command("operator history 1", r"currentStep"),
    ),
    "unsafe operations": (
        Command("unsafe remove-failed-stores show"),
        Command("unsafe remove-failed-stores {store}", r"is up and connected"),
    ),
    "a store leaves and comes back, members change": (
        Command("store delete {spare}", DONE),
        Command("store cancel-delete {spare}", DONE),
        Command("store remove-tombstone", DONE),
        Command("member leader transfer {follower}", DONE),
        Command("member leader resign", DONE),
        Command("member delete name nobody", "nobody"),
    ),
}


def failure_of(command: Command, code: int | None, out: str, errors: str) -> str:
    """Why a run of it failed, empty if it has not."""
    if code is None:
        return "no end in time"
    return command.failure(out) if code == 0 else f"exit code {code}: {errors or out}"
