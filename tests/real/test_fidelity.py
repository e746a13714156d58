"""The emulated PD beside a real one of its era, in the same states: answers are the same, or listed with their reason.

`fidelity.toml` has the questions and the known differences. One that is not listed fails, and so does one that is
listed and no longer there.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from differential import Compared, LeaderLost, emulated_side, real_side, tell
from pd_processes import PdProcesses, fetch
from real_pd import RealPd

from tools import fidelity_table
from tools.fidelity_table import Kind

TABLE = fidelity_table.read()
TRIES = 3
OWN_METRICS = ("drillyard_", "python_")
REFUSED = ("404", "405", "'UNIMPLEMENTED'")


class Told:
    """The answers to all questions, and both PDs' metrics at the end."""

    def __init__(self, compared: list[Compared], emulated: str, real: str) -> None:
        self.compared = compared
        self.emulated = emulated
        self.real = real


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Told again on new clusters when a leader was lost on the way: where the machine stands still for longer than a
    lease, the questions went to members that led no more."""
    for left in reversed(range(TRIES)):
        try:
            return _once(tmp_path_factory.mktemp("emulated"), tmp_path_factory.mktemp("real"))
        except LeaderLost:
            if not left:
                raise
    raise AssertionError("unreachable")


def _once(emulated_home: Path, real_home: Path) -> Told:
    emulated = PdProcesses(emulated_home)
    (emulated_home / "pd.toml").write_text("")  # with PD's own timings
    emulated.start()
    try:
        with RealPd("81", real_home) as real:
            return asyncio.run(_tell(emulated, real))
    finally:
        emulated.close()


async def _tell(emulated: PdProcesses, real: RealPd) -> Told:
    sides = (await emulated_side(emulated), await real_side(real))
    compared = await tell(TABLE, sides)
    metrics = [fetch(side.ports[0], "/metrics")[2].decode() for side in sides]
    return Told(compared, *metrics)


def test_every_difference_is_listed(told: Told) -> None:
    unlisted = []
    for one in told.compared:
        listed = TABLE.of(one.question, one.state)
        left = [part for part in one.unlike if not any(each.covers(part) for each in listed)]
        if left:
            unlisted.append(f"{one}\n    not listed: {', '.join(left[:12])}")
    assert not unlisted, "\n".join(["list them in fidelity.toml, or make them the same:", *unlisted])


def test_every_listed_difference_is_there(told: Told) -> None:
    gone = []
    for listed in TABLE.differences:
        seen = {
            one.state
            for one in told.compared
            if listed.is_about(one.question, one.state) and any(map(listed.covers, one.unlike))
        }
        missed = [state for state in listed.states if state not in seen] if listed.states else []
        if missed or not seen:
            gone.append(f"{listed.question}, {', '.join(missed) or 'any state'}: {listed.why}")
    assert not gone, "\n".join(["no longer different, or never asked; take them out of fidelity.toml:", *gone])


def test_absent_is_what_is_refused_where_the_real_one_answers(told: Told) -> None:
    wrong = []
    for one in told.compared:
        kinds = {listed.kind for listed in TABLE.of(one.question, one.state)}
        is_absent = one.emulated["status"] in REFUSED and one.real["status"] not in REFUSED
        if kinds and one.unlike and is_absent != (Kind.ABSENT in kinds):
            wrong.append(f"[{one.state}] {one.question} is {'absent' if is_absent else 'different'}")
    assert not wrong, "\n".join(["fidelity.toml calls these by the other name:", *wrong])


def test_every_metric_is_one_of_the_real_pd(told: Told) -> None:
    """Of the same type, with the same labels. The real one shows a family only once it has a value."""
    ours, theirs = _metrics(told.emulated), _metrics(told.real)
    pairs = {name: (ours[name], theirs[name]) for name in sorted(ours) if name in theirs}
    assert {name: pair for name, pair in pairs.items() if pair[0] != pair[1]} == {}
    assert [name for name in sorted(ours) if name not in theirs and not name.startswith(OWN_METRICS)] == []


def _metrics(text: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Each family's type and the names of its labels."""
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    labels: dict[str, tuple[str, ...]] = {}
    for name, inner in re.findall(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ", text, re.MULTILINE):
        family = next(
            (name.removesuffix(end) for end in ("_bucket", "_sum", "_count") if name.removesuffix(end) in kinds), name
        )
        named = {label for label in re.findall(r'(\w+)="', inner or "") if label != "le"}
        labels[family] = tuple(sorted(named | set(labels.get(family, ()))))
    return {name: (kind, labels.get(name, ())) for name, kind in kinds.items()}
