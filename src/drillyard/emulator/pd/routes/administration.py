"""An administrator's paths: the log level, and the removal of failed stores, which the emulator does not have.

Rules: the log level is this member's alone and lasts until it ends. Removal of failed stores is checked as PD checks
it and then refused by name: stores of the emulator make no recovery reports, and a promise to recover would be false.
"""

from __future__ import annotations

from collections.abc import Sequence

from drillyard.emulator.http import HttpRequest, HttpResponse
from drillyard.emulator.pd.leadership import Leadership
from drillyard.emulator.pd.routes.answers import V1, Room, Route, answer_json, read_object
from drillyard.emulator.pd.routes.go import NoJson, json_of
from drillyard.emulator.pd.settings import LEGAL_LEVELS
from drillyard.emulator.pd.views import Json

INVALID = "[PD:unsaferecovery:ErrUnsafeRecoveryInvalidInput]invalid input "
UNSUPPORTED = "unsafe recovery is not supported by the emulator: nothing was changed"


class AdminRoutes(Room):
    def routes(self) -> Sequence[Route]:
        unsafe = f"{V1}/admin/unsafe/remove-failed-stores"
        return (
            Route("POST", f"{V1}/admin/log", self._set_log_level),
            Route("POST", unsafe, cluster_handler=self._remove_failed),
            Route("GET", f"{unsafe}/show", cluster_handler=self._show_removal),
        )

    def _set_log_level(self, request: HttpRequest) -> HttpResponse:
        try:
            level = json_of(request.body)
        except NoJson as error:
            return answer_json(error.mistake.message, 400)
        if not isinstance(level, str) or level.lower() not in LEGAL_LEVELS:
            return answer_json(f"log level {level} is illegal", 400)
        self._member.set_log_level(level.lower())
        return answer_json("The log level is updated.")

    def _remove_failed(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        wanted = read_object(request)
        if wanted.get("auto-detect") is not True:
            stores = wanted.get("stores")
            if not isinstance(stores, list) or not all(_is_id(each) for each in stores):
                return answer_json("Store ids are invalid", 400)
            if not stores:
                return answer_json(f"{INVALID}no store specified", 500)
            for store_id in stores:
                store = self._cluster.stores.get(store_id)
                if store is None:
                    return answer_json(f"{INVALID}store {store_id} doesn't exist", 500)
                if lead.state_of(store) == "Up":
                    return answer_json(f"{INVALID}store {store_id} is up and connected", 500)
        return answer_json(UNSUPPORTED, 500)

    def _show_removal(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        return answer_json([{"info": "No on-going recovery."}])


def _is_id(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
