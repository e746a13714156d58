"""Records as text: plain lines for pipes and logs, a live table on a terminal.

Rules: results go to stdout, errors to stderr. The words about the cluster are those of the records. Rich is imported
only when a live table is drawn, because it costs an eighth of a second.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from drillyard.flows.inspect import Connection, Standing
from drillyard.flows.report import (
    Diagnosis,
    DownReport,
    Entry,
    GateRow,
    MemberRow,
    Picture,
    ProofReport,
    Report,
    ResetReport,
    Trouble,
    gate_rows,
    member_rows,
    name_option,
)
from drillyard.judge.readiness import NOT_ASKED
from drillyard.judge.survivability import Survivability

if TYPE_CHECKING:
    from rich.live import Live

NO_EVIDENCE_MEND = "see that the directory of DRILLYARD_HOME can be written and has space"
MARKS = {"holds": "open", "violated": "closed", "unknown": "unknown"}
NARROWEST_LACK = 20
PROGRESS_EVERY_S = 10.0
MEMBER_COLUMNS, GATE_COLUMNS = 30, 26  # what the fixed columns and the gaps take of a line


class Lines:
    """A listener that writes the time line as it grows, one plain line an entry."""

    def __init__(self, began: float) -> None:
        self._began = began
        self.trouble: Trouble | None = None

    def see(self, picture: Picture) -> None:
        pass

    def hear(self, entry: Entry) -> None:
        say(f"{max(0.0, entry.at - self._began):7.3f} s  {entry.text}")

    def cut_short(self, trouble: Trouble) -> None:
        self.trouble = trouble

    def stop(self) -> None:
        pass

    @property
    def has_drawn(self) -> bool:
        """Whether the members and gates are on the screen already."""
        return False


class Quiet(Lines):
    """A listener that says nothing until the end."""

    def hear(self, entry: Entry) -> None:
        pass


class Table(Lines):
    """A listener that keeps a live table: a row per member, a line per gate with what it waits for."""

    def __init__(self, began: float) -> None:
        super().__init__(began)
        self._live: Live | None = None
        self._drawn: object = None

    def hear(self, entry: Entry) -> None:
        pass

    def see(self, picture: Picture) -> None:
        if self._live is None:
            from rich.live import Live

            self._live = Live(auto_refresh=False, transient=False)
            self._live.start()
        # Drawing takes longer than looking: only what differs is drawn, and the time four times a second.
        seen = picture.readiness, member_rows(picture.deployment, picture.observation), int(picture.elapsed_s * 4)
        if seen != self._drawn:
            self._drawn = seen
            self._live.update(_drawing(picture), refresh=True)

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def has_drawn(self) -> bool:
        return self._live is not None


def _drawing(picture: Picture) -> Any:
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    colours = {"holds": "green", "violated": "red", "unknown": "yellow", "running": "green", "exited": "red"}
    width = shutil.get_terminal_size().columns
    lacking = {name: verdict for verdict in reversed(picture.readiness.verdicts) for name in verdict.members}
    members = RichTable(box=None, padding=(0, 2, 0, 0))
    for column in ("member", "runs", "state", "pid", "at", "lacks"):
        members.add_column(column, no_wrap=True)
    for row in member_rows(picture.deployment, picture.observation):
        verdict = lacking.get(row.name)
        about = next((lack.text for lack in verdict.lacks if row.name in lack.members), "") if verdict else ""
        state = Text(row.exit_text or row.state, style=colours.get(row.state, "yellow"))
        taken = len(_runs(row)) + len(state) + len(row.addresses["client"]) + MEMBER_COLUMNS
        cells = (row.name, _runs(row), state, str(row.pid or ""), row.addresses["client"])
        members.add_row(*cells, Text(cut(about, width - taken)))
    gates = RichTable(box=None, padding=(0, 2, 0, 0), show_header=False)
    for _ in range(3):
        gates.add_column(no_wrap=True)
    for gate in gate_rows(picture.readiness, {}):
        mark = Text(MARKS[gate.status], style=colours[gate.status])
        gates.add_row(gate.gate, mark, Text(cut(_waits_for(gate), width - GATE_COLUMNS)))
    return Group(members, Text(""), gates, Text(f"{picture.elapsed_s:.1f} s", style="dim"))


class Progress:
    """Says now and then how far a long run has come, on stderr: what is said last is the result's business."""

    def __init__(self, is_quiet: bool) -> None:
        self._is_quiet = is_quiet
        self._next = time.monotonic() + PROGRESS_EVERY_S

    def see(self, text: str) -> None:
        if not self._is_quiet and time.monotonic() >= self._next:
            self._next = time.monotonic() + PROGRESS_EVERY_S
            complain(text)


