"""Records as one JSON document per command, by the schema in docs/drillyard.schema.json.

Rules: every command's document is the same envelope, with the parts that the command has; a part that it has not is
absent. Names are those of the records. A cluster id is text, because it has more digits than a JSON number keeps in
many readers. Times are seconds since the epoch.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from drillyard.flows.inspect import Connection, LogLine, Standing
from drillyard.flows.report import (
    Diagnosis,
    DownReport,
    Entry,
    GateRow,
    MemberRow,
    ProofReport,
    Report,
    ResetReport,
    Trouble,
)
from drillyard.judge.survivability import Margin, Quorums, Survivability
from drillyard.observation import PdChange

if TYPE_CHECKING:
    from drillyard.flows.conformance.table import ConformanceReport
    from drillyard.flows.measure import OutageReport
    from drillyard.flows.simulate import SimulationReport
    from drillyard.judge.outage import Outage

FORMAT = 1


def envelope(command: str, exit_code: int, **parts: Any) -> dict[str, Any]:
    return {"format": FORMAT, "command": command, "ok": exit_code == 0, "exit_code": exit_code, **parts}


def of_report(report: Report) -> dict[str, Any]:
    return {
        "deployment": report.deployment,
        "runtime": report.runtime,
        "ending": report.ending.value,
        "is_ready": report.is_ready,
        "proven": report.proven,
        "elapsed_s": round(report.elapsed_s, 3),
        "cluster_id": str(report.cluster_id) if report.cluster_id else "",
        "pd_leader": report.pd_leader,
        "pd_endpoints": list(report.pd_endpoints),
        "gates": [of_gate(row) for row in report.gates],
        "members": [of_member(row) for row in report.members],
        "timeline": [of_entry(entry) for entry in report.timeline],
        "survivability": of_survivability(report.survivability),
    }


def of_survivability(seen: Survivability | None) -> dict[str, Any] | None:
    if seen is None:
        return None
    return {
        "text": list(seen.text),
        "pd": of_margin(seen.pd),
        "tikv": of_margin(seen.tikv),
        "regions": seen.regions,
        "is_complete": seen.is_complete,
    }


def of_margin(margin: Margin) -> dict[str, Any]:
    return {
        "may_fail": margin.may_fail,
        "critical": [{"member": loss.member, "breaks": of_quorums(loss.breaks)} for loss in margin.critical],
        "lost": of_quorums(margin.lost),
        "short": of_quorums(margin.short),
        "unknown": list(margin.unknown),
    }


def of_quorums(quorums: Quorums) -> dict[str, Any]:
    return {"count": quorums.count, "regions": list(quorums.regions), "because": quorums.because}


def of_diagnosis(diagnosis: Diagnosis) -> dict[str, Any]:
    return {"report": of_report(diagnosis.report), "evidence": diagnosis.evidence}


def of_gate(row: GateRow) -> dict[str, Any]:
    return {
        "gate": row.gate,
        "status": row.status,
        "lacks": list(row.lacks),
        "members": list(row.members),
        "found": row.found,
        "open_after_s": None if row.open_after_s is None else round(row.open_after_s, 3),
    }


def of_member(row: MemberRow) -> dict[str, Any]:
    end = {
        "code": row.exit_code,
        "signal": row.exit_signal or None,
        "asked": row.exit_asked,
        "oom": row.exit_oom,
    }
    return {
        "name": row.name,
        "role": row.role,
        "kind": row.kind,
        "version": row.version,
        "state": row.state,
        "pid": row.pid,
        "exit": None if row.exit_asked is None else end,
        "addresses": dict(row.addresses),
        "log_path": str(row.log_path or ""),
        "container": row.container,
        "restarts": row.restarts,
    }


def of_network(connection: Connection) -> dict[str, Any] | None:
    """The container network, or None when the members listen on this machine itself."""
    network = connection.standing.network
    if network is None:
        return None
    return {
        "name": network.name,
        "hosts": dict(network.hosts),
        "published": dict(network.published),
        "is_reachable": connection.is_reachable,
    }


def of_entry(entry: Entry) -> dict[str, Any]:
    return {"at": round(entry.at, 3), "text": entry.text, "member": entry.member, "gate": entry.gate}


def of_trouble(trouble: Trouble) -> dict[str, Any]:
    return {
        "kind": trouble.ending.value,
        "text": trouble.text,
        "gate": trouble.gate,
        "lacks": list(trouble.lacks),
        "last_reading": trouble.last_reading,
        "culprit": trouble.culprit,
        "log_path": trouble.log_path,
        "log_lines": list(trouble.log_lines),
        "evidence": trouble.evidence,
        "next_command": trouble.next_command,
        "state": trouble.state,
        "cause": None if trouble.cause is None else dataclasses.asdict(trouble.cause),
    }


def of_error(kind: str, text: str, mend: str = "") -> dict[str, Any]:
    return {"kind": kind, "text": text, "mend": mend}


def of_down(report: DownReport) -> dict[str, Any]:
    return {
        "deployment": report.deployment,
        "is_clean": report.is_clean,
        "stopped": list(report.stopped),
        "killed": list(report.killed),
        "checked_pids": report.checked_pids,
        "checked_ports": report.checked_ports,
        "checked_containers": report.checked_containers,
        "left": list(report.left),
        "is_data_deleted": report.is_data_deleted,
        "kept": list(report.kept),
        "evidence": report.evidence,
    }


def of_reset(reset: ResetReport) -> dict[str, Any]:
    return {
        "report": of_report(reset.report),
        "reset": {
            "started": list(reset.started),
            "resumed": list(reset.resumed),
            "is_data_deleted": reset.is_data_deleted,
            "evidence": reset.evidence,
        },
    }


def of_proof(proof: ProofReport) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "report": of_report(proof.report),
        "checks": [{"check": check, "holds": holds} for check, holds in proof.checks],
    }
    if proof.down is not None:
        parts["down"] = of_down(proof.down)
    return parts


def of_conformance(report: ConformanceReport) -> dict[str, Any]:
    return {
        "at": round(report.at, 3),
        "emulated": report.emulated,
        "elapsed_s": round(report.elapsed_s, 3),
        "has_passed": report.has_passed,
        "is_complete": report.is_complete,
        "rows": [
            {
                "program": row.program,
                "version": row.version,
                "area": row.area,
                "result": row.result.value,
                "checks": [{"check": one.name, "passed": one.is_passed, "why": one.why} for one in row.checks],
                "not_run": row.not_run,
                "mend": row.mend,
            }
            for row in report.rows
        ],
    }


def of_standing(standing: Standing) -> dict[str, Any]:
    return {
        "deployment": standing.name,
        "runtime": standing.runtime,
        "is_up": standing.is_up,
        "directory": str(standing.directory),
        "pd_endpoints": list(standing.pd_endpoints),
        "members": [of_member(row) for row in standing.members],
        "survivability": of_survivability(standing.survivability),
    }


def of_outages(report: OutageReport) -> dict[str, Any]:
    return {
        "operation": report.order.operation.value,
        "asked_at": round(report.strike.asked_at, 6),
        "done_at": round(report.strike.done_at, 6),
        "watched_s": round(report.watched_s, 6),
        "interval_s": report.pace_s,
        "regions": [of_outage(one) for one in report.regions],
        "regions_left_out": report.left_out,
        "timestamps": None if report.timestamps is None else of_outage(report.timestamps),
        "pd": [of_change(change) for change in report.changes],
        "keys_left": [key.hex().upper() for key in report.keys_left],
    }


def of_outage(one: Outage) -> dict[str, Any]:
    gap, moved = one.gap, one.moved
    return {
        "region_id": one.region_id or None,
        "is_served": one.is_served,
        "outage_s": None if gap is None else round(gap.length_s, 6),
        "last_good_at": None if gap is None else round(gap.begins, 6),
        "first_good_at": None if gap is None or gap.ends is None else round(gap.ends, 6),
        "interruptions": len(one.further) + (gap is not None),
        "longest_gap_s": round(one.longest_s, 6),
        "pd_noticed": None if one.noticed is None else of_change(one.noticed),
        "leader_moved": None
        if moved is None
        else {"at": round(moved.at, 6), "before": moved.before, "after": moved.after},
        "lost": one.lost,
    }


def of_change(change: PdChange) -> dict[str, Any]:
    return {
        "at": round(change.at, 6),
        "what": change.word.value,
        "subject": change.subject,
        "before": change.before,
        "after": change.after,
    }


def of_simulation(report: SimulationReport) -> dict[str, Any]:
    one = report.only
    return {
        "version": report.version,
        "seeds": report.seeds,
        "first_seed": report.order.first,
        "undecided": report.undecided,
        "elapsed_s": round(report.elapsed_s, 3),
        "virtual_s": round(report.virtual_s, 3),
        "times_real_time": round(report.times_real_time, 1),
        "totals": dict(report.totals),
        "trace": None if one is None else one.trace,
        "tale": [] if one is None else [{"at_s": at, "text": text} for at, text in one.tale],
        "failures": [
            {
                "seed": failure.seed,
                "invariant": failure.invariant,
                "text": failure.text,
                "trace": failure.trace,
                "replay": failure.replay,
            }
            for failure in report.failures
        ],
    }


def of_line(line: LogLine) -> dict[str, Any]:
    return {"member": line.member, "text": line.text}
