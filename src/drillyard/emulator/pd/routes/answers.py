"""How PD answers over HTTP: JSON as the real one writes it, its errors, and what every room of routes is built on.

Rules: a `Route` says whether it needs a bootstrapped cluster; `PdHttp` sees to that, and to who answers. A room is a
class that gives its routes. A command is answered when it is settled, and a lost lead is an answer of its own.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from drillyard.emulator.http import HttpRequest, HttpResponse
from drillyard.emulator.pd.cluster import Cluster
from drillyard.emulator.pd.consensus import Undetermined
from drillyard.emulator.pd.leadership import Leadership
from drillyard.emulator.pd.member import PdMember
from drillyard.emulator.pd.outcomes import Outcome
from drillyard.emulator.pd.routes.go import NoJson, json_kind, json_of, quoted, wrong_kind
from drillyard.emulator.pd.views import Json, go_json
from drillyard.emulator.raft.types import ProposalDropped
from drillyard.wire import drillpb

V1 = "/pd/api/v1"
NOT_BOOTSTRAPPED = "[PD:cluster:ErrNotBootstrapped]TiKV cluster not bootstrapped, please start TiKV first"
JSON_TYPE = "application/json; charset=UTF-8"
BYTES_TYPE = "application/octet-stream"
Answer = HttpResponse | Awaitable[HttpResponse]
Handler = Callable[[HttpRequest], Answer]
ClusterHandler = Callable[[HttpRequest, Leadership], Answer]


class Route(Struct, frozen=True):
    """One path. `handler` serves without a cluster, `cluster_handler` only once there is one."""

    method: str
    pattern: str
    handler: Handler | None = None
    cluster_handler: ClusterHandler | None = None


class Refused(Exception):
    """A request that ends with this answer, from wherever it was found out."""

    def __init__(self, response: HttpResponse) -> None:
        super().__init__(str(response.status))
        self.response = response


class Room:
    """Some of PD's paths."""

    def __init__(self, member: PdMember) -> None:
        self._member = member

    def routes(self) -> Sequence[Route]:
        raise NotImplementedError

    @property
    def _cluster(self) -> Cluster:
        return self._member.consensus.cluster

    async def _settle(self, command: drillpb.PdCommand) -> Outcome:
        """What became of a command; `Refused` if the lead was lost on the way."""
        try:
            return await self._member.consensus.submit(command)
        except (ProposalDropped, Undetermined) as error:
            raise Refused(answer_json(f"not leader: {error}", 500)) from error


def answer_json(value: Json, status: int = 200) -> HttpResponse:
    return HttpResponse(status, go_json(value), JSON_TYPE)


def answer_compact(value: Json) -> HttpResponse:
    return HttpResponse(200, go_json(value, indent=False), BYTES_TYPE)


def read_json(request: HttpRequest) -> Json:
    """The JSON of a body; `Refused` if it is none."""
    try:
        return json_of(request.body)
    except NoJson as error:
        raise Refused(bad_input(error.mistake.message, {"Offset": error.mistake.offset})) from error


def read_object(request: HttpRequest) -> dict[str, Json]:
    """A body that has to be a JSON object."""
    value = read_json(request)
    if not isinstance(value, dict):
        text = request.body.decode("utf-8", "replace").rstrip()
        offset = 1 + len(text) - len(text.lstrip()) if isinstance(value, list) else len(text)
        data = {"Value": json_kind(value), "Type": {}, "Offset": offset, "Struct": "", "Field": ""}
        raise Refused(bad_input(wrong_kind(value), data))
    return value


def bad_input(message: str, data: Json = None) -> HttpResponse:
    """A mistake in a path or body, in the shape that PD gives coded errors."""
    shaped = answer_json({"code": "input", "msg": message, "data": data or {}}, 400)
    return HttpResponse(shaped.status, shaped.body, shaped.content_type, (("TiDB-Error-Code", "input"),))


def store_id_of(request: HttpRequest) -> int:
    """The id in a path that names a store."""
    store_id = number(request.params["id"])
    if store_id is None:
        raise Refused(bad_input(not_a_number(request.params["id"])))
    return store_id


def number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and int(text) < 1 << 64 else None


def not_a_number(text: str) -> str:
    return f"strconv.ParseUint: parsing {json.dumps(text)}: invalid syntax"


def bad_number(text: str) -> HttpResponse:
    return answer_json(not_a_number(text), 400)


def bad_count(text: str) -> HttpResponse:
    """Go has two readers of numbers, and PD uses both: this is how the other one complains."""
    return answer_json(f"strconv.Atoi: parsing {json.dumps(text)}: invalid syntax", 400)


def bytes_of_hex(text: str) -> bytes:
    """The bytes of a key in hex; ValueError in the words of Go's decoder."""
    wrong = next((letter for letter in text if letter not in "0123456789abcdefABCDEF"), None)
    if wrong is not None:
        raise ValueError(f"encoding/hex: invalid byte: U+{ord(wrong):04X} {quoted(wrong)}")
    if len(text) % 2:
        raise ValueError("encoding/hex: odd length hex string")
    return bytes.fromhex(text)
