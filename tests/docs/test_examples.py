"""Every command block and program in the documents does what it says, on a cluster of its own.

A `sh` block is run as one script with `sh -eu` from the top of the checkout; a `python` block as a program. What a line
prints is stated behind it as `# prints: ...` (a whole line of its output), or `# says: ...` (a part of a line, of its
output or its errors). Blocks that call the test commands themselves are run by `.ci/run`, those that need Docker by the
tier that has it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from examples import Example, clear_up, examples


@pytest.mark.timeout(300)
@pytest.mark.parametrize("example", examples(in_containers=False), ids=str)
def test_example_does_what_it_says(example: Example, tmp_path: Path) -> None:
    environment = {**os.environ, "DRILLYARD_HOME": str(tmp_path / "home")}
    try:
        example.run(environment)
    finally:
        clear_up(environment)


def test_documents_have_examples() -> None:
    for in_containers in (False, True):
        assert any(one.document.name == "README.md" for one in examples(in_containers=in_containers))
