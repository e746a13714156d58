"""The page of one member: how it stands and ended, how it was started, what it said. Pure."""

from __future__ import annotations

from drillyard.flows.pages.log_marks import Line, Marked
from drillyard.flows.pages.markup import Html, el, facts, link, page, section
from drillyard.flows.pages.parts import (
    Sheet,
    argv,
    cause_steps,
    config,
    entries_table,
    foot,
    readings_table,
    spaced,
    stamp,
    starts_words,
    time_line,
)
from drillyard.flows.report import state_of
from drillyard.runtimes.abilities import DeployedMember


def member_page(sheet: Sheet, member: DeployedMember) -> str:
    exhibits, logs = sheet.exhibits, sheet.logs[member.name]
    entries = [entry for entry in time_line(exhibits.scene) if entry.member == member.name]
    readings = [one for one in exhibits.readings if one.member == member.name]
    cause = exhibits.causes.get(member.name)
    listed = [_listed(path, log) for path, log in logs.items() if log.listed]
    others = spaced(sheet.name(one.name) for one in exhibits.deployment.members)
    parts: list[object] = [
        el("nav", link("../index.html", "← the whole"), el("span", *others)),
        _head(sheet, member),
        el("dl", *cause_steps(cause), class_="steps") if cause is not None else "",
        section("Lines that matter", "lines", *listed) if listed else "",
        section("State", "state", _state_facts(sheet, member)),
    ]
    if member.container is not None:
        parts.append(section("Health check", "health", *_health(member)))
    parts.append(section("Time line", "time-line", entries_table(sheet, entries)))
    if readings:
        parts.append(section("Readings", "readings", readings_table(sheet, readings)))
    parts.append(section("Command line and configuration", "argv", argv(member), config(sheet, member)))
    parts += [section(path, _anchor(path), _log(path, log)) for path, log in logs.items()]
    if not logs:
        parts.append(section("Log", "log", el("p", "There is no log of it in this bundle.")))
    return page(f"{member.name} of {exhibits.deployment.name}", *parts, foot(sheet))


def _head(sheet: Sheet, member: DeployedMember) -> Html:
    state = state_of(member)
    if member.exit is not None and not member.running:
        state += f" ({member.exit})"
    tone = {"running": "head good", "exited": "head"}.get(state_of(member), "head warn")
    return el("header", el("h1", sheet.name(member.name), f" {sheet.rows[member.name].title}: {state}"), class_=tone)


def _state_facts(sheet: Sheet, member: DeployedMember) -> Html:
    row, end, box = sheet.rows[member.name], member.exit, member.container
    pairs: list[tuple[str, object]] = [
        ("state", row.state),
        ("runs", f"{row.kind} {row.title} {row.version}".strip()),
        ("pid", str(member.pid) if member.pid else ""),
        ("started", f"{stamp(member.started_at)} UTC" if member.started_at else ""),
        ("starts", starts_words(member)),
    ]
    if end is not None:
        pairs += [
            ("last end", f"{stamp(end.at)} UTC{', runs again since' if member.running else ''}"),
            ("exit code", str(end.code) if end.code is not None else "none" if end.signal is not None else "not known"),
            ("signal", f"{end.signal_name} ({end.signal})" if end.signal is not None else "none"),
            ("out of memory", "yes: ended by the kernel" if end.is_oom else "no"),
            ("asked for", "yes" if end.asked else "no"),
            ("note", end.note),
        ]
    pairs += [(f"{purpose} address", address) for purpose, address in member.addresses.items()]
    if box is not None:
        pairs += [("container", f"{box.name} ({box.id[:12]})"), ("image", box.image)]
    if member.files is not None:
        pairs += [("data", str(member.files.data_dir)), ("log", str(member.files.log_path))]
    return facts(pairs)


def _health(member: DeployedMember) -> tuple[Html, ...]:
    assert member.container is not None
    said = member.container.probe_output.strip() or "It has said nothing yet."
    return el("p", f"Docker counts it as {member.container.health or 'not checked'}; its latest check said:"), el(
        "pre", said, class_="block"
    )


def _log(path: str, log: Marked) -> Html:
    lines, before = [], 0
    for line in log.lines:
        if line.number != before + 1:
            lines.append(el("div", f"{line.number - before - 1} lines are not shown here", class_="gap"))
        lines.append(_line(path, line))
        before = line.number
    whole = el("p", link(f"../{path}", f"the file, {log.total} lines"), class_="soft")
    return el("div", whole, el("div", *lines, class_="log"))


def _line(path: str, line: Line) -> Html:
    mark = line.mark.value if line.mark is not None else ""
    return el("div", el("i", line.number), line.text, id=f"{_anchor(path)}-{line.number}", class_=mark)


def _listed(path: str, log: Marked) -> Html:
    lines = [
        el("div", el("i", link(f"#{_anchor(path)}-{line.number}", line.number)), line.text, class_=line.mark.value)
        for line in log.listed
        if line.mark is not None
    ]
    counts = ", ".join(f"{count} {mark.words}" for mark, count in log.counts.items() if count)
    return el("div", el("h3", f"{path}: {counts}"), el("div", *lines, class_="log list")) if lines else Html()


def _anchor(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[2]
