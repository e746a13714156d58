"""Stores over HTTP: their views, and what an operator decides about them.

Rules: a path names a store by its id; what is no id is bad input, and an id of no store is said in PD's words. A
decision is checked here for its form only; whether it may be carried out is the state's to say (`stores`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from drillyard.emulator.http import HttpRequest, HttpResponse
from drillyard.emulator.pd import config, views
from drillyard.emulator.pd.departures import FOREVER_S
from drillyard.emulator.pd.leadership import Leadership
from drillyard.emulator.pd.outcomes import Outcome
from drillyard.emulator.pd.routes.answers import (
    V1,
    Refused,
    Room,
    Route,
    answer_json,
    bad_input,
    not_a_number,
    number,
    read_json,
    read_object,
    store_id_of,
)
from drillyard.emulator.pd.stores import label_mistake, merged_labels, strict_mistake
from drillyard.emulator.pd.views import Json
from drillyard.wire import drillpb, metapb

STORE_STATES = {"up", "disconnected", "down", "offline", "tombstone"}
NOT_FOUND, REMOVED = "[PD:core:ErrStoreNotFound]", "[PD:core:ErrStoreRemoved]"
LIMITS = ("add-peer", "remove-peer")


class StoreRoutes(Room):
    def routes(self) -> Sequence[Route]:
        return (
            Route("GET", f"{V1}/stores", cluster_handler=self._get_stores),
            Route("DELETE", f"{V1}/stores/remove-tombstone", cluster_handler=self._remove_tombstones),
            Route("GET", f"{V1}/stores/limit", cluster_handler=self._get_limits),
            Route("POST", f"{V1}/stores/limit", cluster_handler=self._set_limits),
            Route("GET", f"{V1}/stores/progress", cluster_handler=self._get_progress),
            Route("GET", f"{V1}/stores/check", cluster_handler=self._get_stores_in_state),
            Route("GET", f"{V1}/store/{{id}}", cluster_handler=self._get_store),
            Route("DELETE", f"{V1}/store/{{id}}", cluster_handler=self._remove_store),
            Route("POST", f"{V1}/store/{{id}}/state", cluster_handler=self._set_state),
            Route("POST", f"{V1}/store/{{id}}/label", cluster_handler=self._set_labels),
            Route("DELETE", f"{V1}/store/{{id}}/label", cluster_handler=self._delete_label),
            Route("POST", f"{V1}/store/{{id}}/weight", cluster_handler=self._set_weight),
            Route("POST", f"{V1}/store/{{id}}/limit", cluster_handler=self._set_limit),
            Route("GET", f"{V1}/labels", cluster_handler=self._get_labels),
            Route("GET", f"{V1}/labels/stores", cluster_handler=self._get_stores_by_label),
        )

    # ---- views ----

    def _stores(self, lead: Leadership) -> views.StoreViews:
        settings = self._member.settings
        return views.StoreViews(self._cluster, lead.reports, lead.clock.now_ns(), settings.down_after_ns())

    def _get_stores(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        asked = request.query.get("state")
        if asked is None:
            return answer_json(self._stores(lead).all())
        for state in asked:
            if number(state) is None:
                return answer_json(f"strconv.Atoi: parsing {json.dumps(state)}: invalid syntax", 500)
            if int(state) > metapb.Tombstone:
                return answer_json(f"unknown StoreState: {int(state)}", 500)
        return answer_json(self._stores(lead).all({int(state) for state in asked}))

    def _get_store(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        store_id = store_id_of(request)
        store = self._cluster.stores.get(store_id)
        if store is None:
            return answer_json(f"{NOT_FOUND}store {store_id} not found", 404)
        return answer_json(self._stores(lead).one(store))

    def _get_stores_in_state(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        wanted = {state.lower() for state in request.query.get("state", []) if state}
        if unknown := wanted - STORE_STATES:
            return answer_json(f"unknown StoreState: {unknown.pop()}", 400)
        shown = self._stores(lead)
        return self._some(lead, lambda store: not wanted or shown.state_of(store).lower() in wanted)

    def _some(self, lead: Leadership, is_wanted: views.StoreFilter) -> HttpResponse:
        shown = self._stores(lead)
        kept = [store for _, store in sorted(self._cluster.stores.items()) if is_wanted(store)]
        return answer_json({"count": len(kept), "stores": [shown.one(store) for store in kept]})

    def _get_labels(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        pairs = {(label.key, label.value) for store in self._cluster.stores.values() for label in store.labels}
        return answer_json([{"key": key, "value": value} for key, value in sorted(pairs)] or None)

    def _get_stores_by_label(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        try:
            patterns = [re.compile(request.first(name), re.IGNORECASE) for name in ("name", "value")]
        except re.error as error:
            return answer_json(f"error parsing regexp: {error}", 500)

        def is_wanted(store: metapb.Store) -> bool:
            return any(patterns[0].search(label.key) and patterns[1].search(label.value) for label in store.labels)

        return self._some(lead, is_wanted)

    def _get_progress(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        """How far the stores that leave have come. None here is ever prepared for long."""
        known = lead.departures.progress()
        if asked := request.first("id"):
            store_id = number(asked)
            if store_id is None:
                return bad_input(not_a_number(asked))
            chosen, named = (
                {key: each for key, each in known.items() if key == store_id},
                f"the given store ID: {asked}",
            )
        elif action := request.first("action"):
            chosen, named = known if "removing".startswith(action) else {}, f"the action: {action}"
        else:
            return answer_json("need query parameters", 400)
        if not chosen:
            return answer_json(f"[PD:progress:ErrProgressNotFound]no progress found for {named}", 404)
        count = len(chosen)
        view: dict[str, Json] = {"action": "removing"}
        if asked:
            view["store_id"] = store_id
        view["progress"] = sum(each.fraction for each in chosen.values()) / count
        view["current_speed"] = sum(each.speed for each in chosen.values()) / count
        view["left_seconds"] = min(FOREVER_S, sum(each.left_s / count for each in chosen.values()))
        return answer_json(view)

    # ---- leaving and coming back ----

    async def _remove_store(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        outcome = await self._remove(store_id_of(request), is_destroyed="force" in request.query)
        return _answer(outcome, "The store is set as Offline.")

    async def _remove(self, store_id: int, *, is_destroyed: bool) -> Outcome:
        removal = drillpb.PdStoreRemoval(
            store_id=store_id, physically_destroyed=is_destroyed, replicas=self._member.settings.replicas()
        )
        return await self._settle(drillpb.PdCommand(remove_store=removal))

    async def _set_state(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        store_id, state = store_id_of(request), request.first("state")
        if state.lower() == "up":
            outcome = await self._settle(drillpb.PdCommand(raise_store=store_id))
        elif state.lower() == "offline":
            outcome = await self._remove(store_id, is_destroyed=False)
        else:
            return answer_json(f"invalid state {state}", 400)
        return _answer(outcome, "The store's state is updated.")

    async def _remove_tombstones(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        dead = [store.id for store in self._cluster.stores.values() if store.state == metapb.Tombstone]
        outcomes = {each: await self._settle(drillpb.PdCommand(forget_store=each)) for each in sorted(dead)}
        kept = [str(store_id) for store_id, outcome in outcomes.items() if outcome.refusal is not None]
        if kept:
            return answer_json(f"failed stores: {', '.join(kept)}", 500)
        return answer_json("Remove tombstone successfully.")

    # ---- labels ----

    async def _set_labels(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        store_id = store_id_of(request)
        labels = _labels_of(read_object(request))
        store = self._known(store_id)
        if "force" not in request.query:
            labels = merged_labels(store.labels, labels)
        return await self._label(store_id, labels, "The store's label is updated.")

    async def _delete_label(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        store_id, key = store_id_of(request), read_json(request)
        if not isinstance(key, str):
            return bad_input("json: cannot unmarshal the body into Go value of type string")
        if mistake := label_mistake([metapb.StoreLabel(key=key)]):
            return bad_input(mistake)
        store = self._known(store_id)
        labels = [label for label in store.labels if label.key != key]
        if len(labels) == len(store.labels):
            return answer_json(f"the label key {key} does not exist", 500)
        return await self._label(store_id, labels, f"The label {key} is deleted for store {store_id}.")

    async def _label(self, store_id: int, labels: list[metapb.StoreLabel], done: str) -> HttpResponse:
        if mistake := self._strict_mistake(labels):
            return answer_json(mistake, 500)
        wanted = drillpb.PdStoreLabels(store_id=store_id, labels=labels)
        return _answer(await self._settle(drillpb.PdCommand(label_store=wanted)), done, failure=500)

    def _strict_mistake(self, labels: list[metapb.StoreLabel]) -> str:
        placing = self._member.settings.placing()
        return strict_mistake(labels, placing.location_labels) if placing.strictly_match_label else ""

    def _known(self, store_id: int) -> metapb.Store:
        store = self._cluster.stores.get(store_id)
        if store is None:
            message = f"[PD:cluster:ErrInvalidStoreID]invalid store id {store_id}, not found"
            raise Refused(answer_json(message, 500))
        return store

    # ---- weight and limits ----

    async def _set_weight(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        store_id, wanted = store_id_of(request), read_object(request)
        for kind in ("leader", "region"):
            if kind not in wanted:
                return answer_json(f"{kind} weight unset", 400)
        for kind in ("leader", "region"):
            if not _is_number(wanted[kind]) or wanted[kind] < 0:
                return answer_json(f"bad format {kind} weight", 400)
        weight = drillpb.PdStoreWeight(store_id=store_id, leader=wanted["leader"], region=wanted["region"])
        outcome = await self._settle(drillpb.PdCommand(weigh_store=weight))
        return _answer(outcome, "The store's weight is updated.", failure=500)

    def _get_limits(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        limits = config.store_limits(self._cluster)
        return answer_json({str(store_id): limits[store_id] for store_id in sorted(limits)})

    async def _set_limit(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        store_id = store_id_of(request)
        if store_id not in self._cluster.stores:
            return answer_json(f"{NOT_FOUND}store {store_id} not found", 500)
        limit = _limit_of(request)
        limit.store_id = store_id
        return _answer(await self._settle(drillpb.PdCommand(limit_store=limit)), "The store's limit is updated.")

    async def _set_limits(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        limit, labels = _limit_of(request), read_object(request).get("labels")
        wanted: set[tuple[str, str]] | None = None
        if labels is not None:
            if not isinstance(labels, dict):
                return bad_input("the labels have to be an object")
            wanted = {(label.key, label.value) for label in _labels_of(labels)}
        for store in list(self._cluster.stores.values()):
            has_it = wanted is None or any((label.key, label.value) in wanted for label in store.labels)
            if store.state != metapb.Tombstone and has_it:
                limit.store_id = store.id
                await self._settle(drillpb.PdCommand(limit_store=limit))
        return answer_json("Set store limit successfully.")


def _answer(outcome: Outcome, done: str, failure: int = 400) -> HttpResponse:
    if outcome.refusal is None:
        return answer_json(done)
    message = outcome.refusal.message
    if failure == 400:
        failure = 404 if message.startswith(NOT_FOUND) else 410 if message.startswith(REMOVED) else 400
    return answer_json(message, failure)


def _labels_of(wanted: dict[str, Json]) -> list[metapb.StoreLabel]:
    """Labels from a JSON object, if their form is right."""
    for value in wanted.values():
        if not isinstance(value, str):
            raise Refused(bad_input("json: cannot unmarshal a label into Go value of type string"))
    labels = [metapb.StoreLabel(key=key, value=value) for key, value in wanted.items()]
    if mistake := label_mistake(labels):
        raise Refused(bad_input(mistake))
    return labels


def _limit_of(request: HttpRequest) -> drillpb.PdStoreLimit:
    """Rate and kinds of a limit; a limit for a while only is not kept here, and refused."""
    wanted = read_object(request)
    if "rate" not in wanted:
        raise Refused(answer_json("rate unset", 400))
    if not _is_number(wanted["rate"]) or wanted["rate"] <= 0:
        raise Refused(answer_json("invalid rate which should be larger than 0", 400))
    kind = wanted.get("type")
    if kind is not None and not isinstance(kind, str):
        raise Refused(answer_json("bad format type", 400))
    if kind and kind not in LIMITS:
        raise Refused(answer_json("unknown type", 400))
    if request.first("ttlSecond"):
        raise Refused(answer_json("ttlSecond is not supported by the emulator", 400))
    kinds = LIMITS if kind is None else (kind or LIMITS[0],)
    return drillpb.PdStoreLimit(rate=wanted["rate"], add_peer="add-peer" in kinds, remove_peer="remove-peer" in kinds)


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