def as_called(text: str) -> str:
    """The text with its commands as this person types them: a checkout's `./yard` says by what name it was called."""
    return re.sub(r"(^|`)drillyard (?=[a-z])", lambda found: f"{found[1]}{program()} ", text)


def program() -> str:
    return os.environ.get("DRILLYARD_CALLED_AS") or "drillyard"


def say(text: str = "") -> bool:
    """A line of result, on stdout, now. False when nobody reads any more: the work goes on, in silence."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def is_read() -> bool:
    """Whether somebody may still read stdout: False once it is a pipe without a reader."""
    if sys.stdout is None:  # it was closed from the start, and nobody leaves
        return True
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # a broken pipe is told without being asked for
    return not any(told & (select.POLLERR | select.POLLHUP) for _, told in poll.poll(0))


def complain(text: str) -> None:
    """A line of error, on stderr."""
    print(text, file=sys.stderr, flush=True)


def show_ready(report: Report) -> None:
    """The line that says what is proven and where to connect."""
    where = ",".join(report.pd_endpoints)
    count = len(report.gates)
    was_waited = any(gate.open_after_s is not None for gate in report.gates)
    after = f" after {report.elapsed_s:.2f} s" if was_waited else ""
    gates = f"{count} of {count} gates are open"
    if report.network is not None:
        where += (
            f" in the network {report.network.name} (`{program()} connect{name_option(report.deployment)}` tells how)"
        )
    say(f"{report.deployment} is ready{after}: {gates}, proven from outside on {report.proven}; connect to {where}")


def show_report(report: Report) -> None:
    """Gates, what may still fail, and members as plain lines."""
    for gate in report.gates:
        say(f"{gate.gate:<11} {MARKS[gate.status]:<8} {_waits_for(gate)}".rstrip())
    show_survivability(report.survivability)
    show_members(report.members)


def show_survivability(seen: Survivability | None) -> None:
    """What may still fail, when that was asked."""
    for sentence in seen.text if seen is not None else ():
        say(f"{'survival':<11} {as_called(sentence)}")


def show_connection(connection: Connection, *, only_hosts: bool) -> None:
    """The endpoints alone on the first line; for a container network what works from here behind that."""
    network = connection.standing.network
    hosts = [f"{address} {name}" for name, address in network.hosts.items()] if network else []
    if only_hosts:
        for line in hosts:
            say(line)
        return
    say(",".join(connection.standing.pd_endpoints))
    if network is None:
        return
    say(f"# in the network {network.name}, as in: docker run --rm -it --network {network.name} IMAGE")
    if hosts and connection.is_reachable:
        say("# from this machine, with these lines in /etc/hosts (connect --hosts prints them alone):")
        for line in hosts:
            say(f"#   {line}")
    elif hosts:
        say("# not from this machine itself: it does not reach the containers' addresses")
    for inside, here in network.published.items():
        say(f"# {inside} is published at {here}")


def show_members(rows: Iterable[MemberRow]) -> None:
    for line in member_lines(rows):
        say(line)


def member_lines(rows: Iterable[MemberRow]) -> list[str]:
    """One line a member, in columns."""
    told = []
    for row in rows:
        state = f"{row.state} ({row.exit_text})" if row.exit_text else row.state
        if row.restarts:
            state += f", restarted {row.restarts}x"
        where = row.container or (f"pid {row.pid}" if row.pid else "")
        told.append((row.name, _runs(row), state, where, row.addresses["client"]))
    least = (11, 20, 10, 12, 0)  # so that the rows of one command after another still stand in columns
    widths = [max(width, *(len(row[at]) for row in told)) for at, width in enumerate(least)] if told else []
    return [" ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip() for cells in told]


def show_trouble(trouble: Trouble) -> None:
    """Everything that one needs to go on, on stderr."""
    complain(f"error: {trouble.text}")
    if not trouble.is_down:
        _show_findings(trouble)
    for name, value in (("evidence", trouble.evidence), ("next", as_called(trouble.next_command))):
        if value:
            complain(f"  {name}: {value}")


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """What is wrong, in the words of `verify`, or that nothing is; and where the page is."""
    report, trouble, page = diagnosis.report, diagnosis.report.trouble, diagnosis.page
    if trouble is None or not trouble.is_down:
        show_report(report)
    if trouble is not None:
        show_trouble(trouble)
    else:
        show_ready(report)
        if page is None:
            complain(f"error: {diagnosis.evidence}")
            complain(f"  mend: {NO_EVIDENCE_MEND}")
    if page is not None:
        say(f"page: {page}")


def _show_findings(trouble: Trouble) -> None:
    for lack in trouble.lacks[1:]:
        complain(f"  also: {lack}")
    if trouble.cause is not None:
        complain(f"  cause: {trouble.cause.name}: {trouble.cause.text}")
        complain(f"  data: {trouble.cause.data}")
        complain(f"  mend: {as_called(trouble.cause.mend)}")
    if trouble.last_reading:
        complain(f"  last reading: {trouble.last_reading}")
    if trouble.log_lines:
        complain(f"  last lines of {trouble.culprit} ({trouble.log_path}):")
        for line in trouble.log_lines:
            complain(f"    | {line}")
    if trouble.state:
        complain(f"  state: {trouble.state}")


def show_down(report: DownReport) -> None:
    if report.evidence:
        say(f"evidence of an unasked end: {report.evidence}")
    count = len(report.stopped)
    what = "1 member stopped" if count == 1 else f"{count} members stopped"
    if report.killed:
        what += f" ({', '.join(report.killed)} by force)"
    if report.is_clean:
        counts = ((report.checked_pids, "processes"), (report.checked_containers, "containers"))
        looked_for = [f"{count} {things}" for count, things in counts if count]
        proof = f"nothing left of {' and '.join([*looked_for, f'{report.checked_ports} ports'])}"
        say(f"{report.deployment} is down: {what}; {proof}")
    else:
        complain(f"error: {report.deployment} is not down: left are {', '.join(report.left)}")
        complain("  mend: end what is named, then take it down again")
    if report.is_data_deleted:
        say("its data is deleted")
    if report.kept:
        say(f"kept: {', '.join(report.kept)}")


def show_reset(reset: ResetReport) -> None:
    if reset.evidence:
        say(f"evidence of an unasked end: {reset.evidence}")
    done = [f"{what} {', '.join(who)}" for what, who in (("started", reset.started), ("resumed", reset.resumed)) if who]
    done.append("every key deleted" if reset.is_data_deleted else "there was no key")
    gates = f"{len(reset.report.gates)} of {len(reset.report.gates)} gates are open"
    say(f"{reset.report.deployment} is as new: {'; '.join(done)}; {gates}, and a scan finds nothing")


def show_proof(proof: ProofReport) -> None:
    for check, holds in proof.checks:
        say(f"{'proven' if holds else 'NOT PROVEN':<11} {check}")


def show_standings(standings: Iterable[Standing]) -> None:
    for standing in standings:
        state = f"{standing.running} of {len(standing.members)} members run" if standing.is_up else "down"
        say(f"{standing.name:<20} {standing.runtime:<8} {state:<24} {','.join(standing.pd_endpoints)}")


def _runs(row: MemberRow) -> str:
    return f"{row.kind} {row.title} {row.version}".strip()


def _waits_for(gate: GateRow) -> str:
    """What was found at a gate, or what it lacks."""
    if gate.lacks and all(NOT_ASKED in lack for lack in gate.lacks):
        return "waits for the gates before it"
    return gate.text


def cut(text: str, width: int) -> str:
    """The text within the width, but never so little of it that it says nothing."""
    room = max(NARROWEST_LACK, width)
    return text if len(text) <= room else text[: room - 1] + "…"
