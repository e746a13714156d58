"""Schedulers and checkers over HTTP: which there are, their settings, and pauses.

Rules: which schedulers there are, and what they work on, goes through the log, so that the next leader has the same.
Pauses are the leader's own, as in the real PD. Schedulers that the real one knows and this one does not are refused as
the real one refuses what it has no code for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from drillyard.emulator.http import HttpRequest, HttpResponse, error_response
from drillyard.emulator.pd import views
from drillyard.emulator.pd.leadership import Leadership
from drillyard.emulator.pd.placement import CHECKERS
from drillyard.emulator.pd.routes.answers import (
    NOT_BOOTSTRAPPED,
    V1,
    Answer,
    ClusterHandler,
    Handler,
    Room,
    Route,
    answer_json,
    bad_number,
    number,
    read_object,
)
from drillyard.emulator.pd.schedulers import ALL_KEYS, KINDS, LEADER_BATCH, PER_STORE, STATE_PREFIX, Condition, existing
from drillyard.emulator.pd.steps import SECOND_NS
from drillyard.wire import drillpb, metapb

Json = Any
NOT_FOUND = "[PD:scheduler:ErrSchedulerNotFound]scheduler not found"
EXISTED = "[PD:scheduler:ErrSchedulerExisted]scheduler existed"
APPLIED = "The scheduler has been applied to the store."
NO_CHECKER = "[PD:checker:ErrCheckerNotFound]checker not found"
MAX_BATCH = 10
LONGEST_PAUSE_S = 10**9  # thirty years; a time must be told that a calendar has
DIAGNOSED = ("balance-region-scheduler", "balance-leader-scheduler")
# Those of the real PD that are not emulated.
FOREIGN = {
    "balance-witness-scheduler",
    "transfer-witness-leader-scheduler",
    "evict-slow-trend-scheduler",
    "scatter-range",
    "random-merge-scheduler",
    "shuffle-hot-region-scheduler",
    "split-bucket-scheduler",
    "grant-hot-region-scheduler",
}
HOT_REGION: Json = {
    "min-hot-byte-rate": 100,
    "min-hot-key-rate": 10,
    "min-hot-query-rate": 10,
    "max-zombie-rounds": 3,
    "max-peer-number": 1000,
    "byte-rate-rank-step-ratio": 0.05,
    "key-rate-rank-step-ratio": 0.05,
    "query-rate-rank-step-ratio": 0.05,
    "count-rank-step-ratio": 0.01,
    "great-dec-ratio": 0.95,
    "minor-dec-ratio": 0.99,
    "src-tolerance-ratio": 1.05,
    "dst-tolerance-ratio": 1.05,
    "write-leader-priorities": ["query", "byte"],
    "write-peer-priorities": ["byte", "key"],
    "read-priorities": ["query", "byte"],
    "strict-picking-store": "true",
    "enable-for-tiflash": "true",
    "rank-formula-version": "v2",
    "split-thresholds": 0.2,
    "history-sample-duration": "5m0s",
    "history-sample-interval": "30s",
}


class SchedulerRoutes(Room):
    def routes(self) -> Sequence[Route]:
        config = f"{V1}/scheduler-config/{{name}}"
        return (
            Route("GET", f"{V1}/schedulers", cluster_handler=self._list),
            Route("POST", f"{V1}/schedulers", cluster_handler=self._add),
            Route("DELETE", f"{V1}/schedulers/{{name}}", cluster_handler=self._remove),
            Route("POST", f"{V1}/schedulers/{{name}}", cluster_handler=self._pause),
            Route("GET", f"{V1}/schedulers/diagnostic/{{name}}", cluster_handler=self._diagnose),
            Route("GET", f"{config}/list", handler=self._configured(self._get_config)),
            Route("POST", f"{config}/config", handler=self._configured(self._set_config)),
            Route("DELETE", f"{config}/delete/{{id}}", handler=self._configured(self._remove_store)),
            Route("GET", f"{V1}/checker/{{name}}", cluster_handler=self._get_checker),
            Route("POST", f"{V1}/checker/{{name}}", cluster_handler=self._pause_checker),
        )

    # ---- which there are ----

    def _list(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        names = list(existing(self._cluster.settings))
        status = request.first("status")
        if status == "disabled":
            return answer_json([])
        if status != "paused":
            return answer_json(names)
        now_ns = lead.clock.now_ns()
        spans = [(name, lead.placement.schedulers.pause_of(name, now_ns)) for name in names]
        paused = [(name, span) for name, span in spans if span is not None]
        if "timestamp" not in request.query:
            return answer_json([name for name, _ in paused])
        return answer_json(
            [
                {"name": name, "paused_at": views.timestamp(since), "resume_at": views.timestamp(until)}
                for name, (since, until) in paused
            ]
        )

    async def _add(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        wanted = read_object(request)
        name = wanted.get("name")
        if not isinstance(name, str):
            return answer_json("missing scheduler name", 400)
        if name in FOREIGN:
            kind = name.removesuffix("-scheduler")
            refusal = f"create func of {kind} is not registered"
            return answer_json(f"[PD:scheduler:ErrSchedulerCreateFuncNotRegistered]{refusal}", 500)
        if name not in KINDS:
            return answer_json("unknown scheduler", 400)
        known = existing(self._cluster.settings).get(name)
        if name in PER_STORE:
            return await self._add_store(name, wanted, known)
        if known is not None:
            return answer_json(EXISTED, 500)
        await self._agree(name, {})
        return answer_json("The scheduler is created.")

    async def _add_store(self, name: str, wanted: dict[str, Json], known: Json) -> HttpResponse:
        store_id = wanted.get("store_id")
        if isinstance(store_id, bool) or not isinstance(store_id, int | float) or not 0 <= store_id < 1 << 64:
            return answer_json("missing store id", 400)
        key = str(int(store_id))
        stores = dict((known or {}).get("store-id-ranges", {}))
        if key not in stores:
            if refusal := self._no_pause(int(store_id)):
                return answer_json(refusal, 500)
            stores[key] = [ALL_KEYS]
            await self._agree(name, {"store-id-ranges": stores})
        return answer_json("The scheduler is created." if known is None else APPLIED)

    def _no_pause(self, store_id: int) -> str:
        """Why leaders cannot be kept away from a store."""
        store = self._cluster.stores.get(store_id)
        if store is None or store.state == metapb.Tombstone:
            return f"[PD:core:ErrStoreNotFound]store {store_id} not found"
        held = [existing(self._cluster.settings).get(name) or {} for name in PER_STORE]
        if any(str(store_id) in each.get("store-id-ranges", {}) for each in held):
            return f"[PD:core:ErrPauseLeaderTransfer]store {store_id} is paused for leader transfer"
        return ""

    async def _remove(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        name = request.params["name"]
        for of_stores in PER_STORE:
            if name.startswith(f"{of_stores}-"):
                removed = await self._drop_store(of_stores, name.removeprefix(f"{of_stores}-"))
                return answer_json(None, removed.status)
        if name not in existing(self._cluster.settings):
            return answer_json(NOT_FOUND, 404)
        await self._agree(name, None)
        return answer_json("The scheduler is removed.")

    async def _remove_store(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        return await self._drop_store(request.params["name"], request.params["id"])

    async def _drop_store(self, name: str, text: str) -> HttpResponse:
        known = existing(self._cluster.settings).get(name)
        if name not in PER_STORE or known is None:
            return error_response("404 page not found", 404)
        if number(text) is None:
            return bad_number(text)
        stores = dict(known.get("store-id-ranges", {}))
        if text not in stores:
            return answer_json("[PD:scheduler:ErrScheduleConfigNotExist]the config does not exist", 404)
        del stores[text]
        await self._agree(name, {"store-id-ranges": stores} if stores else None)
        return answer_json(None if stores else "The last store has been deleted")

    async def _agree(self, name: str, args: Json) -> None:
        """Brings a scheduler's state into the log; none means that there is no such scheduler."""
        setting = drillpb.PdSetting(key=f"{STATE_PREFIX}{name}", value=json.dumps(args))
        await self._settle(drillpb.PdCommand(setting=setting))

    # ---- pauses ----

    def _pause(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        wanted, name = read_object(request), request.params["name"]
        delay = wanted.get("delay")
        if isinstance(delay, bool) or not isinstance(delay, int):
            return answer_json("missing pause time", 400)
        names = list(existing(self._cluster.settings))
        if name != "all" and name not in names:
            return answer_json(NOT_FOUND, 500)
        for each in names if name == "all" else [name]:
            lead.placement.schedulers.pause(each, lead.clock.now_ns(), min(delay, LONGEST_PAUSE_S))
        return answer_json("Pause or resume the scheduler successfully.")

    def _get_checker(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        name = request.params["name"]
        if name not in CHECKERS:
            return answer_json(NO_CHECKER, 500)
        return answer_json({"paused": lead.placement.is_checker_paused(name, lead.clock.now_ns())})

    def _pause_checker(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        wanted, name = read_object(request), request.params["name"]
        delay = wanted.get("delay")
        if isinstance(delay, bool) or not isinstance(delay, int):
            return answer_json("missing pause time", 400)
        if delay < 0:
            return answer_json("delay cannot be negative", 400)
        if name not in CHECKERS:
            return answer_json(NO_CHECKER, 500)
        lead.placement.pause_checker(name, lead.clock.now_ns(), delay)
        return answer_json(f"{'Pause' if delay else 'Resume'} the checker successfully.")

    # ---- what they are at ----

    def _diagnose(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        """A scheduler's state in a word, with what holds it back if that is a limit."""
        name, now_ns = request.params["name"], lead.clock.now_ns()
        if name not in DIAGNOSED:
            return answer_json(f"[PD:diagnostic:ErrSchedulerUndiagnosable]{name} hasn't supported diagnostic", 500)
        condition = lead.placement.condition_of(name, now_ns)
        if condition is None:
            return answer_json(f"[PD:diagnostic:ErrNoDiagnosticResult]{name} has no diagnostic result", 500)
        summary = f"{name} reach limit" if condition is Condition.PENDING else ""
        return answer_json(
            {"name": name, "status": condition.value, "summary": summary, "timestamp": now_ns // SECOND_NS}
        )

    # ---- their own settings ----

    def _configured(self, handler: ClusterHandler) -> Handler:
        """The handlers under `scheduler-config` are the schedulers' own, and say in another way that there is none."""

        def answer(request: HttpRequest) -> Answer:
            lead = self._member.lead
            if lead is None or not self._cluster.bootstrapped:
                return answer_json(NOT_BOOTSTRAPPED, 406)
            return handler(request, lead)

        return answer

    def _get_config(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        name = request.params["name"]
        args = existing(self._cluster.settings).get(name)
        if args is None:
            return error_response("404 page not found", 404)
        if name in PER_STORE:
            return answer_json({"store-id-ranges": args["store-id-ranges"]})
        if name == "balance-leader-scheduler":
            return answer_json({"ranges": [ALL_KEYS], "batch": args.get("batch", LEADER_BATCH)})
        if name == "balance-hot-region-scheduler":
            return answer_json(HOT_REGION)
        if name == "shuffle-region-scheduler":
            return answer_json({"roles": ["leader", "follower", "learner"], "ranges": [ALL_KEYS]})
        return HttpResponse(200, b"not implements", "text/plain; charset=utf-8")

    async def _set_config(self, request: HttpRequest, lead: Leadership) -> HttpResponse:
        wanted, name = read_object(request), request.params["name"]
        args = existing(self._cluster.settings).get(name)
        if args is None or name not in (*PER_STORE, "balance-leader-scheduler"):
            return error_response("404 page not found", 404)
        if name in PER_STORE:
            answer = await self._add_store(name, wanted, args)
            return answer if answer.status != 200 else answer_json(APPLIED)
        batch = wanted.get("batch")
        if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= MAX_BATCH:
            return answer_json("invalid batch size which should be an integer between 1 and 10", 400)
        if batch == args.get("batch", LEADER_BATCH):
            return answer_json("Config is the same with origin, so do nothing.")
        await self._agree(name, {"batch": batch})
        return answer_json("Config is updated.")
