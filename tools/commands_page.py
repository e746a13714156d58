"""docs/commands.md: every command and option, asked of the command line itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import click

from drillyard.faces.cli import EXIT_CODES, app

INTRODUCTION = """\
# Commands

`./yard COMMAND` in a checkout, `drillyard COMMAND` once it is installed. Results go to stdout and errors, with their
mend, to stderr; with `--json` there is exactly one document on stdout, which [JSON and exit codes](json.md) describes.
A deployment that is not named is called `default`.
"""


def text() -> str:
    commands = dict(walk())
    index = [f"| [`{path}`](#{anchor(path)}) | {first_line(command)} |" for path, command in commands.items()]
    parts = [INTRODUCTION, "\n".join(["| command | |", "| --- | --- |", *index, ""]), f"{_flat(EXIT_CODES)}\n"]
    return "\n".join([*parts, *(_section(path, command) for path, command in commands.items())])


def walk() -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by the words that call it, in the order of the help."""
    yield from _below("", app)


def _below(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    inner: Mapping[str, click.Command] | None = getattr(command, "commands", None)
    if inner is None:
        yield path, command
        return
    for name, one in inner.items():
        if not one.hidden:
            yield from _below(f"{path} {name}".strip(), one)


def anchor(path: str) -> str:
    return path.replace(" ", "-")


def first_line(command: click.Command) -> str:
    return _flat((command.help or "").split("\n\n")[0])


def _section(path: str, command: click.Command) -> str:
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    options = [one for one in command.params if isinstance(one, click.Option) and not one.hidden]
    usage = " ".join(["drillyard", path, *(["[OPTIONS]"] if options else []), *map(_usage, arguments)])
    rows = [(_option(one), _flat(one.help or ""), _default(one)) for one in options]
    told = [_flat(paragraph) for paragraph in (command.help or "").split("\n\n")]
    lines = [f"## {path}", "", *"\n\n".join(told).splitlines(), "", "```text", usage, "```", ""]
    if rows:
        lines += ["| option | | default |", "| --- | --- | --- |"]
        lines += [f"| {name} | {_cell(about)} | {default} |" for name, about, default in rows]
        lines.append("")
    return "\n".join(lines)


def _usage(argument: click.Argument) -> str:
    return argument.metavar or str(argument.name).upper()


def _option(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if option.is_flag:
        return names
    return f"{names} {option.metavar or 'VALUE'}"


def _default(option: click.Option) -> str:
    value = option.default  # where there is none: None, or a mark of Click's own
    if option.is_flag or not isinstance(value, str | int | float):
        return ""
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def _cell(words: str) -> str:
    return words.replace("|", "\\|")


def _flat(words: str) -> str:
    return " ".join(words.split())
