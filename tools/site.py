"""A hook of mkdocs: pages of the site that live outside docs/, and a site that asks nobody else for anything.

Rules: a document exists once. README's section on what runs, ARCHITECTURE, CONTRIBUTING and CHANGELOG become pages as
they stand. Links are written as they work in a checkout and are turned here: to the page of the site if there is one,
otherwise to nothing, because the site does not know where the checkout is published; a link to no file is an error.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {  # page of the site: the file that it is made of, and the heading of the section that it is of it
    "emulated.md": ("README.md", "What runs"),
    "architecture.md": ("ARCHITECTURE.md", ""),
    "contributing.md": ("CONTRIBUTING.md", ""),
    "changelog.md": ("CHANGELOG.md", ""),
}
COMPOSE_FILE = "subjects/tikv/docker-compose.yaml"  # to be had from the site too
PAGES = {(source, heading.lower().replace(" ", "-")): page for page, (source, heading) in OUTSIDE.items()}
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[(?P<words>[^\]]*)\]\((?P<target>[^)\s]+)\)")
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|embed)[^>]*\ssrc=["']?(?:https?:)?//"""
    r"""|<link[^>]*\srel=["']?(?:stylesheet|preconnect|dns-prefetch|preload|icon)[^>]*\shref=["']?(?:https?:)?//"""
    r"""|(?:@import|url\()\s*["']?(?:https?:)?//""",
    re.IGNORECASE,
)


def section(text: str, heading: str) -> str:
    """One section of a document as a document of its own; the whole without a heading."""
    if not heading:
        return text
    found = re.search(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise PluginError(f"there is no section {heading!r}")
    return found[0].removeprefix("#")


def on_files(files: Files, *, config: MkDocsConfig, **_: Any) -> Files:
    for page, (source, heading) in OUTSIDE.items():
        text = section((ROOT / source).read_text(encoding="utf-8"), heading)
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, Path(COMPOSE_FILE).name, abs_src_path=str(ROOT / COMPOSE_FILE)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    name = page.file.src_uri
    source = OUTSIDE[name][0] if name in OUTSIDE else f"docs/{name}"
    parts = FENCE.split(markdown)  # text and fenced blocks in turn
    parts[::2] = [LINK.sub(lambda found: turned(found, source, name), part) for part in parts[::2]]
    return "".join(parts)


def turned(found: re.Match[str], source: str, page: str) -> str:
    """A link of the file `source`, as it has to be on the page."""
    path, _, anchor = found["target"].partition("#")
    if not path or "://" in path or path.startswith("mailto:"):
        return found[0]
    to = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if not (ROOT / to).exists():
        raise PluginError(f"{source}: {found[0]} leads nowhere")
    if (to, anchor) in PAGES:
        at, anchor = PAGES[to, anchor], ""
    elif (to, "") in PAGES:
        at = PAGES[to, ""]
    elif to == COMPOSE_FILE:
        at = Path(COMPOSE_FILE).name
    elif to.startswith("docs/") and (ROOT / to).is_file():
        at = to.removeprefix("docs/")
    else:
        return found["words"]
    relative = posixpath.relpath(at, posixpath.dirname(page) or ".")
    return f"[{found['words']}]({relative}{'#' if anchor else ''}{anchor})"


def on_post_build(*, config: MkDocsConfig, **_: Any) -> None:
    """Whoever reads the site is known to its host alone: no page loads anything from elsewhere."""
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in {".html", ".css", ".svg"}:
            found = LOADED.search(path.read_text(encoding="utf-8"))
            if found is not None:
                raise PluginError(f"{path} loads something from elsewhere: {found[0]}")
