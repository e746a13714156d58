"""The command line. It translates words into calls of the Python API and records into text or JSON, nothing more.

Rules: results go to stdout and errors to stderr; `--json` puts exactly one document on stdout (`logs -f`: one a line);
every way to end has its documented exit code (`faces/exits.py`), which a command returns. Imported at the start: Click
and nothing of ours, so that help comes at once.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from drillyard.faces.api import Yard
    from drillyard.faces.runner import Command

F = TypeVar("F", bound="Callable[..., Any]")

EXIT_CODES = """Exit codes: 0 done and proven; 1 a fault in drillyard; 2 bad input; 3 could not start; 4 not ready
(in time); 5 a member ended during the wait; 6 something is left after down; 7 a program of others could not do
something; 130 interrupted; 143 terminated."""
DEFAULT = "default"


def _option(*names: str, help: str, metavar: str | None = None, **more: Any) -> Callable[[F], F]:
    """An option with a value, or without `metavar` a flag."""
    return click.option(*names, help=help, metavar=metavar, is_flag=metavar is None, **more)


def _together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Options that go together, in this order in the help."""

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


name_option = _option("--name", "-n", help="The deployment.", metavar="NAME", default=DEFAULT)
new_name_option = _option("--name", "-n", help="Its name; chosen if left out.", metavar="NAME")
json_option = _option("--json", "as_json", help="One JSON document on stdout.")
member_argument = click.argument("member", metavar="MEMBER")


def _timeout_option(field: str) -> Callable[[F], F]:
    return _option("--timeout", field, help="How long to wait for all gates.", metavar="SECONDS", default=60.0)


# The names are the fields of `faces.api.Wanted`.
shape_options = _together(
    _option("--pd", help="How many PD members (3).", metavar="N", type=int),
    _option("--tikv", help="How many TiKV members (3).", metavar="N", type=int),
    _option("--topology", help="A topology in TOML.", metavar="FILE"),
    _option("--profile", help="Timings: laptop or upstream.", metavar="NAME"),
)
wanted_options = _together(
    shape_options,
    _option("--pd-binary", help="A real pd-server to run.", metavar="FILE"),
    _option("--tikv-binary", help="A real tikv-server to run.", metavar="FILE"),
    _option("--runtime", help="What runs it: local or compose.", metavar="NAME"),
    _option("--version", help="compose: the release of both images.", metavar="TAG"),
    _option("--pd-image", help="compose: the image of PD.", metavar="IMAGE"),
    _option("--tikv-image", help="compose: the image of TiKV.", metavar="IMAGE"),
    _timeout_option("timeout_s"),
)
measure_options = _together(
    _option("--measure", help="Measure the outage that it causes, as clients see it."),
    _option("--timeout", help="With --measure: how long the service may be away (60).", metavar="SECONDS", type=float),
    _option(
        "--watch", help="With --measure: how long to wait for PD to notice too (0).", metavar="SECONDS", type=float
    ),
)


