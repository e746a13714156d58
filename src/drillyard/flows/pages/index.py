"""The page of the whole: what is wrong, why and what to do; then everything that was seen, asked and configured.

Rules: records in, text out; the words about the cluster are those of the records, so that page, terminal and JSON say
the same. What one needs first comes first. What is long is bounded and says so; what is not known is said to be not
known. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from drillyard.flows.exhibits import Exhibits
from drillyard.flows.pages.log_marks import TAIL_LINES, Mark, marked
from drillyard.flows.pages.markup import Html, code, el, facts, link, page, section, table
from drillyard.flows.pages.member import member_page
from drillyard.flows.pages.parts import (
    Sheet,
    argv,
    bytes_text,
    cause_steps,
    config,
    entries_table,
    foot,
    readings_table,
    spaced,
    stamp,
    starts_words,
    step,
    time_line,
    words,
)
from drillyard.flows.pages.pd import pd_section
from drillyard.flows.report import Ending, Trouble, gate_rows, member_rows, proven_words
from drillyard.runtimes.abilities import DeployedMember

LINES_OF_ALL = 6000  # on the pages of all members together: of a hundred members each shows fewer
FEWEST_LINES = 40
LAST_LINE_CHARS = 600  # in the headline; the member's page has more
_STATUS = {"holds": ("good", "✓ open"), "violated": ("bad", "✗ closed"), "unknown": ("warn", "? unknown")}
_STATES = {"running": "good", "exited": "bad"}
_TONES = {Mark.FATAL: "bad", Mark.TELLING: "tell", Mark.ERROR: "bad", Mark.WARN: "warn"}
_REASONS = {
    "unasked-end": "saved because a member had ended unasked and no bundle had told of it",
    "cut-short": "saved because a wait was cut short",
    "block-failed": "saved because the program that used the cluster failed",
    "diagnosis": "asked for with `drillyard diagnose`",
    "not-ready": "saved because a wait for the gates was in vain",
    "member-exited": "saved because a member ended during a wait",
}


def pages_of(exhibits: Exhibits) -> Iterator[tuple[str, str]]:
    """Every page: its path in the bundle, and its text."""
    scene, members = exhibits.scene, exhibits.deployment.members
    tail = max(FEWEST_LINES, min(TAIL_LINES, LINES_OF_ALL // max(1, len(members))))
    rows = member_rows(exhibits.deployment, scene.picture.observation if scene.picture is not None else None)
    logs = {
        member.name: {path: marked(text, tail) for path, text in exhibits.logs_of(member.name).items() if text.strip()}
        for member in members
    }
    sheet = Sheet(exhibits, {row.name: row for row in rows}, logs)
    yield "index.html", _index(sheet)
    for member in members:
        yield f"members/{member.name}.html", member_page(replace(sheet, root="../"), member)


def _index(sheet: Sheet) -> str:
    exhibits = sheet.exhibits
    at = stamp(sheet.exhibits.at)
    title = f"{sheet.exhibits.deployment.name}: evidence of {at} UTC"
    sections = (
        ("time-line", "Time line", entries_table(sheet, time_line(exhibits.scene))),
        ("gates", "Gates", _gates(sheet)),
        ("members", "Members", _members(sheet)),
        ("readings", "Readings", readings_table(sheet, exhibits.readings)),
        ("pd", "What PD says", pd_section(sheet)),
        ("configuration", "Configuration", _configuration(sheet)),
        ("versions", "Versions", _versions(sheet)),
        ("host", "Host", _host(sheet)),
        ("files", "Files", _files(sheet)),
    )
    nav = el("nav", *(link(f"#{id_}", name) for id_, name, _ in sections))
    parts = (section(name, id_, inner) for id_, name, inner in sections)
    return page(title, _about(sheet), _headline(sheet), nav, *parts, foot(sheet))


def _about(sheet: Sheet) -> Html:
    deployment = sheet.exhibits.deployment
    why = _REASONS.get(sheet.exhibits.scene.reason, sheet.exhibits.scene.reason)
    said = f"{deployment.name} on {deployment.runtime}, {stamp(sheet.exhibits.at)} UTC; {why}"
    return el("p", *words(said), class_="soft")


def _headline(sheet: Sheet) -> Html:
    trouble, report = sheet.exhibits.scene.what_is_wrong, sheet.exhibits.scene.report
    if trouble is not None:
        kind = el("div", trouble.ending.value.replace("-", " "), class_="kind")
        tone = "head warn" if trouble.ending is Ending.INTERRUPTED else "head"
        return el(
            "header", kind, el("h1", trouble.text), el("dl", *_steps(sheet, trouble), class_="steps"), class_=tone
        )
    if report is not None and report.is_ready:
        count = len(report.gates)
        said = (
            f"{report.deployment} is ready: {count} of {count} gates are open, proven from outside on {report.proven}"
        )
        return el("header", el("h1", said), class_="head good")
    said = f"{sheet.exhibits.deployment.name}: {_run_words(sheet)}"
    return el("header", el("h1", said), el("dl", *_causes(sheet, None), class_="steps"), class_="head warn")


def _steps(sheet: Sheet, trouble: Trouble) -> Iterator[Html]:
    """What is known besides the first sentence, the most useful first."""
    for lack in trouble.lacks[1:]:
        yield from step("also", lack)
    yield from _causes(sheet, trouble)
    if trouble.next_command:
        yield from (el("dt", "next"), el("dd", el("pre", code(trouble.next_command))))
    yield from step("last reading", trouble.last_reading)
    if trouble.culprit:
        yield from (el("dt", "look at"), el("dd", sheet.name(trouble.culprit), f" {trouble.log_path}"))
    if trouble.log_lines:
        lines = "\n".join(line[:LAST_LINE_CHARS] for line in trouble.log_lines)
        yield from (el("dt", "last lines"), el("dd", el("pre", lines, class_="block")))
    yield from step("state", trouble.state or _run_words(sheet))


def _causes(sheet: Sheet, trouble: Trouble | None) -> Iterator[Html]:
    """Why members ended, each cause once."""
    found = [trouble.cause if trouble is not None else None, *sheet.exhibits.causes.values()]
    for cause in {one.text: one for one in found if one is not None}.values():
        yield from cause_steps(cause)


def _run_words(sheet: Sheet) -> str:
    members = sheet.exhibits.deployment.members
    return f"{sum(1 for member in members if member.running)} of {len(members)} members run"


def _gates(sheet: Sheet) -> Html:
    scene = sheet.exhibits.scene
    rows = scene.report.gates if scene.report is not None else ()
    if not rows and scene.picture is not None:
        rows = gate_rows(scene.picture.readiness, {})
    if not rows:
        return el("p", "No gate was judged: nobody looked at the cluster from outside when this was saved.")
    cells = []
    for row in rows:
        tone, mark = _STATUS[row.status]
        lacks = el("ul", *(el("li", lack) for lack in row.lacks), class_="plain") if row.lacks else row.found
        after = "" if row.open_after_s is None else f"after {row.open_after_s:.2f} s"
        who = el("td", *spaced(sheet.name(name) for name in row.members))
        state = el("td", el("span", mark, class_=f"mark {tone}"))
        cells.append(el("tr", el("td", row.gate), state, el("td", lacks, class_="say"), who, el("td", after)))
    return table(("gate", "", "found, or lacking", "members", ""), cells, "gates stack")


def _members(sheet: Sheet) -> Html:
    rows = []
    for member in sheet.exhibits.deployment.members:
        row = sheet.rows[member.name]
        cells = (
            el("td", sheet.name(member.name)),
            el("td", f"{row.kind} {row.title} {row.version}".strip()),
            el("td", el("span", row.state, class_=f"mark {_STATES.get(row.state, 'warn')}")),
            el("td", row.exit_text or (str(member.exit) + ", runs again" if member.exit is not None else "")),
            el("td", row.container or (f"pid {row.pid}" if row.pid else "")),
            el("td", starts_words(member)),
            el("td", row.addresses.get("client", ""), class_="num"),
            el("td", *spaced(_counted(sheet, member))),
        )
        rows.append(el("tr", *cells, class_="bad" if row.state == "exited" else ""))
    heads = ("member", "runs", "state", "last end", "as", "starts", "at", "in its log")
    return table(heads, rows, "members")


def _counted(sheet: Sheet, member: DeployedMember) -> Iterator[Html]:
    for mark in Mark:
        count = sum(log.counts[mark] for log in sheet.logs[member.name].values())
        if count:
            yield el("span", f"{count} {mark.words}", class_=f"mark {_TONES[mark]}")


def _configuration(sheet: Sheet) -> Html:
    topology = sheet.exhibits.deployment.topology
    parts: list[object] = [
        facts((("profile", topology.profile.value), ("replicas of a region", str(topology.replicas)))),
    ]
    for member in sheet.exhibits.deployment.members:
        summary = el("summary", sheet.name(member.name))
        parts.append(el("details", summary, argv(member), config(sheet, member)))
    return el("div", *parts)


def _versions(sheet: Sheet) -> Html:
    return facts([("members", proven_words(sheet.rows.values())), *sheet.exhibits.versions.items()])


def _host(sheet: Sheet) -> Html:
    host = sheet.exhibits.host
    usable = f", {host.usable_cpus} of them for this process" if host.usable_cpus not in (0, host.cpus) else ""
    memory = f"{bytes_text(host.memory)}, {bytes_text(host.memory_available)} available"
    pairs = [
        ("kernel", host.kernel),
        ("system", host.system),
        ("processors", f"{host.cpus}{usable}" if host.cpus else ""),
        ("load (1, 5, 15 min)", ", ".join(f"{one:.2f}" for one in host.load)),
        ("memory", memory if host.memory else ""),
        ("swap used", bytes_text(host.swap_used) if host.swap_used else ""),
        ("open files", host.open_files),
        ("up for", _duration(host.uptime_s) if host.uptime_s else ""),
        ("clock", f"{stamp(sheet.exhibits.at)} UTC; local time is {host.timezone}"),
    ]
    for disk in host.disks:
        free = f"{bytes_text(disk.free)} of {bytes_text(disk.total)} free"
        pairs.append(("disk", f"{free} ({disk.free / max(1, disk.total):.0%}) at {disk.directory}"))
    return facts(pairs)


def _files(sheet: Sheet) -> Html:
    rows = (
        (
            link(one.path, one.path),
            el("span", bytes_text(one.size), class_="num"),
            f"{bytes_text(one.cut)} left out" if one.cut else "",
        )
        for one in sheet.exhibits.kept
    )
    return el(
        "details", el("summary", f"{len(sheet.exhibits.kept)} files besides the pages"), table(("", "", ""), rows)
    )


def _duration(seconds: float) -> str:
    minutes = int(seconds) // 60
    days, hours = minutes // 1440, minutes // 60 % 24
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min"
