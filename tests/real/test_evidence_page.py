"""The pages of a bundle in a real browser: they load from a file, need nothing, and can be read on any screen."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
from browser import Browser, browser
from shell import Shell

from drillyard.faces import exits

MEMBERS = ("pd0", "pd1", "pd2", "tikv0", "tikv1", "tikv2")
WIDTHS = (400, 1280)
CODE = "<script>document.title=1</script><img src=x onerror=alert(1)>"
HOSTILE = f'[2026/01/01 00:00:00.000 +00:00] [ERROR] [x.rs:1] ["{CODE}"]'
FATAL = '[2026/01/01 00:00:00.001 +00:00] [FATAL] [x.rs:2] ["' + "a very long line " * 200 + '"]'


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of six members, one of which was killed, with lines in its log that nobody should write."""
    yard = Shell(tmp_path_factory.mktemp("evidence") / "home")
    try:
        ran = yard("up", "--topology", str(yard.topology()), "--json")
        assert ran.code == exits.OK, ran
        tikv1 = next(one for one in ran.document["report"]["members"] if one["name"] == "tikv1")
        os.kill(tikv1["pid"], signal.SIGKILL)
        deadline = time.monotonic() + 60
        while "exited" not in yard("status").out:
            assert time.monotonic() < deadline
        with Path(tikv1["log_path"]).open("a") as log:
            log.write(f"{HOSTILE}\n{FATAL}\n")
        ran = yard("diagnose")
        assert ran.code == exits.NOT_READY, ran
        yield Path(ran.out.rpartition("page: ")[2].strip()).parent
    finally:
        yard.clear()


def pages(bundle: Path) -> list[Path]:
    return [bundle / "index.html", *(bundle / "members" / f"{member}.html" for member in MEMBERS)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_loads_alone_and_fits(chromium: Browser, bundle: Path, width: int, scheme: str) -> None:
    chromium.show("about:blank", width)
    blank = chromium.picture()
    for page in pages(bundle):
        chromium.show(page.as_uri(), width, scheme=scheme)
        assert chromium.complaints == [], page
        assert chromium.requests == [page.as_uri()], "the page is all that it needs"
        assert chromium.value("document.documentElement.scrollWidth") <= width, f"{page.name} at {width} px"
        assert chromium.value("document.scripts.length + document.images.length") == 0
        assert chromium.value(IS_VISIBLE % "h1"), page
        assert len(chromium.picture()) > 5 * len(blank), "something is drawn"
        light = chromium.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert light == (scheme == "light")


def test_the_headline_says_what_is_wrong_without_a_click(chromium: Browser, bundle: Path) -> None:
    chromium.show((bundle / "index.html").as_uri(), 1280)
    said = chromium.value("document.querySelector('header.head').innerText")
    for words in ("tikv1 was ended by signal 9", "cause", "somebody outside of drillyard", "next", "drillyard"):
        assert words in said
    assert chromium.value("document.querySelector('header.head').getBoundingClientRect().top") < 200
    assert chromium.value("document.title").startswith("default: evidence of ")


def test_every_member_is_a_link_away_and_back(chromium: Browser, bundle: Path) -> None:
    index = (bundle / "index.html").as_uri()
    chromium.show(index, 1280)
    links = chromium.value("[...document.querySelectorAll('table.members a')].map(a => a.href)")
    assert links == [page.as_uri() for page in pages(bundle)[1:]]
    targets = chromium.value("[...document.querySelectorAll('a')].map(a => a.href.split('#')[0])")
    assert all(Path(url2pathname(urlsplit(target).path)).exists() for target in targets)
    for link in sorted(
        {*links, *(target for target in targets if target.endswith((".html", ".log", ".txt", ".json")))}
    ):
        chromium.show(link, 1280)
        assert chromium.complaints == []
    chromium.show(links[0], 1280)
    assert chromium.value("document.querySelector('nav a').href") == index


def test_lines_that_matter_stand_out_and_are_one_click_away(chromium: Browser, bundle: Path) -> None:
    page = (bundle / "members" / "tikv1.html").as_uri()
    for scheme in ("light", "dark"):
        chromium.show(page, 1280, scheme=scheme)
        plain = chromium.value(STYLE % ".log:not(.list) > div:not([class])")
        for mark in ("error", "fatal"):
            marked = chromium.value(STYLE % f".log:not(.list) > div.{mark}")
            assert marked["ground"] not in (plain["ground"], "rgba(0, 0, 0, 0)"), (mark, scheme)
            assert marked["edge"] not in (plain["edge"], "rgba(0, 0, 0, 0)"), (mark, scheme)
    listed = chromium.value("[...document.querySelectorAll('.list > div')].map(d => [d.className, d.innerText])")
    assert [name for name, _ in listed][-2:] == ["error", "fatal"]
    assert CODE in listed[-2][1], "as text"
    target = chromium.value("[...document.querySelectorAll('.list a')].at(-1).hash")
    chromium.value("[...document.querySelectorAll('.list a')].at(-1).click()")
    box = chromium.value(
        f"(({{top, bottom}}) => ({{top, bottom}}))(document.querySelector('{target}').getBoundingClientRect())"
    )
    assert box["bottom"] > 0, "the browser has gone there"
    assert box["top"] < 900


IS_VISIBLE = "(({width, height}) => width > 100 && height > 15)(document.querySelector('%s').getBoundingClientRect())"
STYLE = "(s => ({ground: s.backgroundColor, edge: s.borderLeftColor}))(getComputedStyle(document.querySelector('%s')))"
