"""The hook of mkdocs: where links lead on the site, and what no page may do."""

from __future__ import annotations

import pytest
from mkdocs.exceptions import PluginError

from tools import site


@pytest.mark.parametrize(
    ("source", "page", "link", "told"),
    [
        ("docs/compose.md", "compose.md", "[a](json.md#exit-codes)", "[a](json.md#exit-codes)"),
        ("docs/index.md", "index.md", "[a](../README.md#what-runs)", "[a](emulated.md)"),
        ("docs/index.md", "index.md", "[a](../ARCHITECTURE.md#the-map)", "[a](architecture.md#the-map)"),
        ("docs/compose.md", "compose.md", "[the images](../images/)", "the images"),
        ("docs/index.md", "index.md", "[a](../subjects/tikv/docker-compose.yaml)", "[a](docker-compose.yaml)"),
        ("README.md", "emulated.md", "[a](docs/topology.md)", "[a](topology.md)"),
        ("docs/decisions/dependencies.md", "decisions/dependencies.md", "[a](../json.md)", "[a](../json.md)"),
        ("docs/decisions/dependencies.md", "decisions/dependencies.md", "[a](../../README.md)", "a"),
        ("docs/index.md", "index.md", "[a](https://tikv.org)", "[a](https://tikv.org)"),
        ("docs/index.md", "index.md", "[a](#here)", "[a](#here)"),
        ("docs/index.md", "index.md", "![a](shots/up.svg)", "![a](shots/up.svg)"),
    ],
)
def test_links_work_in_a_checkout_and_on_the_site(source: str, page: str, link: str, told: str) -> None:
    assert site.LINK.sub(lambda found: site.turned(found, source, page), link) == told


def test_a_link_to_nothing_is_an_error() -> None:
    with pytest.raises(PluginError, match="leads nowhere"):
        site.LINK.sub(lambda found: site.turned(found, "docs/index.md", "index.md"), "[a](../NOWHERE.md)")


def test_a_section_becomes_a_document() -> None:
    assert site.section("# T\n\n## A\n\none\n\n### B\n\n## C\n", "A") == "# A\n\none\n\n### B\n\n"
    with pytest.raises(PluginError, match="no section"):
        site.section("# T\n", "A")


@pytest.mark.parametrize(
    ("text", "is_loaded"),
    [
        ('<script src="https://unpkg.com/x.js"></script>', True),
        ('<script src="assets/x.js"></script>', False),
        ('<link rel="stylesheet" href="//fonts.example/css">', True),
        ('<link rel="preconnect" href="https://fonts.example">', True),
        ('<link rel="stylesheet" href="assets/main.css">', False),
        ("@font-face { src: url(https://cdn.example/a.woff2) }", True),
        ("a { background: url(data:image/svg+xml;base64,AA) }", False),
        ('<img src="http://example.com/badge.svg">', True),
        ('<a href="https://tikv.org">TiKV</a>', False),
    ],
)
def test_what_a_page_loads_from_elsewhere_is_found(text: str, is_loaded: bool) -> None:
    assert (site.LOADED.search(text) is not None) == is_loaded
