"""The documentation is whole and fresh: what is made from the program is as the program is, and every page is found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from drillyard.faces import api
from drillyard.judge import causes, ends
from tools import api_page, causes_page, commands_page, pages, performance_page, shots, site

DOCS = pages.DOCS
NAV = re.findall(r"^ +- [^:\n]+: (\S+\.md)$", (pages.ROOT / "mkdocs.yml").read_text(), re.MULTILINE)


def test_generated_pages_are_fresh() -> None:
    stale = [path.name for path in pages.stale()]
    assert not stale, f"run ./yard docs pages and commit {stale}"


def test_the_navigation_lists_every_page_once() -> None:
    there = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} | set(site.OUTSIDE)
    assert sorted(NAV) == sorted(there)


def test_every_command_and_option_is_on_the_page() -> None:
    page = (DOCS / "commands.md").read_text()
    for path, command in commands_page.walk():
        section = re.search(rf"^## {path}\n.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
        assert section is not None, path
        for parameter in command.params:
            for name in parameter.opts if parameter.param_type_name == "option" else [parameter.metavar]:
                assert f"{name}" in section[0], f"{path} {name}"
        assert commands_page.first_line(command) in section[0]


def test_every_cause_has_an_anchor_and_says_what_to_do() -> None:
    page = (DOCS / "causes.md").read_text()
    for name in causes.names():
        section = re.search(rf"^## `{name}`\n.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
        assert section is not None, name
        for part in ("Recognised by", "**You are told:**", "**The data:**", "**Next:**"):
            assert part in section[0], f"{name}: {part}"
        assert "{" not in section[0].replace("{}", ""), f"{name}: something is not filled in"
    shown = [known.shows.partition(" ")[2] for known in causes.CATALOGUE]
    assert all(words in page for words in shown)


def test_every_cause_is_led_to_by_a_symptom_and_has_an_example() -> None:
    led = {name for _, names in causes_page.SYMPTOMS for name in names}
    assert led == set(causes.names()), "tools/causes_page.py: SYMPTOMS"
    wanted = {name for name in causes.names() if causes_page.needs_example(name)}
    assert wanted == set(causes_page.EXAMPLES), "tools/causes_page.py: EXAMPLES"


@pytest.mark.parametrize("name", ["cluster-id-mismatch", "port-taken", "bad-flag", "disk-full", "open-files"])
def test_the_example_of_an_end_is_one(name: str) -> None:
    pattern = next(kind.pattern for kind in ends.KINDS if kind.name == name)
    assert re.search(pattern, causes_page.EXAMPLES[name], re.IGNORECASE)


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("exec format error", ["exec format error"]),
        (r"a.*|b (?:c|d)?e.*", ["a…", "b (?:c|d)?e…"]),
        (r"-server: \S+\.toml: (?P<found>.*)", [r"-server: \S+\.toml: …"]),
    ],
)
def test_a_pattern_is_told_by_its_alternatives(pattern: str, told: list[str]) -> None:
    assert causes_page.alternatives(pattern) == told


def test_the_api_page_tells_of_every_public_name() -> None:
    page = (DOCS / "api.md").read_text()
    assert [name for name in api.__all__ if f"### {name}\n" not in page and name != "DEFAULT_NAME"] == []
    for record in ("Trouble", "Cause", "GateRow", "MemberRow", "DownReport", "NoSuchMember", "EvidenceLost"):
        assert f"### {record}\n" in page, f"{record} is returned or raised"


@pytest.mark.parametrize("handle", ["Cluster", "Yard"])
def test_every_call_of_a_handle_says_what_it_does(handle: str) -> None:
    silent = [name for name, member in api_page.members(getattr(api, handle)) if not member.__doc__]
    assert not silent, "a docstring is missing"


def test_pictures_are_there_and_need_nothing_from_elsewhere() -> None:
    taken = {path.stem for path in shots.SHOTS.glob("*.svg")}
    assert taken == set(shots.NAMES), "./yard docs shots takes them"
    for path in shots.SHOTS.glob("*.svg"):
        text = path.read_text()
        assert re.findall(r"https?://[^\"' <]+", text) == ["http://www.w3.org/2000/svg"], path.name
        assert "<image" not in text
        assert "url(" not in text


def shown_pictures(document: Path) -> list[Path]:
    return [document.parent / found for found in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", document.read_text())]


def test_every_picture_is_shown_somewhere() -> None:
    shown = {path.resolve() for one in (pages.ROOT / "README.md", *DOCS.rglob("*.md")) for path in shown_pictures(one)}
    assert shown == {*shots.SHOTS.glob("*.svg"), *performance_page.PLOTS.glob("*.svg")}
