"""What was measured, in docs/performance.md, README and docs/plots: from the kept results in bench/results.

Rules: prose is written by hand, in those documents; what stands between `<!-- measured: WHAT -->` and `<!-- end -->`
is made here, and so is every plot. WHAT is `machine`, `taken BENCH` (when and at which commit), `table NAME` (a list of
keys below), `sizes BENCH` (a sweep, a column for each size) or `costs NAME` (CPU time of operations, a column for each
process). A figure that was not measured has no row; what is missing is named below its table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import figures, kept, start, throughput
from bench.costs import PARTS, cost, spread_cost
from bench.figures import wanted, written
from bench.load import Client
from tools.plot import Line, Panel, Point, svg

ROOT = Path(__file__).resolve().parents[1]
PAGE, README, PLOTS = ROOT / "docs" / "performance.md", ROOT / "README.md", ROOT / "docs" / "plots"
BLOCK = re.compile(r"(<!-- measured: (?P<what>[^\n]*?) -->\n).*?(<!-- end -->)", re.DOTALL)
NOTHING = "Not measured yet."

Row = Mapping[str, Any]
Kept = Mapping[str, Mapping[str, Any]]

LIFE = ("up", "lag", "stop", "help", "status", "fresh", "reset")
STEPS = (*(figures.step(what).key for what in start.ALL_STEPS), "up-members-cpu", "up-command-cpu")
LOSS = ("store-lost", "pd-elected", "pd-lost")
MEMORY = ("rss-idle", "pss-idle", "pss-imports", "pss-after", "soak-memory")
SERVED = ("puts-unary", "gets-unary", "puts-batch", "gets-batch")
ALONE = tuple(f"{act}-alone-{how}-{p}" for how in ("unary", "batch") for act in ("put", "get") for p in ("p50", "p99"))
SPREAD = tuple(
    f"{act}-{how}-spread{what}" for how in ("unary", "batch") for act in ("puts", "gets") for what in ("", "-ratio")
)
COMMANDS = ("fresh-gone", *(figures.command(words).key for words in start.COMMANDS))
LARGE = tuple(
    throughput.large(client, action)[one].key for action in throughput.LARGE for client in Client for one in (0, 1)
)
PURE = ("simulation-three-stores", "simulation-all-cores", "simulation", "checker", "checker-troubled", "bank")
TABLES: Mapping[str, tuple[str, ...]] = {
    "life": LIFE,
    "commands": COMMANDS,
    "loss": LOSS,
    "steps": STEPS,
    "memory": (*MEMORY, "soak-growth"),
    "calls": (*SERVED, *ALONE),
    "wire": ("call-unary", "call-message"),
    "spread": (*SPREAD, *(spread_cost(action, client).key for action in throughput.ACTIONS for client in Client)),
    "large": LARGE,
    "pure": PURE,
    "readme": (
        *LIFE,
        "store-lost",
        "pd-lost",
        "pss-idle",
        "pss-after",
        "soak-memory",
        *SERVED,
        "put-alone-unary-p50",
        "get-alone-unary-p50",
        "idle-cpu",
        *PURE,
    ),
}

# Operations whose costs are told, each with the figure of its rate.
COSTS: Mapping[str, tuple[tuple[Client, str, str], ...]] = {
    "calls": tuple((client, action, figure.key) for (client, action), figure in throughput.RATES.items()),
    "large": tuple(
        (client, action, throughput.large(client, action)[0].key) for action in throughput.LARGE for client in Client
    ),
}


@dataclass(frozen=True, slots=True)
class Drawn:
    """A panel, and which figure each of its lines is of."""

    title: str
    x: str
    y: str
    lines: tuple[tuple[str, str], ...]  # name, key
    is_x_log: bool = True
    is_y_log: bool = False


def _calls(what: str, p: str = "rate") -> tuple[tuple[str, str], ...]:
    return (
        (f"{what}, unary", f"in-flight-{what}-unary-{p}"),
        (f"{what}, batch", f"in-flight-{what}-batch-{p}"),
    )


def _latency(what: str) -> Drawn:
    lines = tuple((f"{how} {p}", f"in-flight-{what}-{how}-{p}") for how in ("unary", "batch") for p in ("p50", "p99"))
    return Drawn(f"A {what}", "operations in flight", "ms", lines, is_y_log=True)


def _members(title: str, what: str, unit: str) -> Drawn:
    lines = (("stores, beside 3 PD", f"members-stores-{what}"), ("PD, beside 3 stores", f"members-pd-{what}"))
    return Drawn(title, "members of that kind", unit, lines, is_x_log=False)


def _regions(title: str, unit: str, *lines: tuple[str, str]) -> Drawn:
    return Drawn(title, "regions", unit, lines)


DRAWN: Mapping[str, tuple[str, tuple[Drawn, ...]]] = {
    "in-flight": (
        "Operations a second and their latency, by operations in flight",
        (
            Drawn("Puts", "operations in flight", "operations / s", _calls("put")),
            Drawn("Linearizable gets", "operations in flight", "operations / s", _calls("get")),
            _latency("put"),
            _latency("get"),
        ),
    ),
    "keys": (
        "Operations a second, memory and restart, by keys",
        (
            Drawn("64 in flight, unary", "keys", "operations / s", (("put", "keys-put"), ("get", "keys-get"))),
            Drawn("Scans of 100 pairs, 64 in flight", "keys", "scans / s", (("scan", "keys-scan"),)),
            Drawn("Memory of the largest member", "keys", "MB, proportional", (("PSS", "keys-pss"),)),
            Drawn("Start of the stopped cluster", "keys", "s", (("up, six gates", "keys-restart"),)),
        ),
    ),
    "regions": (
        "CPU, memory, loop lag and recovery, by regions",
        (
            _regions("CPU of all six, idle", "% of a core", ("idle", "idle-cpu")),
            _regions("Memory of the largest member", "MB, proportional", ("idle", "regions-pss")),
            _regions("Loop lag, 99 %", "ms", ("idle", "idle-loop-lag"), ("after a SIGKILL", "lost-loop-lag")),
            _regions("All regions served after SIGKILL of a store", "s", ("served", "regions-served")),
        ),
    ),
    "members": (
        "Start, CPU, memory and a put, by members",
        (
            _members("Start, command to six gates", "up", "s"),
            _members("CPU of all members, idle", "cpu", "% of a core"),
            _members("Memory of all members", "pss", "MB, proportional"),
            _members("A put, one in flight, p50", "put", "ms"),
        ),
    ),
}


def pages() -> dict[Path, str]:
    """What the documents and the plots should hold now."""
    results = kept.read()
    texts = {path: renewed(path.read_text(encoding="utf-8"), results) for path in (PAGE, README)}
    return texts | {PLOTS / f"{name}.svg": plot(name, results) for name in DRAWN}


def renewed(text: str, results: Kept) -> str:
    """The document with all its blocks made afresh."""

    def block(found: re.Match[str]) -> str:
        kind, _, name = found["what"].partition(" ")
        return f"{found[1]}\n{BLOCKS[kind](name, results)}\n\n{found[3]}"

    return BLOCK.sub(block, text)


# ---- blocks ----


def _machine(_: str, results: Kept) -> str:
    machines = {_told(one["machine"]) for one in results.values()}
    days = sorted(one["date"].partition(" ")[0] for one in results.values())
    when = days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"
    commits = ", ".join(sorted({f"`{one['commit']}`" for one in results.values()}))
    return f"Measured on {when} on {' and '.join(sorted(machines))}, at {commits}."


def _told(machine: Row) -> str:
    return (
        f"{machine['cores']} cores ({machine['architecture']}), {machine['memory_gib']} GiB, {machine['system']}, "
        f"Python {machine['python']}"
    )


def _table(name: str, results: Kept) -> str:
    rows = list(_rows(results))
    chosen = [row for key in TABLES[name] for row in rows if row["key"] == key]
    if not chosen:
        return NOTHING
    lines = ["| | median | worst | runs | wanted |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in chosen:
        what = row["figure"] if "at" not in row else f"{row['figure']}: {row['at']:,}"
        median = written(row["median"], row["unit"])
        if "p95" in row:
            median += f" (p95 {written(row['p95'], row['unit'])})"
        if row["met"] is False:
            median = f"**{median}**"
        lines.append(f"| {what} | {median} | {written(row['worst'], row['unit'])} | {row['runs']} | {wanted(row)} |")
    return "\n".join(lines) + _missing(set(TABLES[name]), results)


def _missing(keys: set[str], results: Kept) -> str:
    """Which of the table's benches did without something, or ended early."""
    benches = [one for one in results.values() if any(row["key"] in keys for row in one["figures"])]
    lost = {what: why for one in benches for what, why in one.get("missing", {}).items()}
    said = [f"Not measured: {what}, because {why}." for what, why in lost.items()]
    said += [f"`{one['command']}` ended early, in {one['failure']}." for one in benches if "failure" in one]
    return "".join(f"\n\n{sentence}" for sentence in said)


