"""What PD says, each member for itself: so that a PD that sees another cluster than its siblings shows. Pure.

Rules: the bodies are anybody's; what is not there or has another shape is shown as not known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from drillyard.flows.exhibits import PdAnswer
from drillyard.flows.pages.markup import Html, el, link, table
from drillyard.flows.pages.parts import Sheet

UNKNOWN = "?"
MOST_STORES = 100
_CHECKS = ("miss-peer", "down-peer", "pending-peer")


def pd_section(sheet: Sheet) -> Html:
    views = {name: _View(answers) for name, answers in sheet.exhibits.pd.items()}
    if not views:
        return el("p", "PD was not asked: its members could not be reached from here.")
    rows = [el("tr", *_cells(sheet, name, view), class_="" if view.answers else "warn") for name, view in views.items()]
    heads = ("PD", "says of itself", "names leader", "members healthy", "regions", *_CHECKS, "all it said")
    stores = next((found for view in views.values() if (found := view.stores())), [])
    return el("div", table(heads, rows, "pd"), *_stores(sheet, stores))


class _View:
    """The answers of one PD, read as far as they can be."""

    def __init__(self, answers: Sequence[PdAnswer]) -> None:
        self._by_path = {answer.path: answer for answer in answers}
        self.answers = sum(1 for answer in answers if answer.status)
        self.failure = next((answer.failure for answer in answers if answer.failure), "")

    def body(self, path: str) -> Any:
        answer = self._by_path.get(path)
        if answer is None or answer.status != 200:
            return None
        try:
            return json.loads(answer.body)
        except ValueError:
            return None

    def at(self, path: str, *keys: str) -> Any:
        found = self.body(path)
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def healthy(self) -> str:
        listed = self.body("/pd/api/v1/health")
        if not isinstance(listed, list):
            return UNKNOWN
        healthy = [one for one in listed if isinstance(one, dict) and one.get("health") is True]
        return f"{len(healthy)} of {len(listed)}"

    def stores(self) -> list[Any]:
        found = self.at("/pd/api/v1/stores", "stores")
        return found if isinstance(found, list) else []


def _cells(sheet: Sheet, name: str, view: _View) -> Iterator[Html]:
    yield el("td", sheet.name(name))
    if not view.answers:
        yield el("td", f"no answer: {view.failure}", colspan=str(4 + len(_CHECKS)), class_="say")
    else:
        itself = str(view.at("/health", "health") or UNKNOWN)
        yield el("td", {"true": "healthy", "false": "not healthy"}.get(itself.lower(), itself))
        yield el("td", view.at("/pd/api/v1/members", "leader", "name") or UNKNOWN)
        yield el("td", view.healthy())
        for path in ("count", *(f"check/{check}" for check in _CHECKS)):
            count = view.at(f"/pd/api/v1/regions/{path}", "count")
            yield el("td", UNKNOWN if count is None else count)
    yield el("td", link(f"{sheet.root}pd/{name}.txt", f"pd/{name}.txt"))


def _stores(sheet: Sheet, stores: list[Any]) -> Iterator[Html]:
    if not stores:
        return
    names = {one.addresses.get("client", ""): one.name for one in sheet.exhibits.deployment.members}
    rows = []
    for entry in stores[:MOST_STORES]:
        store, status = (entry.get(key) if isinstance(entry, dict) else None for key in ("store", "status"))
        store, status = store if isinstance(store, dict) else {}, status if isinstance(status, dict) else {}
        address, state = str(store.get("address", UNKNOWN)), str(store.get("state_name", UNKNOWN))
        cells = (
            el("td", store.get("id", UNKNOWN), class_="num"),
            el("td", sheet.name(names[address]) if address in names else address),
            el("td", el("span", state, class_=f"mark {'good' if state == 'Up' else 'bad'}")),
            *(el("td", status.get(key, default)) for key, default in _STATUS),
        )
        rows.append(el("tr", *cells))
    yield el("h3", "Stores")
    yield table(
        ("id", "store", "state", "leaders", "regions", "capacity", "available", "last heartbeat"), rows, "stores"
    )


_STATUS = (
    ("leader_count", "0"),  # PD leaves a zero out
    ("region_count", "0"),
    ("capacity", UNKNOWN),
    ("available", UNKNOWN),
    ("last_heartbeat_ts", UNKNOWN),
)
