"""What the pages share: labels of members, the time line, readings, causes, command lines, times in words. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from drillyard.flows.exhibits import Exhibits, Scene
from drillyard.flows.pages.log_marks import Marked
from drillyard.flows.pages.markup import Html, code, el, link, table, text
from drillyard.flows.report import Entry, MemberRow, answer_words, clock_text
from drillyard.judge.ends import Cause
from drillyard.observation import Reading
from drillyard.runtimes.abilities import DeployedMember
from drillyard.topology import render_config

FIRST_ENTRIES, LAST_ENTRIES = 100, 300  # of a time line; timeline.txt has all
SAME_S = 1.0  # two records of one start or end differ by less
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_HUES = (212, 268, 172, 28, 338, 96, 240, 52, 300, 130, 192, 8)


@dataclass(frozen=True, slots=True)
class Sheet:
    """What a page is drawn from. `root` leads from the page to the bundle's directory."""

    exhibits: Exhibits
    rows: Mapping[str, MemberRow]
    logs: Mapping[str, Mapping[str, Marked]]  # member -> path in the bundle -> its log
    root: str = ""

    def name(self, name: str) -> Html:
        """A member as a coloured label that leads to its page; who is none of them is named only."""
        names = [member.name for member in self.exhibits.deployment.members]
        if name not in names:
            return text(name)
        hue = f"--hue:{_HUES[names.index(name) % len(_HUES)]}"
        return el("a", name, href=f"{self.root}members/{name}.html", class_="tag", style=hue)


def words(said: str) -> Iterator[object]:
    """A sentence with its commands, which stand in backquotes, set apart."""
    for at, part in enumerate(said.split("`")):
        yield code(part) if at % 2 else part


def step(name: str, said: str) -> list[Html]:
    return [el("dt", name), el("dd", *words(said))] if said else []


def cause_steps(cause: Cause) -> list[Html]:
    return [
        *step("cause", f"{cause.text} ({cause.name})"),
        *step("data", cause.data),
        *step("mend", cause.mend),
    ]


def time_line(scene: Scene) -> tuple[Entry, ...]:
    """What was heard, and what the members' own records add: their latest start and end."""
    told = list(scene.timeline)
    for member in scene.deployment.members:
        pid = f" (pid {member.pid})" if member.pid is not None else ""
        known = [Entry(member.started_at, f"{member.name} started{pid}", member.name)] if member.started_at else []
        if member.exit is not None:
            known.append(Entry(member.exit.at, f"{member.name} ended: {member.exit}", member.name))
        told += [entry for entry in known if not any(_is_same(entry, other) for other in scene.timeline)]
    return tuple(sorted(told, key=lambda entry: entry.at))


def _is_same(one: Entry, other: Entry) -> bool:
    return (one.member, one.text) == (other.member, other.text) and abs(one.at - other.at) < SAME_S


def entries_table(sheet: Sheet, entries: Iterable[Entry]) -> Html:
    every = tuple(entries)
    if not every:
        return el("p", "Nothing was recorded.")
    gap = len(every) - FIRST_ENTRIES - LAST_ENTRIES
    rows: list[Html] = []
    day = ""
    for at, entry in enumerate(every):
        if FIRST_ENTRIES <= at < FIRST_ENTRIES + gap:
            if at == FIRST_ENTRIES:
                told = el(
                    "em",
                    f"{gap} entries are left out here; ",
                    link(f"{sheet.root}timeline.txt", "timeline.txt"),
                    " has all",
                )
                rows.append(el("tr", el("td", told, colspan="4")))
            continue
        if stamp(entry.at)[:10] != day:
            day = stamp(entry.at)[:10]
            rows.append(el("tr", el("td", el("b", day), " UTC", colspan="4", class_="soft")))
        tone = _tone(entry)
        cells = (
            el("td", clock_text(entry.at), class_="time"),
            el("td", f"+{entry.at - every[0].at:.3f} s", class_="num soft"),
            el("td", sheet.name(entry.member) if entry.member else el("b", "gate", class_=tone) if entry.gate else ""),
            el("td", entry.text, class_="say"),
        )
        rows.append(el("tr", *cells, class_=tone))
    return table((), rows, "time-line stack")


def _tone(entry: Entry) -> str:
    if " ended: " in entry.text:
        return "bad" if "unexpected" in entry.text else ""
    return "warn" if entry.gate and " is closed" in entry.text else "good" if entry.gate else ""


def readings_table(sheet: Sheet, readings: Iterable[Reading]) -> Html:
    rows = []
    for reading in readings:
        said = answer_words(reading.answer) if reading.failure is None else f"no answer: {reading.failure.text}"
        took = f"{max(0.0, reading.answered_at - reading.asked_at) * 1000:.0f} ms"
        cells = (
            el("td", clock_text(reading.answered_at), class_="time"),
            el("td", reading.probe.value),
            el("td", sheet.name(reading.member) if reading.member else "the cluster"),
            el("td", said, class_="say"),
            el("td", took, class_="num soft"),
        )
        rows.append(el("tr", *cells, class_="warn" if reading.failure is not None else ""))
    if not rows:
        return el("p", "No question was asked when this was saved; what PD said then is below.")
    return table(("UTC", "question", "answered by", "answer", "took"), rows, "readings stack")


def argv(member: DeployedMember) -> Html:
    return el("pre", code(" \\\n  ".join(shlex.quote(part) for part in member.argv)), class_="block")


def config(sheet: Sheet, member: DeployedMember) -> Html:
    """What its configuration file holds, of what is not the server's default."""
    topology = sheet.exhibits.deployment.topology
    return el("pre", code(render_config(topology.config_of(topology.member(member.name)))), class_="block")


def starts_words(member: DeployedMember) -> str:
    return f"{member.starts}, {member.restarts} by its policy" if member.restarts else str(member.starts)


def foot(sheet: Sheet) -> Html:
    count = sheet.exhibits.redacted
    taken = "1 secret was" if count == 1 else f"{count or 'No'} secrets were"
    return el(
        "footer",
        el("p", f"{taken} taken out of this bundle: passwords, tokens, keys, by their names and shapes."),
        el(
            "p",
            "Keys of users may stand in logs, in PD's answers and in regions' bounds. They are left, because a "
            "region is found by them: look before you pass this on.",
        ),
        el("p", f"Made by drillyard {sheet.exhibits.versions.get('drillyard', '')}. All times are UTC."),
        class_="foot",
    )


def spaced(parts: Iterable[object]) -> Iterator[object]:
    for part in parts:
        yield part
        yield " "


def stamp(at: float) -> str:
    """A date and time with milliseconds, in UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d} {clock_text(at)}"


def bytes_text(count: int) -> str:
    """A size as people read it."""
    size, unit = float(count), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {_UNITS[unit]}" if unit == 0 or size >= 100 else f"{size:.1f} {_UNITS[unit]}"
