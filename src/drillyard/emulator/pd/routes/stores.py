"""Stores over HTTP: their views.

Rules: a path names a store by its id; what is no id is bad input, and an id of no store is said in PD's words.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from drillyard.emulator.http import HttpRequest, HttpResponse
from drillyard.emulator.pd import config, views
from drillyard.emulator.pd.leadership import Leadership
from drillyard.emulator.pd.routes.answers import V1, Room, Route, answer_json, bad_input, not_a_number, number

STORE_STATES = {"up", "disconnected", "down", "offline", "tombstone"}


class StoreRoutes(Room):
    def routes(self) -> Sequence[Route]:
        return (
            Route("GET", f"{V1}/stores", cluster_handler=self._get_stores),
            Route("GET", f"{V1}/stores/limit", cluster_handler=self._get_store_limits),
            Route("GET", f"{V1}/stores/check", cluster_handler=self._get_stores_in_state),
            Route("GET", f"{V1}/store/{{id}}", cluster_handler=self._get_store),
            Route("GET", f"{V1}/labels", cluster_handler=self._get_labels),
        )

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
        return answer_json(self._stores(lead).all({int(state) for state in asked}))

    def _get_store(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        store_id = number(request.params["id"])
        if store_id is None:
            return bad_input(not_a_number(request.params["id"]))
        store = self._cluster.stores.get(store_id)
        if store is None:
            return answer_json(f"[PD:core:ErrStoreNotFound]store {store_id} not found", 404)
        return answer_json(self._stores(lead).one(store))

    def _get_store_limits(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        return answer_json(config.schedule(self._member.settings, sorted(self._cluster.stores))["store-limit"])

    def _get_labels(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        pairs = {(label.key, label.value) for store in self._cluster.stores.values() for label in store.labels}
        return answer_json([{"key": key, "value": value} for key, value in sorted(pairs)] or None)

    def _get_stores_in_state(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        wanted = {state.lower() for state in request.query.get("state", []) if state}
        if unknown := wanted - STORE_STATES:
            return answer_json(f"unknown StoreState: {unknown.pop()}", 400)
        stores = [store for _, store in sorted(self._cluster.stores.items())]
        shown = self._stores(lead)
        kept = [store for store in stores if not wanted or shown.state_of(store).lower() in wanted]
        return answer_json({"count": len(kept), "stores": [shown.one(store) for store in kept]})