def _sizes(bench: str, results: Kept) -> str:
    rows = results.get(bench, {"figures": ()})["figures"]
    sizes = sorted({row["at"] for row in rows})
    heads = " | ".join(f"{size:,}" for size in sizes)
    lines = [f"| | {heads} |", f"| --- |{' ---: |' * len(sizes)}"]
    named = {row["key"]: row["figure"].rpartition(", by ") for row in rows}
    has_kinds = len({by for _, _, by in named.values()}) > 1
    for key, (name, _, by) in named.items():
        of_key = {row["at"]: row for row in rows if row["key"] == key}
        name = f"{name} ({by})" if has_kinds else name
        cells = (written(of_key[size]["median"], of_key[size]["unit"]) if size in of_key else "" for size in sizes)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + _missing(set(named), results)


def _taken(bench: str, results: Kept) -> str:
    if bench not in results:
        return NOTHING
    one = results[bench]
    return f"Taken by `{one['command']}` on {one['date'].partition(' ')[0]}, at `{one['commit']}`."


def _costs(name: str, results: Kept) -> str:
    """What each process spends, and the rate that this allows: a process has one core, and all have those there are."""
    medians = {row["key"]: row["median"] for row in _rows(results)}
    lines = ["| µs | leader | a follower | three stores | PD's leader | client | allowed | measured |"]
    lines.append("| --- |" + " ---: |" * 7)
    for client, action, rate in COSTS[name]:
        keys = [cost(action, client, part).key for part in PARTS]
        if any(key not in medians for key in (*keys, rate)):
            continue
        leader, follower, pd, own = (float(medians[key]) for key in keys)
        stores = leader + 2 * follower
        cores = results["throughput"]["machine"]["cores"]
        bounds = {"the leader's process": 1e6 / leader, f"{cores} cores": cores * 1e6 / (stores + pd + own)}
        by = min(bounds, key=lambda one: bounds[one])
        cells = [written(value, "") for value in (leader, follower, stores, pd, own)]
        told = (*cells, f"{written(bounds[by], '/s')} by {by}", written(medians[rate], "/s"))
        lines.append(f"| {action} ({client.value}) | {' | '.join(told)} |")
    return "\n".join(lines) if len(lines) > 2 else NOTHING


BLOCKS: Mapping[str, Callable[[str, Kept], str]] = {
    "machine": _machine,
    "taken": _taken,
    "table": _table,
    "sizes": _sizes,
    "costs": _costs,
}


# ---- plots ----


def plot(name: str, results: Kept) -> str:
    about, drawn = DRAWN[name]
    rows = list(_rows(results))
    return svg(about, [panel for each in drawn if (panel := _panel(each, rows)).lines])


def _panel(drawn: Drawn, rows: Sequence[Row]) -> Panel:
    lines = tuple(Line(name, points) for name, key in drawn.lines if (points := _points(key, rows)))
    return Panel(drawn.title, drawn.x, drawn.y, lines, drawn.is_x_log, drawn.is_y_log)


def _points(key: str, rows: Sequence[Row]) -> tuple[Point, ...]:
    of_key = sorted((row for row in rows if row["key"] == key), key=lambda row: int(row["at"]))
    return tuple(Point(row["at"], row["median"], row["worst"]) for row in of_key)


def _rows(results: Kept) -> Iterator[Row]:
    for one in results.values():
        yield from one["figures"]
