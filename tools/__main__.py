"""./yard docs: build the site, write the generated pages afresh, or take the pictures. See --help."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from tools import pages, shots


def main() -> int:
    parser = argparse.ArgumentParser(prog="./yard docs", description="The documentation of Drillyard.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("build", help="build the site into site/, warnings are errors (when no command is given)")
    commands.add_parser("pages", help="write afresh what is made from the program and from bench/results")
    taken = commands.add_parser("shots", help="take the pictures in docs/shots/ of real commands")
    taken.add_argument("shot", nargs="*", metavar="SHOT", help=f"which (all): {', '.join(shots.NAMES)}")
    options = parser.parse_args()
    if options.command == "pages":
        return pages.write()
    if options.command == "shots":
        return shots.take(options.shot or list(shots.NAMES))
    return build()


def build() -> int:
    """The site, from pages that are fresh."""
    for path in pages.stale():
        print(f"stale: {path.relative_to(pages.ROOT)}; run ./yard docs pages", file=sys.stderr)
    if pages.stale():
        return 1
    # The theme warns of a MkDocs 2 that is not installed here.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean"]  # what is quiet is not strict any more
    return subprocess.run(mkdocs, cwd=pages.ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