class _InOrder(click.Group):
    """Its commands stand in the help in the order in which they are defined, those that are used first come first."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrder,
    name="drillyard",
    help="A TiKV cluster on one machine: started with one command, proven healthy from outside.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True},
)
def app() -> None:
    pass


@app.command()
@name_option
@wanted_options
@json_option
def up(name: str, as_json: bool, **wanted: Any) -> int:
    """Bring a deployment up and wait until it is proven. One that runs already is proven only."""
    from drillyard.faces import console, document, exits
    from drillyard.faces.api import Wanted

    command, yard = _begin("up", as_json, is_long=True)

    async def work() -> int:
        report = await yard.up(Wanted(**wanted), name)
        trouble = report.trouble

        def show() -> None:
            if trouble is not None:
                console.show_trouble(trouble)
                return
            console.show_survivability(report.survivability)
            console.show_ready(report)

        return command.end(exits.OF_ENDING[report.ending], show, trouble, report=document.of_report(report))

    return _finish(command, work)


@app.command()
@name_option
@_option("--wait", help="Wait until it is ready.")
@_timeout_option("timeout")
@json_option
def verify(name: str, wait: bool, timeout: float, as_json: bool) -> int:
    """Judge a deployment from outside, by the six gates."""
    from drillyard.faces import console, document, exits

    command, yard = _begin("verify", as_json, is_long=wait)

    async def work() -> int:
        report = await yard.cluster(name).verify(timeout if wait else None)
        trouble = report.trouble

        def show() -> None:
            is_down = trouble is not None and trouble.is_down
            if not (command.listener.has_drawn or is_down):
                console.show_report(report)
            elif not is_down:
                console.show_survivability(report.survivability)
            if trouble is None:
                console.show_ready(report)
            else:
                console.show_trouble(trouble)

        return command.end(exits.OF_ENDING[report.ending], show, trouble, report=document.of_report(report))

    return _finish(command, work)


@app.command()
@name_option
@json_option
def diagnose(name: str, as_json: bool) -> int:
    """Look at everything once, say what is wrong, and save it all as evidence with a page to read."""
    from drillyard.faces import console, document, exits

    command, yard = _begin("diagnose", as_json)

    async def work() -> int:
        diagnosis = await yard.cluster(name).diagnose()
        trouble, parts = diagnosis.report.trouble, document.of_diagnosis(diagnosis)
        exit_code = exits.OF_ENDING[diagnosis.report.ending]
        if trouble is None and diagnosis.page is None:
            exit_code = exits.COULD_NOT_START
            parts["error"] = document.of_error("could-not-start", diagnosis.evidence, console.NO_EVIDENCE_MEND)
        return command.end(exit_code, lambda: console.show_diagnosis(diagnosis), trouble, **parts)

    return _finish(command, work)


@app.command()
@new_name_option
@wanted_options
@json_option
def prove(name: str | None, as_json: bool, **wanted: Any) -> int:
    """The whole procedure: a new deployment up, proven, and down with nothing left. One exit code."""
    from drillyard.faces import console, document, exits
    from drillyard.faces.api import Wanted

    command, yard = _begin("prove", as_json, is_long=True)

    async def work() -> int:
        proof = await yard.prove(Wanted(**wanted), name)
        trouble = proof.report.trouble

        def show() -> None:
            if not command.listener.has_drawn:
                console.show_report(proof.report)
            if trouble is not None:
                console.show_trouble(trouble)
            if proof.down is not None:
                console.show_down(proof.down)
            console.show_proof(proof)

        return command.end(exits.OF_ENDING[proof.ending], show, trouble, **document.of_proof(proof))

    return _finish(command, work)


@app.command()
@name_option
@json_option
def status(name: str, as_json: bool) -> int:
    """How the members of a deployment are, by the word of what runs them, and how many may still fail."""
    from drillyard.faces import console, document, exits

    command, yard = _begin("status", as_json)

    async def work() -> int:
        standing = await yard.cluster(name).status()

        def show() -> None:
            console.show_standings([standing])
            console.show_members(standing.members)
            console.show_survivability(standing.survivability)

        return command.end(exits.OK, show, deployment=document.of_standing(standing))

    return _finish(command, work)


@app.command("list")
@json_option
def list_(as_json: bool) -> int:
    """Every deployment there is."""
    from drillyard.faces import console, document, exits

    command, yard = _begin("list", as_json)

    async def work() -> int:
        listing = await yard.list()

        def show() -> None:
            console.show_standings(listing.standings)
            for name in listing.unreadable:
                mend = console.as_called(f"`drillyard down --delete-data --name {name}` removes it")
                console.say(f"{name:<20} its plan is damaged; {mend}")
            for name, why in listing.unreachable:
                console.say(f"{name:<20} cannot be asked: {why}")

        parts = {
            "deployments": [document.of_standing(one) for one in listing.standings],
            "unreadable": list(listing.unreadable),
            "unreachable": [{"deployment": name, "why": why} for name, why in listing.unreachable],
        }
        return command.end(exits.OK, show, **parts)

    return _finish(command, work)


@app.command()
@click.argument("member", metavar="[MEMBER]", required=False)
@name_option
@_option("--follow", "-f", help="Go on with every new line.")
@_option("--lines", help="How many last lines of each file.", metavar="N", type=click.IntRange(min=0), default=100)
@json_option
def logs(member: str | None, name: str, follow: bool, lines: int, as_json: bool) -> int:
    """The last lines of the members' logs, or of one member's."""
    import json

    from drillyard.faces import console, document, exits
    from drillyard.faces.runner import while_read
    from drillyard.flows.inspect import LogLine

    command, yard = _begin("logs", as_json)
    command.is_endless = follow
    cluster = yard.cluster(name)

    def say(line: LogLine) -> bool:
        text = line.text if member is not None else f"{line.member:<8} {line.text}"
        return console.say(json.dumps(document.of_line(line)) if as_json else text)

    async def go_on(found: Iterable[LogLine]) -> None:
        for line in found:
            if not say(line):
                return
        async for line in cluster.follow(member):
            if not say(line):
                return

    async def work() -> int:
        found = await cluster.logs(member, lines)
        if follow:
            await while_read(go_on(found))
            return exits.OK

        def show() -> None:
            for line in found:
                if not say(line):
                    return

        return command.end(exits.OK, show, lines=[document.of_line(line) for line in found])

    return _finish(command, work)


@app.command()
@name_option
@_option("--hosts", help="Only lines for /etc/hosts.")
@json_option
def connect(name: str, hosts: bool, as_json: bool) -> int:
    """Where clients connect: the PD endpoints, separated by commas."""
    from drillyard.faces import console, document, exits

    command, yard = _begin("connect", as_json)

    async def work() -> int:
        connection = await yard.cluster(name).connection()
        standing = connection.standing
        parts = {
            "pd_endpoints": list(standing.pd_endpoints),
            "deployment": document.of_standing(standing),
            "network": document.of_network(connection),
        }
        return command.end(exits.OK, lambda: console.show_connection(connection, only_hosts=hosts), **parts)

    return _finish(command, work)


@app.command()
@click.argument("project", metavar="PROJECT")
@new_name_option
@json_option
def adopt(project: str, name: str | None, as_json: bool) -> int:
    """Take a cluster that was started with plain `docker compose` as a deployment."""
    from drillyard.faces import console, document, exits

    command, yard = _begin("adopt", as_json)

    async def work() -> int:
        standing = await yard.adopt(project, name or project)

        def show() -> None:
            console.show_standings([standing])
            console.show_members(standing.members)

        return command.end(exits.OK, show, deployment=document.of_standing(standing))

    return _finish(command, work)


@app.group(no_args_is_help=True, help="Print the files that other programs take.")
def render() -> None:
    pass


@render.command("compose")
@shape_options
def render_compose(**shape: Any) -> int:
    """The Compose file of a topology, for plain `docker compose`."""
    from drillyard.faces import api, console, exits
    from drillyard.faces.runner import Command

    command = Command("render", False)

    async def work() -> int:
        text = api.render_compose(api.Wanted(runtime="compose", **shape))
        return command.end(exits.OK, lambda: console.say(text.rstrip("\n")))

    return _finish(command, work)


@app.command()
@name_option
@_option("--delete-data", help="Delete its data and logs too.")
@json_option
def down(name: str, delete_data: bool, as_json: bool) -> int:
    """Stop a deployment and prove that nothing of it is left. Data stays unless told otherwise."""
    from drillyard.faces import console, document, exits

    command, yard = _begin("down", as_json)

    async def work() -> int:
        report = await yard.cluster(name).down(delete_data=delete_data)
        exit_code = exits.OK if report.is_clean else exits.NOT_CLEAN
        return command.end(exit_code, lambda: console.show_down(report), down=document.of_down(report))

    return _finish(command, work)


@app.command()
@name_option
@_option("--delete-data", help="Say that all keys may go.")
@_timeout_option("timeout")
@json_option
def reset(name: str, delete_data: bool, timeout: float, as_json: bool) -> int:
    """Make a running deployment as new: every member back, every key deleted, all gates open."""
    from drillyard.faces import console, document, exits

    command, yard = _begin("reset", as_json, is_long=True)
    if not delete_data:
        wrong = f"a reset deletes every key of deployment {name!r}"
        return command.refuse(exits.BAD_INPUT, "bad-input", (wrong, "say so with --delete-data"))

    async def work() -> int:
        done = await yard.cluster(name).reset(timeout)
        trouble = done.report.trouble

        def show() -> None:
            if trouble is not None:
                console.show_trouble(trouble)
            else:
                console.show_reset(done)

        return command.end(exits.OF_ENDING[done.ending], show, trouble, **document.of_reset(done))

    return _finish(command, work)


@app.command()
@member_argument
@name_option
@json_option
def start(member: str, name: str, as_json: bool) -> int:
    """Start a member that does not run."""
    return _operate("start", member, name, as_json)


@app.command()
@member_argument
@name_option
@measure_options
@json_option
def stop(member: str, name: str, as_json: bool, **ruled: Any) -> int:
    """Stop a member in good order (SIGTERM)."""
    return _operate("stop", member, name, as_json, _Ruled(**ruled))


@app.command()
@member_argument
@name_option
@measure_options
@json_option
def restart(member: str, name: str, as_json: bool, **ruled: Any) -> int:
    """Stop a member and start it again."""
    return _operate("restart", member, name, as_json, _Ruled(**ruled))


@app.command()
@member_argument
@name_option
@measure_options
@json_option
def kill(member: str, name: str, as_json: bool, **ruled: Any) -> int:
    """End a member at once (SIGKILL)."""
    return _operate("kill", member, name, as_json, _Ruled(**ruled))


@app.command()
@member_argument
@name_option
@measure_options
@json_option
def pause(member: str, name: str, as_json: bool, **ruled: Any) -> int:
    """Freeze a member (SIGSTOP): it keeps its connections and answers nothing."""
    return _operate("pause", member, name, as_json, _Ruled(**ruled))


@app.command()
@member_argument
@name_option
@json_option
def resume(member: str, name: str, as_json: bool) -> int:
    """Let a paused member go on (SIGCONT)."""
    return _operate("resume", member, name, as_json)


@app.command()
@_option("--seed", help="One seed, with its tale.", metavar="N", type=click.IntRange(min=0))
@_option("--seeds", help="All seeds of a range.", metavar="A..B")
@_option("--minutes", help="Seeds that nobody has tried, for so long.", metavar="MINUTES", type=float)
@_option("--stores", help="Of each cluster (3 to 5, drawn by the seed).", metavar="N", type=click.IntRange(3, 5))
@_option("--jobs", help="Processes (one a core).", metavar="N", type=click.IntRange(min=0), default=0)
@json_option
def sim(as_json: bool, **ordered: Any) -> int:
    """Simulate whole emulated clusters on virtual time, with everything against them, and judge what clients saw."""
    from drillyard.faces import console, document, exits
    from drillyard.faces.runner import Command, run
    from drillyard.flows import simulate as flow
    from drillyard.waiting import Clock

    command = Command("sim", as_json, is_long=True, has_picture=False)
    progress = console.Progress(as_json or ordered["seed"] is not None)

    async def work() -> int:
        order = flow.order_of(**ordered)
        report = await flow.simulate(order, Clock(), lambda report: progress.see(flow.progress_of(report)))
        code = exits.OK if report.has_passed else exits.FAULT

        def show() -> None:
            for line in flow.lines_of(report):
                console.say(console.as_called(line))

        return command.end(code, show, simulation=document.of_simulation(report))

    return run(command, work)


@app.command()
@_option("--report", help="Write the table as a page.", metavar="FILE")
@_option("--complete", help="What was not run counts as failed, as in a CI job.")
@json_option
def conformance(report: str | None, complete: bool, as_json: bool) -> int:
    """Run official clients, pd-ctl and a real PD on emulated clusters, and tell in one table what they could do.

    What is not on this machine is told with the mend. The clusters are made for the run and gone after it.
    """
    from drillyard.faces import console, document, exits

    command, yard = _begin("conformance", as_json, is_long=True, has_picture=False)

    async def work() -> int:
        found = await yard.conformance(report)
        is_good = found.has_passed and (found.is_complete or not complete)
        exit_code = exits.OK if is_good else exits.NOT_CONFORMANT
        return command.end(exit_code, lambda: console.say(found.summary), conformance=document.of_conformance(found))

    return _finish(command, work)


@app.command()
@json_option
def version(as_json: bool) -> int:
    """The version of drillyard and of its Python."""
    from drillyard import __version__
    from drillyard.faces import console, exits
    from drillyard.faces.runner import Command

    command = Command("version", as_json)
    text = f"drillyard {__version__}, Python {sys.version.split()[0]}"
    return command.end(exits.OK, lambda: console.say(text), version=__version__)


class _Ruled(NamedTuple):
    """How an operation is to be measured, if it is."""

    measure: bool = False
    timeout: float | None = None
    watch: float | None = None


def _operate(do: str, member: str, name: str, as_json: bool, ruled: _Ruled = _Ruled()) -> int:  # noqa: B008
    from drillyard.faces import console, document, exits
    from drillyard.flows.operate import Operation

    if ruled.measure:
        return _measure(do, member, name, as_json, ruled)
    for option in ("timeout", "watch"):
        if getattr(ruled, option) is not None:
            raise click.BadParameter("it goes with --measure", param_hint=f"--{option}")
    command, yard = _begin(do, as_json)

    async def work() -> int:
        row = await yard.cluster(name).operate(Operation(do), member)
        return command.end(exits.OK, lambda: console.show_members([row]), member=document.of_member(row))

    return _finish(command, work)


def _measure(do: str, member: str, name: str, as_json: bool, ruled: _Ruled) -> int:
    from drillyard.faces import console, document, exits
    from drillyard.flows.measure import lines_of
    from drillyard.flows.up import TIMEOUT_S

    command, yard = _begin(do, as_json, is_long=True, has_picture=False)
    timeout_s = TIMEOUT_S if ruled.timeout is None else ruled.timeout

    async def work() -> int:
        cluster = yard.cluster(name)
        report = await cluster.measure(do, member, timeout_s=timeout_s, watch_s=ruled.watch or 0.0)
        parts = {"member": document.of_member(report.row), "outage": document.of_outages(report)}
        trouble = report.trouble

        def show() -> None:
            console.show_members([report.row])
            for line in lines_of(report):
                console.say(line)
            if trouble is not None:
                console.show_trouble(trouble)

        return command.end(exits.OF_ENDING[report.ending], show, trouble, **parts)

    return _finish(command, work)


def _begin(command: str, as_json: bool, *, is_long: bool = False, has_picture: bool = True) -> tuple[Command, Yard]:
    from drillyard.faces.api import Yard
    from drillyard.faces.runner import Command

    begun = Command(command, as_json, is_long, has_picture)
    return begun, Yard(listener=begun.listener)


def _finish(command: Command, work: Callable[[], Awaitable[int]]) -> int:
    from drillyard.faces.runner import run

    return run(command, work)


def main() -> None:
    """The entry point. Misuse of the command line itself is told here; everything else by the runner."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # logs may hold what the terminal cannot show
    try:
        code = app(prog_name=os.environ.get("DRILLYARD_CALLED_AS") or "drillyard", standalone_mode=False)
    except click.ClickException as error:
        code = _misused(error)
    except (click.Abort, KeyboardInterrupt):
        code = 130
    _leave(code or 0)


def _leave(code: int) -> NoReturn:
    """Ends the process without the interpreter's own cleaning up, a sixth of what a command costs."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody takes the output: the interpreter tells that in its own way
        sys.exit(code)
    os._exit(code)


def _misused(error: Any) -> int:
    """Tell a command line that cannot be read; a bare command asks for its help, which is no error."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message())
        return 0
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "drillyard"
    mend = _mend(error.format_message(), path)
    if "--json" in sys.argv[1:]:
        import json

        told = {"kind": "bad-input", "text": error.format_message(), "mend": mend}
        command = (context.info_name or "") if context is not None and context.parent is not None else "drillyard"
        print(json.dumps({"format": 1, "command": command, "ok": False, "exit_code": 2, "error": told}))
    else:
        print(f"error: {error.format_message()}\n  mend: {mend}", file=sys.stderr)
    return 2


def _mend(wrong: str, path: str) -> str:
    """What to do about a command line that cannot be read. That `--wait` takes the length of the wait is a likely
    guess."""
    is_length = "--wait" in wrong or ("--wait" in sys.argv and "extra argument" in wrong)
    return ("say how long with --timeout SECONDS; " if is_length else "") + f"see {path} --help"
